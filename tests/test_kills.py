"""kill -9 at any moment, then the same command: the same weights and figures, to the bit.

Everything that could go wrong is on: mixup and cutmix, dropout, RandAugment, averaged weights,
accumulation, loader processes, a checkpoint after each step, written in the background.
"""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import loaded, same_state

SETTINGS = (
    "mix=mixup_cutmix", "mix.mode=sample", "augment=randaugment", "average=ema",
    "average.decay=0.9", "train.accumulate=2", "train.clip_grad_norm=1.0",
    "task.label_smoothing=0.1", "model.build.dropout=0.3", "data.views_per_decode=2",
    "data.num_workers=1", "train.epochs=4", "save.every='1 step'", "validate.every='2 steps'",
    "validate.num_clips=2", "train.batch_size=8",
)  # fmt: skip
Moment = Callable[[subprocess.Popen, Path], bool]


def in_worker_start(process: subprocess.Popen, run: Path) -> bool:
    """A loader process has just been made."""
    return bool(psutil.Process(process.pid).children())


def in_save(process: subprocess.Popen, run: Path) -> bool:
    """A checkpoint is half written."""
    return any((run / "checkpoints").glob(".step_*.tmp"))


def in_validation(process: subprocess.Popen, run: Path) -> bool:
    """The loader processes of validation are there besides those of training."""
    return len(psutil.Process(process.pid).children(recursive=True)) >= 4


def in_training(process: subprocess.Popen, run: Path) -> bool:
    """Steps have been taken."""
    metrics = run / "metrics.jsonl"
    return metrics.exists() and metrics.stat().st_size > 0


def kill_at(moment: Moment, delay: float, command: list[str], run: Path) -> bool:
    """Starts the command and kills it some seconds after a moment; returns whether it was."""
    family: list[psutil.Process] = []
    # Not a pipe: the loader processes would hold it open.
    with (
        open(run.parent.parent / "said.txt", "w") as said,
        subprocess.Popen(command, cwd=run.parent.parent, stderr=said) as process,
    ):
        try:
            while process.poll() is None and not moment(process, run):
                time.sleep(0.001)
            time.sleep(delay)
            family = psutil.Process(process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            pass
        os.kill(process.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive, "loader processes outlive their training"
    assert process.returncode in (0, -signal.SIGKILL), (run.parent.parent / "said.txt").read_text()
    return process.returncode != 0


def train_whole(command: Callable[[str], list[str]], folder: Path) -> Path:
    done = subprocess.run(command("whole"), cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "runs/whole"


def file_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_kills(small_run: tuple[str, ...], folder: Path, kills: list[tuple[Moment, float]]) -> int:
    """Kills a run again and again, lets it end, and compares; returns how often it was killed."""

    def command(name: str) -> list[str]:
        return [sys.executable, "-m", "vidtrain", "train", *small_run, *SETTINGS, f"name={name}"]

    whole, run = train_whole(command, folder), folder / "runs/killed"
    killed = sum(kill_at(moment, delay, command("killed"), run) for moment, delay in kills)
    done = subprocess.run(
        command("killed"), cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    same_state(whole, run)
    assert loaded(whole)["progress"] == loaded(run)["progress"]
    assert file_hash(whole / "metrics.jsonl") == file_hash(run / "metrics.jsonl")
    for name in ("last", "best"):
        assert (whole / "checkpoints" / name).resolve().name == (
            run / "checkpoints" / name
        ).resolve().name
    left = {path.name for path in (run / "checkpoints").iterdir()}
    assert left == {path.name for path in (whole / "checkpoints").iterdir()}
    return killed


def test_kills_in_a_save_and_in_a_worker_start(small_run: tuple[str, ...], tmp_path: Path) -> None:
    assert check_kills(small_run, tmp_path, [(in_save, 0.0), (in_worker_start, 0.0)]) == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_twenty_kills_at_random(small_run: tuple[str, ...], tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    moments: list[tuple[Moment, float]] = []
    for _ in range(4):
        moments += [(in_worker_start, rng.uniform(0, 0.5)), (in_save, 0.0),
                    (in_save, rng.uniform(0, 0.2)), (in_validation, rng.uniform(0, 0.05)),
                    (in_training, rng.uniform(0, 0.3))]  # fmt: skip
    assert check_kills(small_run, tmp_path, moments) == 20
