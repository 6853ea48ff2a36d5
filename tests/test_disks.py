"""Real disks that are full or may only be read: what was saved before stays as it is."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import loaded, same_state

Cli = Callable[..., int]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, mode: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{mode}", str(folder)], check=True)


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_takes_no_more_loses_nothing(
    cli: Cli, small_run: tuple[str, ...], disk: Path, trouble: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    settings = (*small_run, "average=ema", "save.every='1 step'", "log.to=[]")
    assert cli("train", *settings, "name=whole", "train.max_steps=6") == 0
    here = (*settings, f"runs={disk}")
    assert cli("train", *here, "train.max_steps=2") == 0
    filler = disk / "filler"
    if trouble == "full":
        free = os.statvfs(disk)
        filler.write_bytes(bytes(free.f_bavail * free.f_bsize - 512 * 1024))
    else:
        remount(disk, "ro")
    try:
        assert cli("train", *here, "train.max_steps=6") == 1
    finally:
        remount(disk, "rw")
    said = capsys.readouterr().err
    assert "Traceback" not in said, said
    assert ("MB free" if trouble == "full" else "Read-only file system") in said
    assert loaded(disk / "small")["step"] == 2
    filler.unlink(missing_ok=True)
    assert cli("train", *here, "train.max_steps=6") == 0
    same_state("runs/whole", disk / "small")
