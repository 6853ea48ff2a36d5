"""Distillation: the losses by hand, the teacher frozen and left alone, whole runs."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import loaded, same_state
from my_models import tiny
from torch import nn
from torch.nn import functional

from vidtrain.config.model import InputConfig
from vidtrain.errors import UsageError
from vidtrain.running.teaching import renormalising
from vidtrain.tasks import losses
from vidtrain.tasks.distillation import Distillation, Teacher, captured, joined

Cli = Callable[..., int]
CLIPS = torch.rand(4, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))


def made(**settings: Any) -> Distillation:
    """The task with a teacher of its own."""
    torch.manual_seed(1)
    network = tiny(num_classes=3, width=16).eval().requires_grad_(False)
    teacher = Teacher(
        network=network, autocast=nullcontext, num_frames=4, crop_size=16,
        gain=(1.0,) * 3, offset=(0.0,) * 3, order=None, record={"sha256": "0"},
    )  # fmt: skip
    return Distillation(num_classes=3, **settings).with_teacher(teacher)


def loss_of(task: Distillation, student: nn.Module) -> torch.Tensor:
    targets = task.targets([(0,), (1,), (2,), (0,)], torch.device("cpu"))
    return task.loss(student, CLIPS, targets)


def test_softened_divergence_by_hand() -> None:
    student, teacher, t = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.5, 2.0, 0.0]]), 3.0

    def soft(logits: torch.Tensor) -> list[float]:
        shares = [math.exp(value / t) for value in logits[0].tolist()]
        return [share / sum(shares) for share in shares]

    p, q = soft(teacher), soft(student)
    by_hand = t**2 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert losses.distilled(student, teacher, t).item() == pytest.approx(by_hand, rel=1e-5)
    reference = functional.kl_div(
        (student / t).log_softmax(1), (teacher / t).softmax(1), reduction="batchmean"
    )
    assert losses.distilled(student, teacher, t).item() == pytest.approx(9 * reference.item())
    # Hinton et al., section 2.1: in the limit of high T it is half the squared distance over N.
    centred = (student - student.mean()) - (teacher - teacher.mean())
    limit = losses.distilled(student.double().float(), teacher, 300.0).item()
    assert limit == pytest.approx(centred.square().sum().item() / 6, rel=2e-2)


def test_similarity_by_hand() -> None:
    student = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # G = [[1, 1], [1, 2]]
    teacher = torch.tensor([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])  # G = [[9, 0], [0, 16]]
    rows = [[1 / math.sqrt(2), 1 / math.sqrt(2)], [1 / math.sqrt(5), 2 / math.sqrt(5)]]
    by_hand = (
        (rows[0][0] - 1) ** 2 + rows[0][1] ** 2 + rows[1][0] ** 2 + (rows[1][1] - 1) ** 2
    ) / 4
    assert losses.similarity(student, teacher).item() == pytest.approx(by_hand, rel=1e-5)
    assert losses.similarity(teacher, 7 * teacher).item() == pytest.approx(0, abs=1e-12)


def test_the_loss_is_the_two_parts_in_their_shares() -> None:
    torch.manual_seed(2)
    student = tiny(num_classes=3, dropout=0.0).eval()
    task = made(weight=0.7, temperature=2.0, label_smoothing=0.1)
    assert task.taught_by is not None
    logits, wanted = student(CLIPS), task.taught_by.network(CLIPS)
    hard = functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0]), label_smoothing=0.1)
    soft = losses.distilled(logits, wanted, 2.0)
    assert loss_of(task, student).item() == pytest.approx((0.3 * hard + 0.7 * soft).item())
    features = dataclasses.replace(task, similarity=5.0, student_layer=2, teacher_layer="5")
    network = task.taught_by.network
    assert isinstance(network, nn.Sequential)
    own, theirs = student[:3](CLIPS), network[:6](CLIPS)
    added = loss_of(features, student).item() - loss_of(task, student).item()
    assert added == pytest.approx(5 * losses.similarity(own, theirs).item(), abs=1e-5)


def test_the_teacher_is_frozen_and_is_no_part_of_the_student() -> None:
    torch.manual_seed(2)
    student, task = tiny(num_classes=3, dropout=0.5), made(similarity=10.0)
    assert task.taught_by is not None
    network = task.taught_by.network
    before = {key: value.clone() for key, value in network.state_dict().items()}
    keys, hooks = (
        set(student.state_dict()),
        [len(part._forward_hooks) for part in student.modules()],
    )
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for _ in range(3):
        loss_of(task, student.train()).backward()
        optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters()) and not network.training
    assert all(p.grad is not None for p in student.parameters())
    assert set(student.state_dict()) == keys
    assert [len(part._forward_hooks) for part in student.modules()] == hooks
    # What the student draws does not depend on the teacher.
    torch.manual_seed(3)
    alone = student(CLIPS)
    torch.manual_seed(3)
    seen: list[torch.Tensor] = []
    handle = student.register_forward_hook(lambda *args: seen.append(args[2]))
    loss_of(task, student)
    handle.remove()
    assert torch.equal(seen[0], alone)


def test_features_are_those_of_the_last_layer_below_the_classifier() -> None:
    network = tiny(num_classes=3).eval()
    with captured(network, None, "student", on=True) as found:
        network(CLIPS)
    assert torch.equal(joined(found, 4), network[:4](CLIPS).flatten(1))  # the second convolution
    of_frames = torch.arange(12.0).view(6, 2)  # of two clips of three frames
    assert joined([of_frames], 2).tolist() == [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
    with pytest.raises(UsageError, match=r"puts out \(6, 2\) for 4 of them"):
        joined([of_frames], 4)
    with (
        pytest.raises(UsageError, match=r"task.teacher_layer=nine is no module.*layers are 0, 3"),
        captured(network, "nine", "teacher", on=True),
    ):
        pass


def test_clips_become_the_teachers() -> None:
    seen: list[torch.Tensor] = []
    student = InputConfig(mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    own = InputConfig(mean=[0.45, 0.45, 0.45], std=[0.225, 0.225, 0.225])
    gain, offset = renormalising(student, own)
    task = made()
    assert task.taught_by is not None
    teacher = dataclasses.replace(
        task.taught_by, num_frames=2, crop_size=8, gain=gain, offset=offset
    )
    pixels = torch.full((1, 3, 4, 16, 16), 0.5)
    pixels[:, :, 3] = 0.25
    shape = (3, 1, 1, 1)
    clips = (pixels - torch.tensor(student.mean).view(shape)) / torch.tensor(student.std).view(
        shape
    )
    seen.append(teacher.clips(clips))
    assert seen[0].shape == (1, 3, 2, 8, 8)
    assert torch.allclose(seen[0][:, :, 0], torch.tensor((0.5 - 0.45) / 0.225), atol=1e-5)
    assert torch.allclose(seen[0][:, :, 1], torch.tensor((0.25 - 0.45) / 0.225), atol=1e-5)
    assert torch.equal(task.taught_by.clips(clips), clips)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 0.0}, r"task.temperature=0.0 must be above 0"),
        ({"weight": 1.5}, r"task.weight=1.5 must lie in \[0, 1\]"),
        ({"similarity": -1.0}, r"task.similarity=-1.0 must be >= 0"),
        ({"weight": 0.0}, r"leave the teacher out; use task=classification"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        Distillation(num_classes=3, **settings)


@pytest.fixture
def taught(cli: Cli, small_run: tuple[str, ...]) -> tuple[str, ...]:
    """Arguments of a distillation from a run that is there: runs/big."""
    assert cli("train", *small_run, "model.build.width=16", "train.max_steps=2", "name=big") == 0
    return (*small_run, "task=distillation", "task.teacher=runs/big", "mix=mixup")


def test_a_run_teaches_and_is_not_needed_afterwards(
    cli: Cli, taught: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert cli("train", *taught, "name=student", "task.similarity=10", "train.epochs=1") == 0
    assert "teacher: tiny from runs/big/checkpoints/best" in capsys.readouterr().err
    saved = loaded("runs/student")
    assert saved["model"].keys() == loaded("runs/big")["model"].keys()
    assert saved["model"]["0.weight"].shape[0] == 8  # the student's width
    assert len(saved["task"]["teacher"]["sha256"]) == 64
    shutil.rmtree("runs/big")
    assert cli("eval", "run=runs/student") == 0
    found = json.loads(Path("runs/student/eval/results.json").read_text())
    assert found["num_videos"] == 13


@pytest.mark.slow
def test_stopped_and_resumed_it_is_the_same_and_another_teacher_is_refused(
    cli: Cli, taught: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", *taught, "name=whole", "train.max_steps=8") == 0
    assert cli("train", *taught, "name=parts", "train.max_steps=3") == 0
    assert cli("train", *taught, "name=parts", "train.max_steps=8") == 0
    same_state("runs/whole", "runs/parts")
    shutil.rmtree("runs/big")
    assert cli("train", *[a for a in taught if not a.startswith(("task", "mix"))],
               "model.build.width=16", "name=big", "seed=1", "train.max_steps=1") == 0  # fmt: skip
    capsys.readouterr()
    assert cli("train", *taught, "name=parts") == 2
    assert "trained with other settings (the task: " in capsys.readouterr().err


def test_weights_of_a_named_model_teach(
    cli: Cli, taught: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    named = [a for a in taught if not a.startswith("task.teacher")]
    model = ("model@teacher=tiny", "teacher.build.width=16", "train.max_steps=2")
    assert cli("train", *named, *model, "teacher.weights=runs/big", "name=same") == 0
    assert cli("train", *taught, "train.max_steps=2", "name=run") == 0
    same_state("runs/same", "runs/run")
    capsys.readouterr()
    assert cli("train", *named, *model, "name=noise") == 2
    assert "teacher=tiny has no weights and would teach noise" in capsys.readouterr().err
    assert cli("train", *named, "name=none") == 2
    assert "task=distillation needs one teacher" in capsys.readouterr().err
    assert cli("train", *named, *model, "task=classification", "name=idle") == 2
    assert "teacher=tiny is given, and this task has none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["task.teacher=runs/bgi"], "task.teacher=runs/bgi is not a run folder"),
        (["model.input.num_frames=2"], "takes 4 frames, the student's clips have 2"),
        (["task.similarity=1", "train.batch_size=1", "mix=none"], "a micro-batch, which has 1"),
        (["task.similarity=1", "model.compile=true"], "which torch.compile hides"),
    ],
)
def test_what_cannot_teach_is_refused(
    cli: Cli, taught: tuple[str, ...], settings: list[str], expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert cli("train", *taught, *settings, "name=no") in (1, 2)
    assert expected in capsys.readouterr().err
    assert not Path("runs/no").exists()


def test_a_teacher_of_other_classes_is_refused_and_of_another_order_is_not(
    cli: Cli, taught: tuple[str, ...], class_folders: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "turned.txt").write_text("light\ngrey\ndark\n")
    few = ("train.max_steps=2", f"data.classes={tmp_path / 'turned.txt'}")
    assert cli("train", *taught, *few, "name=turned") == 0
    other = shutil.copytree(class_folders, tmp_path / "other")
    for split in ("train", "val"):
        (other / split / "light").rename(other / split / "bright")
    capsys.readouterr()
    assert cli("train", *taught, f"data.root={other}", "name=other") == 2
    said = capsys.readouterr().err
    assert "the data alone has bright; the teacher alone has light" in said


@pytest.mark.slow
@pytest.mark.dist
def test_two_ranks_distil_as_one_process_does(
    cli: Cli, taught: tuple[str, ...], tmp_path: Path
) -> None:
    settings = (*taught, "model.build._target_=my_models.tiny_without_batch_norm",
                "model.build.dropout=0.0", "mix.mode=sample", "task.similarity=10",
                "train.max_steps=4")  # fmt: skip
    # The similarity of clips is that of a micro-batch, so these must be the same.
    assert cli("train", *settings, "train.accumulate=2", "name=one") == 0
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "vidtrain", "train", *settings, "name=two"],
        cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    one, two = (
        [json.loads(line) for line in (Path("runs") / name / "metrics.jsonl").open()]
        for name in ("one", "two")
    )
    both = [[row["loss"] for row in rows if row["kind"] == "train"] for rows in (one, two)]
    assert len(both[0]) == 4 and both[1] == pytest.approx(both[0], rel=1e-5)
