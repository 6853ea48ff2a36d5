"""Several classes for each video: losses against timm, mAP against scikit-learn's and by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY, loaded, noise, same_state, write_video
from timm.loss import AsymmetricLossMultiLabel
from torch import nn
from torch.nn import functional

from vidtrain.errors import InputError, UsageError
from vidtrain.targets import component
from vidtrain.tasks import losses
from vidtrain.tasks.multilabel import Multilabel, average_precision
from vidtrain.tasks.scores import Scores

CPU = torch.device("cpu")
NAMES = ("sit", "run", "eat", "fly")


def made(**settings: Any) -> Multilabel:
    """The task as a config makes it."""
    node = {"_target_": "vidtrain.tasks.multilabel.Multilabel", **settings}
    return component(node, "task", num_classes=4, class_counts=(4, 2, 1, 0))


def test_targets_hold_all_classes_of_a_video() -> None:
    labels = [(0, 2), (), (3,)]
    hot = made().targets(labels, CPU)
    assert hot.tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]]
    smooth = made(label_smoothing=0.2).targets(labels, CPU)
    assert torch.allclose(smooth, hot * 0.8 + 0.1)  # smooth_dense of timm.loss.BinaryCrossEntropy


def test_bce_by_hand_and_weighted() -> None:
    logits, targets = torch.tensor([[0.0, 2.0, -1.0, 0.5]]), torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    p = torch.sigmoid(logits)
    terms = torch.where(targets > 0, -p.log(), -(1 - p).log())[0]
    assert made().loss(nn.Identity(), logits, targets).item() == pytest.approx(terms.mean().item())
    weights = torch.tensor([1.0, 2.0, 0.5, 0.0])
    weighted = made(class_weights=weights.tolist()).loss(nn.Identity(), logits, targets)
    assert weighted.item() == pytest.approx((terms * weights).mean().item())


@pytest.mark.parametrize("settings", [(4.0, 0.0, 0.05), (4.0, 1.0, 0.05), (2.0, 1.0, 0.0)])
def test_asymmetric_loss_and_its_gradient_are_timms(settings: tuple[float, float, float]) -> None:
    gamma_neg, gamma_pos, margin = settings
    task = made(criterion="asymmetric", gamma_neg=gamma_neg, gamma_pos=gamma_pos, margin=margin)
    reference = AsymmetricLossMultiLabel(gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=margin)
    torch.manual_seed(0)
    logits = 3 * torch.randn(6, 4)
    targets = (torch.rand(6, 4) < 0.4).float()
    own = logits.clone().requires_grad_()
    task.loss(nn.Identity(), own, targets).backward()
    theirs = logits.clone().requires_grad_()
    # One video at a time: versions of timm differ in how they reduce a batch.
    mean = sum(reference(theirs[i : i + 1], targets[i : i + 1]) for i in range(6)) / 6
    assert isinstance(mean, torch.Tensor)
    mean.backward()
    assert own.grad is not None and theirs.grad is not None
    assert torch.allclose(own.grad, theirs.grad, atol=1e-6)
    assert task.loss(nn.Identity(), logits, targets).item() == pytest.approx(mean.item(), rel=1e-5)


def test_asymmetric_loss_of_a_soft_target_is_between_no_and_yes() -> None:
    logits = torch.tensor([[0.7]])
    yes, no, soft = (
        losses.asymmetric(logits, torch.tensor([[y]]), gamma_neg=4, gamma_pos=0, margin=0.05)
        for y in (1.0, 0.0, 0.3)
    )
    assert soft.item() == pytest.approx(0.3 * yes.item() + 0.7 * no.item())


def test_asymmetric_loss_is_finite_where_probabilities_are_0_and_1() -> None:
    logits = torch.tensor([[200.0, -200.0, 200.0, -200.0]]).requires_grad_()
    targets = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    for margin in (0.0, 0.05):
        task = made(criterion="asymmetric", gamma_pos=1.0, margin=margin)
        loss = task.loss(nn.Identity(), logits, targets)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite() and gradient.isfinite().all()


def test_without_focus_and_margin_it_is_the_sum_of_bce() -> None:
    task = made(criterion="asymmetric", gamma_neg=0.0, gamma_pos=0.0, margin=0.0)
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 4), torch.rand(3, 4).round()
    reference = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / 3
    assert task.loss(nn.Identity(), logits, targets).item() == pytest.approx(reference.item())


def test_average_precision_by_hand() -> None:
    def of(scores: list[float], positive: list[int]) -> float | None:
        return average_precision(np.array(scores), np.array(positive, dtype=bool))

    assert of([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0]) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert of([0.9, 0.8], [1, 1]) == 1.0
    assert of([0.9, 0.8], [0, 0]) is None
    assert of([0.5, 0.5, 0.5, 0.5], [1, 0, 0, 0]) == 0.25  # one step, whatever the order
    assert of([0.5, 0.5, 0.5, 0.5], [0, 0, 0, 1]) == 0.25
    # average_precision_score of scikit-learn 1.9 on the same
    tied = of([0.9, 0.8, 0.8, 0.8, 0.5, 0.4, 0.4, 0.1], [1, 0, 1, 0, 1, 1, 0, 0])
    assert tied == pytest.approx(0.6678571428571428, abs=1e-15)


def scores_of(*rows: tuple[tuple[int, ...], list[list[float]]]) -> list[Scores]:
    return [Scores(f"v{i}", labels, np.array(views, np.float32))
            for i, (labels, views) in enumerate(rows)]  # fmt: skip


def test_figures_by_hand() -> None:
    scores = scores_of(
        ((0, 1), [[3.0, 1.0, -3.0, 0.0]]),
        ((0,), [[2.0, 2.0, -3.0, 0.0]]),
        ((), [[-2.0, -2.0, -3.0, 0.0]]),
        ((1,), [[2.5, -3.0, -3.0, 0.0]]),
    )
    task = made()
    found = task.figures(scores, NAMES)
    assert found["per_class"] == {
        "sit": {"average_precision": pytest.approx((1 / 1 + 2 / 3) / 2), "videos": 2},
        "run": {"average_precision": pytest.approx((1 / 2 + 2 / 4) / 2), "videos": 2},
        "eat": {"average_precision": None, "videos": 0},
        "fly": {"average_precision": None, "videos": 0},
    }
    assert found["mAP"] == pytest.approx((5 / 6 + 1 / 2) / 2) and task.metric == "mAP"
    assert (found["mAP_classes"], found["unlabelled"], found["num_videos"]) == (2, 1, 4)
    logits = torch.tensor(np.stack([score.views[0] for score in scores]))
    hot = task.targets([score.labels for score in scores], CPU)
    assert found["loss"] == pytest.approx(task.loss(nn.Identity(), logits, hot).item(), rel=1e-6)
    assert task.summary(found) == (
        "val mAP 0.6667 over 2 classes (2 more have no video)  4 videos, 1 without a class  "
        f"loss {found['loss']:.4f}"
    )
    assert task.prediction(scores[0], NAMES) == {
        "id": "v0", "labels": ["sit", "run"], "views": 1,
        "top5": {"sit": 0.952574, "run": 0.731059, "fly": 0.5, "eat": 0.047426},
        "scores": pytest.approx(task.probabilities(scores[0]).tolist(), abs=1e-9),
    }  # fmt: skip


def test_views_are_put_together_as_probabilities() -> None:
    (score,) = scores_of(((0,), [[0.0, 800.0, 1.0, 0.0], [2.0, -800.0, 1.0, 0.0]]))
    sigmoid = 1 / (1 + np.exp(-2.0))
    assert made().probabilities(score)[:2] == pytest.approx([(0.5 + sigmoid) / 2, 0.5])
    assert made(views="max").probabilities(score)[:2] == pytest.approx([sigmoid, 1.0])


def test_no_class_at_all_is_said() -> None:
    with pytest.raises(InputError, match="none of the 1 videos has a class, so there is no mAP"):
        made().figures(scores_of(((), [[0.0, 0.0, 0.0, 0.0]])), NAMES)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"gamma_neg": 0.5}, r"task.gamma_neg=0.5 must be 0, or at least 1"),
        ({"gamma_pos": float("nan")}, r"task.gamma_pos=nan must be 0, or at least 1"),
        ({"margin": 1.0}, r"task.margin=1.0 must be from 0 to below 1"),
        ({"views": "sum"}, r"task.views='sum' must be one of mean, max"),
        ({"criterion": "ce"}, r"task.criterion='ce' must be one of bce, asymmetric"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        made(**settings)


def test_targets_in_words() -> None:
    for smoothing in (0.0, 0.2):
        task = made(label_smoothing=smoothing)
        hot = task.targets([(0, 2), (), (0, 1, 2, 3)], CPU)
        assert task.describe(hot[0], NAMES) == "sit + eat"
        assert task.describe(hot[1], NAMES) == "no class"
    mixed = 0.7 * hot[0] + 0.3 * hot[1]
    assert task.describe(mixed, NAMES) == f"sit {0.7 * 0.9 + 0.3 * 0.1:.2f} + eat 0.66"


@pytest.fixture(scope="module")
def charades(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Charades as it is published, small: bright videos, red ones, both, neither."""
    root = tmp_path_factory.mktemp("charades")
    names = ("Being bright", "Being red", "Being absent")
    (root / "Charades_v1_classes.txt").write_text(
        "".join(f"c{code:03d} {name}\n" for code, name in enumerate(names))
    )
    for split, count in (("train", 16), ("test", 8)):
        lines = ["id,length,actions"]
        for index in range(count):
            labels = [code for code in (0, 1) if index >> code & 1]
            pixels = noise(index + 100 * (split == "test"), 170 if 0 in labels else 60, 14)
            if 1 in labels:
                pixels[..., 1:] //= 3
            write_video(root / "Charades_v1" / f"{split}{index}.mp4", pixels)
            actions = ";".join(f"c{code:03d} 0.00 0.40" for code in labels)
            lines.append(f"{split}{index},0.56,{actions}")
        (root / f"Charades_v1_{split}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.slow
def test_charades_is_trained_resumed_and_evaluated(
    cli: Callable[..., int], charades: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*TINY, "data=charades", f"data.root={charades}", "data.num_workers=0",
                "num_threads=1", "train.batch_size=4", "eval.batch_size=4", "train.epochs=3",
                "optimizer.lr=0.01")  # fmt: skip
    assert cli("train", *settings, "name=refused") == 2
    assert "use task=multilabel" in capsys.readouterr().err
    task = ("task=multilabel", "task.criterion=asymmetric", "task.class_weights=sqrt",
            "mix=mixup_cutmix", "mix.mode=sample")  # fmt: skip
    assert cli("train", *settings, *task, "name=whole") == 0
    said = capsys.readouterr().err
    assert "over 2 classes (1 more have no video)  8 videos, 2 without a class" in said
    assert cli("train", *settings, *task, "name=parts", "train.max_steps=5") == 0
    assert cli("train", *settings, *task, "name=parts") == 0
    same_state("runs/whole", "runs/parts")

    capsys.readouterr()
    assert cli("eval", "run=runs/whole") == 0
    assert "average precision" in capsys.readouterr().out
    found = json.loads(Path("runs/whole/eval/results.json").read_text())
    best = loaded("runs/whole", "best")["progress"]["best"][0]
    assert found["mAP"] == best["value"] > 0.6  # a guess has 0.5
    first = json.loads(Path("runs/whole/eval/predictions.jsonl").read_text().splitlines()[3])
    assert first["id"] == "test3" and first["labels"] == ["Being bright", "Being red"]
    assert cli("eval", "run=runs/whole", "task.views=max", "eval.num_clips=2") == 0
    assert json.loads(Path("runs/whole/eval/results.json").read_text())["num_views"] == 16
