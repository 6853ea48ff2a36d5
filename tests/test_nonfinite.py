"""A step whose loss is not finite: found before the weights change, left out, told, limited."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import loaded, same_state, write_video
from test_distributed import torchrun

Cli = Callable[..., int]
OVERFLOWS = ("model.build._target_=my_models.overflowing", "~model.build.width",
             "~model.build.dropout")  # fmt: skip


@pytest.fixture
def poisoned(class_folders: Path, tmp_path: Path) -> Path:
    """The class folders, with one training video that is white from corner to corner."""
    root = shutil.copytree(class_folders, tmp_path / "poisoned")
    white = np.full((16, 40, 64, 3), 255, np.uint8)
    write_video(root / "train" / "light" / "train02.mp4", white)
    return root


def left_out(run: str) -> list[dict]:
    text = Path(f"runs/{run}/nonfinite.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_the_step_is_left_out_and_its_videos_are_named(
    cli: Cli, small_run: tuple[str, ...], poisoned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*small_run, *OVERFLOWS, f"data.root={poisoned}", "average=ema")
    assert cli("train", *settings) == 0
    rows = left_out("small")
    assert len(rows) == 2, "once in each of two epochs"
    for row in rows:
        assert "light/train02.mp4" in row["videos"] and len(row["videos"]) == 4
        assert row["loss"] in ("nan", "inf") or row["grad_norm"] in ("nan", "inf")
    said = capsys.readouterr().err
    assert said.count("is left out: loss") == 2 and "2 steps left out as not finite" in said
    # Neither the weights nor the batch-norm statistics, nor their averages, have seen it.
    found = loaded("runs/small")
    for part in ("model", "average"):
        for name, value in found[part].items():
            assert torch.isfinite(value).all(), f"{part}.{name}"
    assert found["nonfinite"] == [row["step"] for row in rows]
    metrics = Path("runs/small/metrics.jsonl").read_text().splitlines()
    val = [json.loads(line) for line in metrics if '"val"' in line]
    assert all(math.isfinite(row["loss"]) for row in val)


def test_a_run_in_parts_leaves_out_the_same(
    cli: Cli, small_run: tuple[str, ...], poisoned: Path
) -> None:
    # strict: without it a GPU's sums differ in their last bits from run to run.
    settings = (*small_run, *OVERFLOWS, f"data.root={poisoned}", "repro=strict")
    assert cli("train", *settings, "name=whole") == 0
    first = left_out("whole")[0]["step"]
    for step in (first + 1, 12):
        assert cli("train", *settings, "name=parts", f"train.max_steps={step}") == 0
    same_state("runs/whole", "runs/parts")
    assert left_out("whole") == left_out("parts")


def test_past_the_budget_the_run_stops(
    cli: Cli, small_run: tuple[str, ...], poisoned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*small_run, *OVERFLOWS, f"data.root={poisoned}", "train.skip_nonfinite=1")
    assert cli("train", *settings) == 1
    said = capsys.readouterr().err
    assert "after 1 steps that were left out" in said and "light/train02.mp4" in said
    assert "Traceback" not in said
    before = loaded("runs/small")["step"]
    assert before == 6, "the last checkpoint is the one of the first epoch"
    assert cli("train", *settings, "train.skip_nonfinite=2") == 0


def test_a_network_without_buffers_leaves_out_too(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*small_run, "model.build._target_=my_models.tiny_without_batch_norm",
                "optimizer=sgd", "optimizer.lr=1e38", "schedule.warmup=0")  # fmt: skip
    assert cli("train", *settings) == 1
    assert "after 3 steps that were left out" in capsys.readouterr().err


@pytest.mark.dist
def test_all_ranks_leave_out_alike(
    small_run: tuple[str, ...], poisoned: Path, tmp_path: Path
) -> None:
    settings = (*small_run, *OVERFLOWS, f"data.root={poisoned}", "name=two")
    done = torchrun(2, "train", *settings, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "runs/two/nonfinite.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 2 and all(len(row["videos"]) == 4 for row in rows)
    assert all(torch.isfinite(v).all() for v in loaded(tmp_path / "runs/two")["model"].values())
