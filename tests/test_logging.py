"""Where a training's figures go: its own files, TensorBoard, and the two services if installed."""

import csv
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vidtrain.config.train import LogConfig
from vidtrain.errors import UsageError
from vidtrain.records import services, sinks
from vidtrain.records.runlog import RunLog
from vidtrain.report.clip_pictures import plot_filmstrips, worst_errors
from vidtrain.report.figures import as_csv, best_figures
from vidtrain.tasks.classification import Classification
from vidtrain.tasks.multilabel import Multilabel
from vidtrain.tasks.scores import Scores

SETTINGS = {
    "name": "mine", "seed": 3, "model": {"name": "tiny", "weights": None},
    "optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1, "betas": [0.9, 0.99]},
    "data": {"name": "folder", "root": "/secret/place"},
}  # fmt: skip


def log_some(folder: Path, to: list[str], *, start: int = 0, steps: int = 3) -> None:
    """What a training logs, without the training."""
    log = RunLog(folder, LogConfig(to=to), main=True, start_step=start)
    with closing(log):
        log.open(SETTINGS)
        log.text("config", "seed: 3")
        log.picture("inputs", np.zeros((8, 8, 3), np.uint8), start)
        for step in range(start + 1, start + steps + 1):
            log.at(step, step / 10)
            log.row("train", loss=1 / step, grad_norm=None, lr=0.1)
            log.scalars({"lr/x0.1": 0.01})
            log.speed(clips_per_second=12.0)
        log.row("val", top1=0.5 + step / 100, loss=1 / step, top5=None)


def board(folder: Path) -> EventAccumulator:
    found = EventAccumulator(str(folder / "tensorboard"))
    return found.Reload()


def test_a_training_leaves_tables_curves_and_pictures(
    cli: Callable[..., int], small_run: tuple[str, ...]
) -> None:
    assert cli("train", *small_run, "log.worst=2", "finetune=head_lr_x10") == 0
    run, found = Path("runs/small"), board(Path("runs/small"))
    scalars = set(found.Tags()["scalars"])
    assert scalars >= {"train/loss", "train/grad_norm", "train/lr", "val/top1", "val/loss", "lr/x1",
                       "lr/x10", "speed/clips_per_second_per_device", "speed/wait_share",
                       "speed/host_memory_gib"}  # fmt: skip
    assert set(found.Tags()["images"]) == {"inputs", "confusion_matrix", "worst_errors"}
    assert found.Tags()["tensors"].count("worst_errors/text_summary") == 1
    with Image.open(run / "worst_errors.png") as image:
        assert image.width > 400
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    with open(run / "metrics.csv", newline="") as file:
        table = list(csv.DictReader(file))
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    assert [float(line["train/loss"]) for line in table] == losses
    tops = [row["top1"] for row in rows if row["kind"] == "val"]
    assert [float(line["val/top1"]) for line in table if line["val/top1"]] == tops
    curve = [event.value for event in found.Scalars("train/loss")]
    np.testing.assert_allclose(curve, losses, rtol=1e-6)
    # Logging has no part in what is learned, and no time is in the figures.
    assert cli("train", *small_run, "log.to=[]", "name=quiet", "finetune=head_lr_x10") == 0
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (run / name).read_bytes() == Path("runs/quiet", name).read_bytes()
    assert not Path("runs/quiet/tensorboard").exists()


def test_hyper_parameters_stand_beside_the_figures_of_the_same_run(tmp_path: Path) -> None:
    log_some(tmp_path, ["tensorboard"])
    found = board(tmp_path)
    start = found.PluginTagToContent("hparams")["_hparams_/session_start_info"]
    for word in (b"optimizer.lr", b"model.name", b"tiny", b"seed", b"[0.9, 0.99]"):
        assert word in start
    assert b"secret" not in start and b"weights" not in start
    experiment = found.PluginTagToContent("hparams")["_hparams_/experiment"]
    assert b"best/top1" in experiment
    assert {"best/top1", "last/top1", "best/loss"} <= set(found.Tags()["scalars"])
    assert found.Scalars("best/top1")[0].value == pytest.approx(0.53)


def test_the_settings_of_a_run_that_is_killed_are_known(tmp_path: Path) -> None:
    code = f"""
log = RunLog(Path({str(tmp_path)!r}), LogConfig(to=["tensorboard"]), main=True, start_step=0)
log.open(SETTINGS)
os._exit(9)
"""
    assert in_a_process(code).returncode == 9
    found = board(tmp_path).PluginTagToContent("hparams")
    assert b"optimizer.lr" in found["_hparams_/session_start_info"]
    assert "_hparams_/experiment" not in found, "it would fix that there are no figures"
    log_some(tmp_path, ["tensorboard"])  # the same command again
    found = board(tmp_path).PluginTagToContent("hparams")
    assert b"best/top1" in found["_hparams_/experiment"]
    assert "_hparams_/session_end_info" in found


def test_a_resumed_run_forgets_what_came_after(tmp_path: Path) -> None:
    log_some(tmp_path, ["tensorboard"], steps=4)
    log_some(tmp_path, ["tensorboard"], start=2, steps=1)
    with open(tmp_path / "metrics.csv", newline="") as file:
        assert [line["step"] for line in csv.DictReader(file)] == ["1", "2", "3"]
    assert [event.step for event in board(tmp_path).Scalars("train/loss")] == [1, 2, 3]


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run", LogConfig(), main=False, start_step=0)
    with closing(log):
        log.open(SETTINGS)
        log.row("val", top1=1.0)
        log.speed(clips_per_second=1.0)
        log.text("config", "a")
        log.picture("inputs", np.zeros((2, 2, 3), np.uint8), 0)
        log.best([], {"confusion": [[1]]}, ("a",))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["log.to=[tensorbord]"], "log.to=tensorbord is not a place to log to; did you mean"),
        (["log.worst=-1"], "log.worst=-1 must be 0 or more"),
    ],
)
def test_a_wrong_place_is_refused_before_training(
    settings: list[str], said: str, cli: Callable[..., int], small_run: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert cli("train", *small_run, *settings) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs/small/metrics.jsonl").exists()


@pytest.mark.parametrize("name", sinks.EXTRAS)
def test_a_package_that_is_missing_is_named_with_its_remedy(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.path", [])  # nothing can be found, whatever is installed
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UsageError, match=rf"not installed: pip install 'vidtrain\[{name}\]'"):
        sinks.check(LogConfig(to=["tensorboard", name]))


@pytest.mark.parametrize("name", sinks.EXTRAS)
def test_a_plain_folder_of_its_name_is_no_package(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()  # as a run of W&B leaves behind
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(UsageError, match="not installed"):
        sinks.check(LogConfig(to=[name]))
    (tmp_path / name / "__init__.py").touch()
    importlib.invalidate_caches()
    sinks.check(LogConfig(to=[name]))


@pytest.mark.parametrize(
    ("folder", "name"),
    [("runs/one", "one"), ("runs/rates/lr=1e-3", "rates/lr=1e-3"), ("else/where", "where"),
     ("runs", "runs")],
)  # fmt: skip
def test_a_run_is_named_as_its_folder_in_a_sweep_with_that_of_the_sweep(
    folder: str, name: str, tmp_path: Path
) -> None:
    settings = {"runs": str(tmp_path / "runs")}
    assert services.name_of(services.Opening(tmp_path / folder, settings, 0, None, print)) == name


def scores(*rows: tuple[str, int, list[float]]) -> list[Scores]:
    return [Scores(name, (label,), np.log(np.array([shares], np.float32)))
            for name, label, shares in rows]  # fmt: skip


def test_the_worst_errors_are_the_most_confident_ones() -> None:
    task, names = Classification(3), ("left", "right", "up")
    given = scores(
        ("unsure", 0, [0.3, 0.4, 0.3]), ("right", 1, [0.25, 0.5, 0.25]),
        ("sure", 0, [0.05, 0.9, 0.05]), ("same as sure", 0, [0.05, 0.9, 0.05]),
    )  # fmt: skip
    found = worst_errors(given, task.video_loss, lambda score: task.prediction(score, names), 2)
    assert found == [
        ("same as sure", "same as sure\ntrue left   predicted right 0.90   loss 3.00"),
        ("sure", "sure\ntrue left   predicted right 0.90   loss 3.00"),
    ]
    all_ = worst_errors(given, task.video_loss, lambda score: task.prediction(score, names), 9)
    assert [name for name, _ in all_] == ["same as sure", "sure", "unsure"]


def test_the_worst_errors_of_several_labels() -> None:
    task, names = Multilabel(3), ("sit", "run", "eat")
    given = [Scores("good", (0, 1), np.array([[4.0, 4.0, -4.0]], np.float32)),
             Scores("bad", (), np.array([[3.0, -4.0, -4.0]], np.float32))]  # fmt: skip
    found = worst_errors(given, task.video_loss, lambda score: task.prediction(score, names), 1)
    assert found[0][0] == "bad"
    assert "true no class   predicted sit 0.95, run 0.02, eat 0.02" in found[0][1]


def test_filmstrips_show_frames_from_first_to_last(tmp_path: Path) -> None:
    clip = np.full((20, 16, 24, 3), 255, np.uint8)
    clip[0], clip[-1], clip[1] = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    plot_filmstrips([clip, clip[:1]], ["costs $5 ^ $\ntrue a", "b " * 80], tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        shown = np.asarray(image.convert("RGB"))
    first, last, second = ((shown == colour).all(2) for colour in
                           ([255, 0, 0], [0, 0, 255], [0, 255, 0]))  # fmt: skip
    assert first.sum() > 1.5 * last.sum() > 5000  # in both strips, and in one
    assert not second.any()  # 6 of 20 frames
    with pytest.raises(ValueError, match="1 clips but 0 texts"):
        plot_filmstrips([clip], [], tmp_path / "b.png")


def test_the_table_has_a_line_per_step_and_a_column_per_figure() -> None:
    rows: list[dict[str, Any]] = [
        {"kind": "val", "step": 2, "epoch": 1.0, "top1": 0.5, "top5": None, "num_videos": 4},
        {"kind": "train", "step": 1, "epoch": 0.5, "loss": 2.0},
        {"kind": "train", "step": 2, "epoch": 1.0, "loss": 0.1},
        {"kind": "weights", "step": 2, "epoch": 1.0, "sha256": "ab"},
        {"kind": "val", "step": 4, "epoch": 2.0, "top1": 0.25, "top5": None, "num_videos": 4},
    ]
    assert as_csv(rows).splitlines() == [
        "step,epoch,train/loss,val/top1,val/top5,val/num_videos",
        "1,0.5,2.0,,,", "2,1.0,0.1,0.5,,4", "4,2.0,,0.25,,4",
    ]  # fmt: skip
    assert best_figures(rows) == {"best/top1": 0.5, "last/top1": 0.25}


def test_no_password_of_an_address_is_shown() -> None:
    assert services.address("https://me:word@host:80/a") == "https://host:80/a"
    assert services.address("sqlite:////tmp/mlflow.db") == "sqlite:////tmp/mlflow.db"


def in_a_process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs lines that use this file: W&B reads its environment once, and writes when it ends."""
    return subprocess.run(
        [sys.executable, "-c", f"from pathlib import Path\nfrom test_logging import *\n{code}"],
        env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
