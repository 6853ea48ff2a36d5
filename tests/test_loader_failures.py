"""Loader processes that are killed, that hang, and machines that offer too little."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import REPO
from test_loading import clips, plan

from vidtrain.data import workers
from vidtrain.data.loading import Reading, train_batches
from vidtrain.errors import InputError


def when_busy(activity_rows: torch.Tensor, send: Callable[[int], None]) -> threading.Thread:
    """Starts a thread that signals the first loader process caught at a video.

    The process is stopped before the second look: what it is at then cannot change any more.
    """

    def at_a_video() -> list[int]:
        return [pid for pid, video, _ in activity_rows.tolist() if video >= 0]

    def wait() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for pid in at_a_video():
                os.kill(pid, signal.SIGSTOP)
                if pid in at_a_video():
                    send(pid)
                    return
                os.kill(pid, signal.SIGCONT)
            time.sleep(0.0005)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("signum", "message"),
    [
        (signal.SIGKILL, r"loader process \d+ (exited unexpectedly|is killed)"),
        (signal.SIGSTOP, r"no batch came for data\.timeout_seconds=4 s; loader processes were at"),
    ],
)
def test_a_process_that_dies_or_hangs_is_named_with_its_video(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, message: str
) -> None:
    made: list[workers.Activity] = []
    begin = workers.Activity.__init__

    def remembered(self: workers.Activity, count: int) -> None:
        begin(self, count)
        made.append(self)

    monkeypatch.setattr(workers.Activity, "__init__", remembered)
    hit: list[int] = []

    def send(pid: int) -> None:
        os.kill(pid, signum)
        hit.append(pid)

    samples = clips(class_folders, reading=Reading(num_workers=1, timeout_seconds=4))
    # So many epochs that the process is met at a video however rarely this one gets to look.
    batches = train_batches(samples, plan(epochs=100_000), rank=0, start_step=0)
    next(batches)
    when_busy(made[0].rows, send)
    with pytest.raises(InputError, match=message) as caught:
        for _ in batches:
            pass
    assert len(hit) == 1
    assert "Traceback" not in str(caught.value)
    if signum == signal.SIGSTOP:
        assert "train" in str(caught.value) and ".mp4" in str(caught.value)
        deadline = time.monotonic() + 10
        while workers._runs(hit[0]) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not workers._runs(hit[0]), "a hanging process was left behind"


def test_too_little_shared_memory_is_said_before_the_start(
    class_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(workers.SHARED_MEMORY).free
    with pytest.raises(InputError, match=r"need \d+ MiB of shared memory.*--shm-size"):
        workers.check_machine(2, free + 2**30)
    workers.check_machine(2, 2**20)


def test_a_full_shared_memory_is_named(class_folders: Path, tmp_path: Path) -> None:
    """In a mount namespace of its own, where /dev/shm is 1 MiB."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from test_loading import clips, plan\n"
        "from vidtrain.data.loading import train_batches\n"
        "list(train_batches(clips(Path(sys.argv[1]), 1, crop_size=512, short_side=(512, 512)),\n"
        "     plan(), rank=0, start_step=0))\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    inside = f"mount -t tmpfs -o size=1m none /dev/shm && exec {sys.executable} {script} "
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{inside} {class_folders} {REPO / 'tests'}"],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("needs the right to make a mount namespace")
    assert done.returncode == 1
    assert "of shared memory" in done.stderr.splitlines()[-1]
    assert "--shm-size" in done.stderr.splitlines()[-1]


def test_the_limit_on_open_files_is_raised() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit("
        "resource.RLIMIT_NOFILE)[1]))\n"
        "from vidtrain.data.workers import check_machine\n"
        "check_machine(1, 0); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert int(done.stdout) == (65536 if hard == resource.RLIM_INFINITY else min(hard, 65536))
    assert soft == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_more_processes_than_cores_are_remarked(capsys: pytest.CaptureFixture[str]) -> None:
    workers.check_machine(1000, 0)
    assert "data.num_workers=1000" in capsys.readouterr().err
    workers.check_machine(1, 0)
    assert not capsys.readouterr().err
