"""Real small videos and the real command line, shared by the tests."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vidtrain import interrupt
from vidtrain.data.sources.motion_clips import encode_h264

TESTS = Path(__file__).parent
REPO = TESTS.parent
TINY = ("--config-dir", str(TESTS / "my_conf"), "model=tiny")
CLASSES = ("dark", "grey", "light")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script's background job: tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
if torch.cuda.is_available():  # read once, by the first test that uses the GPU
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def write_video(path: Path, frames: np.ndarray, *, fps: int = 25) -> None:
    """Writes (T, H, W, 3) uint8 frames as H.264 mp4; the same frames give the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_h264(frames, rate=Fraction(fps), group_size=12))


def noise(seed: int, level: int, frames: int = 16) -> np.ndarray:
    """Returns (T, 40, 64, 3) noise around a grey level."""
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(level, 30, (frames, 40, 64, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="session")
def class_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder data set: 3 classes, 24 training and 13 validation videos of varied length."""
    root = tmp_path_factory.mktemp("class_folders")
    for split, count in (("train", 24), ("val", 13)):
        for index in range(count):
            label = index % 3
            pixels = noise(index + 100 * (split == "val"), 50 + 60 * label, 12 + index % 7)
            write_video(root / split / CLASSES[label] / f"{split}{index:02d}.mp4", pixels)
    return root


@pytest.fixture(autouse=True)
def user_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What a user with an own model sets; one thread, so that bits do not depend on the machine."""
    monkeypatch.setenv("VIDTRAIN_ALLOW_TARGETS", "my_models")
    given = filter(None, [os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(REPO), *given]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # Packet indexes and embedded data of tests stay among the tests.
    monkeypatch.setenv("VIDTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.syspath_prepend(str(TESTS))


@pytest.fixture(autouse=True)
def signals_stay() -> Iterator[None]:
    """No call leaves a handler behind: processes that later tests fork could not be ended."""
    before = [signal.getsignal(number) for number in interrupt.SIGNALS]
    yield
    assert [signal.getsignal(number) for number in interrupt.SIGNALS] == before


def vidtrain(
    *args: str, cwd: Path, timeout: float = 240, prefix: tuple[str, ...] = ("-m", "vidtrain")
) -> subprocess.CompletedProcess[str]:
    """Runs the real command line in a process of its own."""
    return subprocess.run(
        [sys.executable, *prefix, *args],
        cwd=cwd, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def torchrun(
    ranks: int, *args: str, cwd: Path, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Runs the real command line in several processes of one machine."""
    if 0 < torch.cuda.device_count() < ranks and not any(a.startswith("device=") for a in args):
        args = (*args, "device=cpu")
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
    return vidtrain(*args, cwd=cwd, timeout=timeout, prefix=(*launcher, "-m", "vidtrain"))


def loaded(run: str | Path, name: str = "last") -> dict[str, Any]:
    """Returns a checkpoint of a run: model, average (or None), step, and the training state."""
    from vidtrain.checkpoints import checkpoint

    folder = Path(run) / "checkpoints" / name
    manifest = checkpoint.verify(folder)
    return {
        **checkpoint.state(folder),
        "step": manifest["step"], "manifest": manifest,
        "model": checkpoint.weights(folder, averaged=False),
        "average": checkpoint.weights(folder, averaged=True)
        if checkpoint.has_average(folder) else None,
    }  # fmt: skip


def same_state(first: str | Path, second: str | Path) -> None:
    """Asserts that the last checkpoints of two runs hold the same bits."""
    one, two = loaded(first), loaded(second)
    for part in ("model", "average"):
        assert (one[part] is None) == (two[part] is None)
        for key, value in (one[part] or {}).items():
            assert torch.equal(value, two[part][key]), f"{part}.{key}"
    for index, state in one["optimizer"]["state"].items():
        for key, value in state.items():
            assert torch.equal(value, two["optimizer"]["state"][index][key]), f"{index}.{key}"
    for part in ("step", "scaler", "nonfinite", "bad_videos"):
        assert one[part] == two[part], part


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs the command line in this process, from an empty folder; returns its exit code."""
    from vidtrain.cli import run

    monkeypatch.chdir(tmp_path)
    return lambda *args: run(list(args))


@pytest.fixture
def small_run(class_folders: Path) -> tuple[str, ...]:
    """Arguments of a training that takes a second per epoch."""
    return (
        *TINY, "data=folder", f"data.root={class_folders}", "data.num_workers=0", "num_threads=1",
        "train.batch_size=4", "train.epochs=2", "eval.batch_size=4", "train.log_every_steps=1",
        "optimizer.lr=0.001", "name=small",
    )  # fmt: skip
