"""`vidtrain index` from the command line, on files of both routes and on bad ones."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import noise, write_video
from encoding import encode

from vidtrain.data import table_store
from vidtrain.data.decode_pyav import PyavReader
from vidtrain.data.index_store import default_path

Cli = Callable[..., int]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Class folders: five MP4 files and an AVI file to train on, two MP4 files to validate on."""
    monkeypatch.setenv("VIDTRAIN_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "data"
    for number in range(5):
        write_video(
            root / "train" / "ab"[number % 2] / f"{number}.mp4", noise(number, 99, 10 + number)
        )
    encode(root / "train" / "a" / "old.avi", codec="mpeg4", frames=31)
    for name in "ab":
        write_video(root / "val" / name / "v.mp4", noise(9, 99, 8))
    return root


def keys(file: Path) -> list[str]:
    with sqlite3.connect(file) as db:
        found = [os.fsdecode(key) for (key,) in db.execute("SELECT key FROM entries ORDER BY key")]
    db.close()
    return found


def test_fills_the_index_and_tells_what_is_there(
    cli: Cli, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("index", "data=folder", f"data.root={data}", "workers=2") == 0
    said = capsys.readouterr().out
    assert "8 files, 107 frames in" in said
    assert "fast" in said and "its container is avi" in said
    file = default_path("folder", str(data))
    assert f"{file}: " in said and file.stat().st_size > 0
    kept = keys(file)
    assert len(kept) == 8 + 1  # the AVI file's frames have been counted by decoding it
    assert f"frames:{data / 'train' / 'a' / 'old.avi'}" in kept

    # A second time nothing is read: every file's content is gone, its size and time are not.
    for path in data.rglob("*.*"):
        before = path.stat()
        path.write_bytes(bytes(before.st_size))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert cli("index", "data=folder", f"data.root={data}", "workers=1") == 0
    assert "8 files, 107 frames in" in capsys.readouterr().out
    assert cli("index", "data=folder", f"data.root={data}", "splits=[val]") == 0
    assert "2 files, 16 frames in" in capsys.readouterr().out


def test_a_reader_uses_what_was_kept(
    cli: Cli, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "elsewhere" / "index.sqlite"
    assert cli("index", "data=folder", f"data.root={data}", f"data.index={file}") == 0
    table_store.use_index(str(file))
    try:
        path = data / "train" / "a" / "old.avi"
        reader = PyavReader(str(path))
        assert reader.num_frames == 31 and reader.read([30]).shape == (1, 48, 64, 3)
        reader.close()
    finally:
        table_store.use_index(None)


def test_unreadable_files_are_named_and_the_others_read(
    cli: Cli, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "train" / "a" / "text.mp4").write_text("no video")
    (data / "val" / "b" / "empty.mp4").touch()
    assert cli("index", "data=folder", f"data.root={data}") == 1
    said = capsys.readouterr()
    assert "2 of 10 files cannot be read" in said.err
    assert "text.mp4" in said.err and "empty.mp4" in said.err
    assert "8 files, 107 frames in" in said.out and "cannot be read" in said.out
    assert len(keys(default_path("folder", str(data)))) == 9


def test_wrong_settings(
    cli: Cli, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("index", "data=folder", f"data.root={data}", "splits=[test]") == 2
    assert cli("index", "data=folder", f"data.root={data}", "workers=0") == 2
    assert "workers=0 must be at least 1" in capsys.readouterr().err
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "index.sqlite"
    assert cli("index", "data=folder", f"data.root={data}", f"data.index={place}") == 1
    assert f"{place} could not be written" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_stopped_in_the_middle_it_goes_on(
    data: Path, tmp_path: Path, number: signal.Signals
) -> None:
    for index in range(200):
        os.link(data / "train" / "a" / "old.avi", data / "train" / "b" / f"{index}.avi")
    file = tmp_path / "index.sqlite"
    command = [sys.executable, "-m", "vidtrain", "index", "data=folder", f"data.root={data}",
               f"data.index={file}", "workers=2"]  # fmt: skip
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    while not file.exists() or file.stat().st_size < 20_000:
        assert process.poll() is None
        time.sleep(0.01)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    said = process.communicate(timeout=60)[1].decode()
    if number == signal.SIGINT:
        assert process.returncode == 130 and "goes on from there" in said
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "208 files" in finished.stdout
    assert len(keys(file)) == 208 + 201
