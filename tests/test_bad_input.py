"""What a run does with bad data, full disks and wild learning rates: say so, and lose nothing."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import loaded, noise, vidtrain, write_video
from test_checkpoint import full_disk

Cli = Callable[..., int]


def test_data_with_one_class_is_refused(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        write_video(Path(f"lonely/{split}/one/a.mp4"), noise(0, 90))
    assert cli("train", *small_run, "data.root=lonely", "train.batch_size=1") == 1
    assert "has one class only (one)" in capsys.readouterr().err


def test_changed_videos_are_refused(
    cli: Cli, small_run: tuple[str, ...], class_folders: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.copytree(class_folders, tmp_path / "moved")
    moved = (*small_run, "data.root=moved", "train.max_steps=1")
    assert cli("train", *small_run, "train.max_steps=1") == 0
    assert cli("train", *moved) == 0, "the same files at another place are the same data"
    next((tmp_path / "moved" / "train" / "dark").iterdir()).unlink()
    assert cli("train", *moved) == 2
    assert "the list of train videos (24 -> 23 videos)" in capsys.readouterr().err


def test_a_full_disk_loses_no_earlier_checkpoint(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", *small_run, "train.max_steps=2") == 0
    with full_disk(20_000):
        assert cli("train", *small_run, "train.max_steps=4") == 1
    assert "cannot write" in (said := capsys.readouterr().err) and "Traceback" not in said
    assert loaded("runs/small")["step"] == 2


def test_an_unreadable_video_stops_the_run_with_its_name(
    cli: Cli, small_run: tuple[str, ...], class_folders: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root = shutil.copytree(class_folders, tmp_path / "data")
    victim = root / "train" / "grey" / "train01.mp4"
    victim.write_bytes(b"")
    for workers in (0, 2):
        assert cli("train", *small_run, f"data.root={root}", f"data.num_workers={workers}") == 1
        error = capsys.readouterr().err
        assert "train01.mp4" in error and "Traceback" not in error
    shutil.copy(class_folders / "train" / "grey" / "train01.mp4", victim)
    assert cli("train", *small_run, f"data.root={root}", "train.max_steps=1") == 0
    (root / "val" / "light" / "val02.mp4").write_text("not a video")
    assert cli("eval", "run=runs/small", f"data.root={root}") == 1
    assert "val02.mp4" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_early_and_clearly(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*small_run, "optimizer=sgd", "optimizer.lr=1e30", "schedule.warmup=0")
    assert cli("train", *settings) == 1
    error = capsys.readouterr().err
    assert "loss is nan" in error and "optimizer.lr" in error and ".mp4" in error
    assert "Traceback" not in error


def test_an_unwritable_run_folder(small_run: tuple[str, ...], tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere; the case of a file in the way is tested elsewhere")
    (tmp_path / "runs").mkdir(mode=0o500)
    done = vidtrain("train", *small_run, cwd=tmp_path)
    assert done.returncode == 1 and "cannot make the run folder" in done.stderr
