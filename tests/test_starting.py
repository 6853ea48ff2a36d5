"""model.weights through the real command line: fine-tuning, evaluation and export from a file."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import TINY, loaded
from safetensors.torch import save_file

NO_RUN = "tiny-folder-runs-source"
Cli = Callable[..., int]
SMALL = (*TINY, "train.batch_size=4", "data.num_workers=0", "data=folder")


@pytest.fixture
def source(cli: Cli, class_folders: Path) -> Path:
    """A run of two steps, whose folder stands for its best weights."""
    assert cli("train", *SMALL, f"data.root={class_folders}", "name=source",
               "train.max_steps=2") == 0  # fmt: skip
    return Path("runs/source")


def test_fine_tuning_starts_from_the_weights_and_says_so(
    cli: Cli, source: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    words = ("train", *SMALL, f"data.root={class_folders}", "name=tuned", f"model.weights={source}",
             "optimizer.lr=1e-12")  # fmt: skip
    assert cli(*words, "train.max_steps=1") == 0
    said = capsys.readouterr()
    assert "tensors matched (the network's own names); head taken over" in said.out + said.err
    given, taken = loaded("runs/source")["model"], loaded("runs/tuned")["model"]
    for key, tensor in given.items():
        if tensor.is_floating_point() and "running" not in key:
            torch.testing.assert_close(taken[key], tensor, rtol=1e-5, atol=1e-7)
    record = json.loads(Path("runs/tuned/run.json").read_text())["weights"]
    assert record["origin"] == str(source / "checkpoints/best/model.safetensors")
    assert len(record["sha256"]) == 64
    assert record["missing"] == record["unexpected"] == []
    # A resumed run needs the file no more, and keeps the record.
    source.rename(source.with_name("moved"))
    assert cli(*words, "train.max_steps=2") == 0
    assert json.loads(Path("runs/tuned/run.json").read_text())["weights"] == record


def test_another_number_of_classes_takes_a_new_head(
    cli: Cli, source: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path("two")
    for split in ("train", "val"):
        for name in ("dark", "light"):
            folder = root / split / name
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to((class_folders / split / name).resolve())
    capsys.readouterr()
    assert cli("train", *SMALL, f"data.root={root}", "name=two", f"model.weights={source}",
               "train.max_steps=1", "finetune=frozen_backbone") == 0  # fmt: skip
    said = capsys.readouterr()
    assert "head replaced by a new one of 2 classes" in said.out + said.err
    assert cli("eval", "run=runs/two", "data.num_workers=0") == 0
    # Without training, such a head would answer at random.
    code = cli("eval", *TINY, "data=folder", f"data.root={root}", "data.num_workers=0",
               f"model.weights={source}")  # fmt: skip
    assert code == 1
    assert "does not fill the network: head replaced" in capsys.readouterr().err
    assert not list(Path("runs").glob("tiny-*"))


def test_weights_are_evaluated_and_exported_without_a_run(
    cli: Cli, source: Path, class_folders: Path
) -> None:
    words = (*TINY, "data=folder", f"data.root={class_folders}", "data.num_workers=0",
             f"model.weights={source}")  # fmt: skip
    assert cli("eval", *words) == 0
    assert cli("eval", "run=runs/source", "checkpoint=last", "data.num_workers=0") == 0
    found = [json.loads(Path(f"runs/{name}/eval/results.json").read_text())
             for name in (NO_RUN, "source")]  # fmt: skip
    assert found[0]["loss"] == found[1]["loss"]
    assert found[0]["checkpoint"] == str(source / "checkpoints/best/model.safetensors")
    assert cli("export", *words, "format=torch_export", "num_videos=2") == 0
    assert Path(f"runs/{NO_RUN}/export/model.pt2").is_file()


@pytest.mark.parametrize(
    ("weights", "code", "message"),
    [
        ("nowhere.pth", 1, "there is no such file"),
        ("published", 2, "no weights of this model are published"),
        ("ftp://host/file.pth", 2, "ftp:// is not known"),
        ("''", 2, "model.weights is empty"),
    ],
)
def test_wrong_weights_are_refused_before_any_work(
    cli: Cli, class_folders: Path, weights: str, code: int, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert cli("train", *SMALL, f"data.root={class_folders}", f"model.weights={weights}") == code
    assert message in capsys.readouterr().err
    assert not Path("runs").exists()


def test_weights_beside_a_run_are_not_ignored(
    cli: Cli, source: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("eval", "run=runs/source", "model.weights=nowhere.pth") == 2
    assert "run=FOLDER takes the run's own" in capsys.readouterr().err
    words = (*TINY, "data=folder", f"data.root={class_folders}", f"model.weights={source}")
    assert cli("eval", "run=runs/source", *words) == 2
    assert "whose results would be overwritten" in capsys.readouterr().err
    assert not Path("runs/source/eval").exists()


def test_what_weights_do_not_hold_is_not_frozen(
    cli: Cli, source: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = loaded("runs/source")["model"]
    first = next(key for key in state if key.endswith("bias"))
    torch.save({key: value for key, value in state.items() if key != first}, "some.pt")
    words = ("train", *SMALL, f"data.root={class_folders}", "model.weights=some.pt", "name=frozen",
             "train.max_steps=1")  # fmt: skip
    assert cli(*words, "finetune=frozen_backbone") == 2
    assert f"such as {first}: they would stay random" in capsys.readouterr().err
    assert cli(*words) == 0


def test_a_checkpoint_of_another_builder_is_refused(
    cli: Cli, source: Path, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = {"vidtrain": json.dumps({"_target_": "vidtrain.models.tsm.tsm"})}
    save_file(loaded("runs/source")["model"], "other.safetensors", metadata=meta)
    code = cli("train", *SMALL, f"data.root={class_folders}", "model.weights=other.safetensors")
    assert code == 1
    assert "was trained with vidtrain.models.tsm.tsm" in capsys.readouterr().err
