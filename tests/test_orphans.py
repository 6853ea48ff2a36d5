"""Processes that lose the one they belong to end, and one that loses its own soon says so."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from vidtrain.data.killable import in_processes
from vidtrain.interrupt import Stop

SHARED_MEMORY = Path("/dev/shm")
LONG = ("data.num_workers=2", "train.epochs=5000", "validate.every='5 steps'")


def until(what: Callable[[], bool], seconds: float) -> bool:
    """Waits until something is so; returns whether it came to be."""
    deadline = time.monotonic() + seconds
    while not (found := what()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def started(small_run: tuple[str, ...], folder: Path, said: Path) -> subprocess.Popen:
    """Starts a training, and waits until it has validated, so that all its processes are there."""
    command = [sys.executable, "-m", "vidtrain", "train", *small_run, *LONG]
    process = subprocess.Popen(command, cwd=folder, stderr=open(said, "w"))  # noqa: SIM115
    metrics = folder / "runs/small/metrics.jsonl"
    assert until(lambda: metrics.exists() and '"val"' in metrics.read_text(), 90), said.read_text()
    return process


def family(process: subprocess.Popen) -> list[psutil.Process]:
    """Returns the loader processes, of training and of validation, and their servers."""
    found = psutil.Process(process.pid).children(recursive=True)
    assert len(found) >= 5, [" ".join(each.cmdline()) for each in found]
    return found


def segments() -> set[str]:
    """Names in shared memory of PyTorch's own."""
    return {path.name for path in SHARED_MEMORY.glob("torch_*")}


def test_nothing_is_left_of_a_training_that_was_killed(
    small_run: tuple[str, ...], tmp_path: Path
) -> None:
    before = segments()
    process = started(small_run, tmp_path, tmp_path / "said.txt")
    rest = family(process)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(rest, timeout=20)
    assert not alive, [" ".join(each.cmdline()) for each in alive]
    mine = {f"torch_{each}" for each in [process.pid, *(child.pid for child in rest)]}
    left = {name for name in segments() - before if name.rpartition("_")[0] in mine}
    assert not left


@pytest.mark.parametrize("whose", ["loader", "server"])
def test_a_loader_process_that_dies_ends_the_training_within_seconds(
    small_run: tuple[str, ...], tmp_path: Path, whose: str
) -> None:
    """It does not wait for data.timeout_seconds, which is 300 s here."""
    process = started(small_run, tmp_path, tmp_path / "said.txt")
    rest = family(process)
    servers = [each for each in rest if each.ppid() == process.pid and each.children()]
    os.kill((servers[0].children()[0] if whose == "loader" else servers[0]).pid, signal.SIGKILL)
    began = time.monotonic()
    assert process.wait(timeout=60) == 1
    assert time.monotonic() - began < 30
    said = (tmp_path / "said.txt").read_text()
    assert "loader process" in said and "Traceback" not in said
    _, alive = psutil.wait_procs(rest, timeout=20)
    assert not alive, [" ".join(each.cmdline()) for each in alive]


def test_processes_that_are_done_leave_no_open_files_behind() -> None:
    jobs = in_processes(time.sleep, [0.0] * 12, workers=1, stop=Stop())
    counts = [len(list(Path("/proc/self/fd").iterdir())) for _ in jobs]
    assert len(counts) == 12 and counts[-1] <= counts[1]
