"""`vidtrain prepare` from the command line: what is written, kept, refused and gone on with."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import noise, write_video
from encoding import encode
from PIL import Image

from vidtrain.data import preparing
from vidtrain.data.killable import in_processes
from vidtrain.data.preparing import Job, place, prepared_record, prepared_videos
from vidtrain.data.reading import open_video
from vidtrain.data.reencode import Settings
from vidtrain.data.sources.folder import folder as class_folder
from vidtrain.data.video import Video, VideoList, tar_member
from vidtrain.errors import InputError
from vidtrain.interrupt import Stop

Cli = Callable[..., int]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six training and two validation videos in class folders."""
    root = tmp_path / "data"
    for split, count in (("train", 6), ("val", 2)):
        for number in range(count):
            name = root / split / ("a", "b")[number % 2] / f"{split} é{number}.mp4"
            write_video(name, noise(number, 100, 20))
    return root


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*") if path.is_file()}  # fmt: skip


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def arguments(root: Path, *more: str) -> tuple[str, ...]:
    return ("prepare", "data=folder", f"data.root={root}", "preset=veryfast", "workers=2", *more)


def test_prepares_and_goes_on(
    cli: Cli, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, out = hashes(data), tmp_path / "out"
    assert cli(*arguments(data, f"output={out}", "short_side=32", "splits=[train]")) == 0
    header, *made = rows(out)
    assert header["settings"]["short_side"] == 32 and header["versions"]["x264"] != "unknown"
    assert sorted(row["source"] for row in made) == sorted(n for n in before if "train" in n)
    for row in made:
        target = out / row["target"]
        assert row["sha256"] == before[row["source"]] and row["target"] == row["source"]
        assert row["target_sha256"] == hashlib.sha256(target.read_bytes()).hexdigest()
        assert row["frames"] == 20 and row["seconds"] == 0.8
        assert row["size"] == (data / row["source"]).stat().st_size
        assert row["target_size"] == target.stat().st_size
    assert "6 videos, 120 frames" in capsys.readouterr().out

    times = {row["source"]: (out / row["target"]).stat().st_mtime_ns for row in made}
    names = list(times)
    os.utime(data / names[0], ns=(1, 1))  # copied: other time, same bytes
    write_video(data / names[1], noise(77, 50, 24))
    (out / names[2]).unlink()
    assert cli(*arguments(data, f"output={out}", "short_side=32")) == 0
    assert "3 of 8 videos are prepared already" in capsys.readouterr().err
    again = {row["source"]: row for row in rows(out)[1:]}
    assert len(again) == 8 and again[names[1]]["frames"] == 24
    changed = {n for n in times if (out / n).stat().st_mtime_ns != times[n]}
    assert changed == {names[1], names[2]}
    assert again[names[0]]["mtime_ns"] == 1
    assert {n: h for n, h in hashes(data).items() if n != names[1]} == {
        n: h for n, h in before.items() if n != names[1]
    }
    assert sorted(path.name for path in out.iterdir()) == [
        "failures.jsonl", "manifest.jsonl", "train", "val",
    ]  # fmt: skip


def test_prepared_videos_show_the_same_frames(cli: Cli, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli(*arguments(data, f"output={out}")) == 0
    listed = class_folder(str(data), split="train", class_names=None)
    new = prepared_videos(listed, str(data), str(out))
    assert [v.path for v in new.videos] == [
        v.path.replace(str(data), str(out)) for v in listed.videos
    ]
    assert [replace(v, path="") for v in new.videos] == [replace(v, path="") for v in listed.videos]
    for one, other in zip(listed.videos, new.videos, strict=True):
        with open_video(one) as a, open_video(other) as b:
            assert (a.num_frames, a.height, a.width) == (b.num_frames, b.height, b.width)
            difference = np.abs(a.read([0, 19]).astype(int) - b.read([0, 19]))
            assert difference.mean() < 12  # of noise, the hardest to encode
    record = prepared_record(str(out))
    assert record["settings"]["gop"] == 16
    # Looking at the originals again changes the manifest, not what was prepared.
    for path in data.rglob("*.mp4"):
        os.utime(path)
    assert cli(*arguments(data, f"output={out}")) == 0
    assert prepared_record(str(out)) == record


def test_what_is_missing_or_changed_is_never_mixed_in(cli: Cli, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    listed = class_folder(str(data), split="train", class_names=None)
    with pytest.raises(InputError, match=r"out holds no manifest.jsonl: run `vidtrain prepare`"):
        prepared_videos(listed, str(data), str(out))
    assert cli(*arguments(data, f"output={out}", "splits=[train]")) == 0
    others = class_folder(str(data), split="val", class_names=listed.class_names)
    with pytest.raises(InputError, match=r"2 of 2 videos .*not prepared.*`vidtrain prepare` with"):
        prepared_videos(others, str(data), str(out))
    first = Path(listed.videos[0].path)
    first.write_bytes(first.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"1 of 6 videos .*é0.mp4 \(changed since\)"):
        prepared_videos(listed, str(data), str(out))
    first.write_bytes(first.read_bytes()[:-1])
    assert cli(*arguments(data, f"output={out}")) == 0
    os.truncate(out / first.relative_to(data), 1000)
    with pytest.raises(InputError, match=r"\(prepared file lost or changed\)"):
        prepared_videos(listed, str(data), str(out))


def test_bad_files_are_listed_and_the_others_done(
    cli: Cli, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (data / "train" / "a" / "bad.mp4").write_bytes(b"no video")
    cut = data / "val" / "b" / "cut.mp4"
    write_video(cut, noise(5, 100, 30))
    os.truncate(cut, cut.stat().st_size * 2 // 3)
    assert cli(*arguments(data, f"output={out}")) == 1
    said = capsys.readouterr().err
    assert "2 of 10 videos could not be encoded" in said and "train/a/bad.mp4: " in said
    failures = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert {row["source"] for row in failures} == {"train/a/bad.mp4", "val/b/cut.mp4"}
    assert len(rows(out)) == 1 + 8 and not (out / "train" / "a" / "bad.mp4").exists()
    (data / "train" / "a" / "bad.mp4").unlink()
    write_video(cut, noise(5, 100, 30))
    assert cli(*arguments(data, f"output={out}")) == 0
    assert (out / "failures.jsonl").read_text() == ""


def test_refusals(cli: Cli, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(code: int, *more: str) -> str:
        assert cli(*arguments(data, *more)) == code
        return capsys.readouterr().err

    out = tmp_path / "out"
    for inside in (data, data / "new", tmp_path, data.parent / "data" / ".." / "data" / "x"):
        assert "lie in one another" in said(1, f"output={inside}")
    (tmp_path / "link").symlink_to(data)
    assert "lie in one another" in said(1, f"output={tmp_path / 'link' / 'new'}")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").touch()
    assert "was not made by prepare" in said(1, f"output={tmp_path / 'mine'}")
    assert "short_side=5 must be" in said(2, f"output={out}", "short_side=5")
    assert "did you mean medium" in said(2, f"output={out}", "preset=medum")
    assert "crf=99 must be from 0 to 51" in said(2, f"output={out}", "crf=99")
    assert "splits=['test']" in said(2, f"output={out}", "splits=[test]")
    assert "leave data.prepared out" in said(2, f"output={out}", f"data.prepared={out}")
    assert "output" in said(2)
    assert not out.exists()
    assert cli(*arguments(data, f"output={out}", "splits=[val]")) == 0
    capsys.readouterr()
    complaint = said(1, f"output={out}", "crf=30", "gop=8")
    assert "gop was 16, now 8" in complaint and "crf was 20, now 30" in complaint
    assert "new output folder" in complaint
    with open(out / "manifest.jsonl", "a") as file:
        file.write('{"source": "cut by a ki')  # a last line without end is what a kill leaves
    assert cli(*arguments(data, f"output={out}", "splits=[val]")) == 0
    assert len(rows(out)) == 3
    (out / "manifest.jsonl").write_text("rubbish\n" + (out / "manifest.jsonl").read_text())
    capsys.readouterr()
    assert "line 1 is damaged" in said(1, f"output={out}")


def test_folders_of_images(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    for number, image in enumerate(noise(0, 120, 9)):
        (root / "frames" / "one").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / "frames" / "one" / f"img_{number + 1:05d}.png")
    (root / "train.txt").write_text("frames/one 9 0\n")
    command = ("prepare", "data=list_file", f"data.root={root}", "splits=[train]",
               f"output={tmp_path / 'out'}")  # fmt: skip
    assert cli(*command) == 2
    assert "set data.frame_folder_fps" in capsys.readouterr().err
    assert cli(*command, "data.frame_folder_fps=10") == 0
    video = Video(str(root / "frames" / "one"), 0, "one", num_frames=9)
    listed = VideoList(videos=(video,), class_names=("x",))
    (new,) = prepared_videos(listed, str(root), str(tmp_path / "out")).videos
    with open_video(new) as reader:
        assert (reader.num_frames, reader.fps) == (9, 10.0)
    (root / "frames" / "one" / "img_00010.png").write_bytes(b"")
    with pytest.raises(InputError, match="changed since"):
        prepared_videos(listed, str(root), str(tmp_path / "out"))


def test_places() -> None:
    assert place("/data/a/b.avi", "/data") == ("a/b.avi", "a/b.avi")
    member = tar_member("/data/s/0.tar", 512, 99)
    assert place(member, "/data/") == ("s/0.tar@512+99", "s/0.tar/512+99")
    for path in ("/else/b.avi", "/database/b.avi"):
        name, target = place(path, "/data")
        assert name == path and target.startswith("_outside/") and target.endswith("/b.avi")
    assert place("/else/b.avi", "/data")[1] != place("/other/b.avi", "/data")[1]


def hang(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def test_jobs_that_hang_or_die() -> None:
    found = in_processes(hang, [0.1, 60.0, 0.2], workers=3, timeout_seconds=10, stop=Stop())
    assert dict(found) == {0.1: "slept", 0.2: "slept", 60.0: "took longer than timeout_seconds=10"}
    ((_, reason),) = in_processes(die, [9], workers=1, timeout_seconds=9, stop=Stop())
    assert reason == "the process that read it died (SIGKILL)"


def test_a_full_disk_is_said_and_nothing_half_is_left(data: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]
    if os.geteuid() != 0 or shutil.which("mount") is None or subprocess.call(mount) != 0:
        pytest.skip("mounting a small file system needs root")
    try:
        original = encode(tmp_path / "a.mp4", frames=200)
        settings = Settings(320, 16, 5, "veryfast", None)
        job = Job(str(original), "a.mp4", "a.mp4", str(small / "x.mp4"), str(small), settings, None)
        result = preparing.prepare_one(job)
        assert isinstance(result, OSError) and result.strerror == "No space left on device"
    finally:
        subprocess.check_call(["umount", str(small)])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_stopped_in_the_middle_it_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    for index in range(8):
        path = root / "train" / "ab"[index % 2] / f"{index}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        encode(path, frames=600, options={"preset": "ultrafast"})
    before = hashes(root)
    command = [sys.executable, "-m", "vidtrain", *arguments(root, f"output={out}", "splits=[train]",
               "preset=slow")]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=tmp_path, start_new_session=True, stderr=subprocess.PIPE
    )
    while not (out / "manifest.jsonl").exists() or len(rows(out)) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    said = process.communicate(timeout=60)[1].decode()
    if number == signal.SIGINT:
        assert process.returncode == 130 and "goes on from there" in said
        assert not (out / ".unfinished").exists()
    time.sleep(1.0)  # children of a killed process end by themselves
    done = {row["source"]: (out / row["source"]).stat().st_mtime_ns for row in rows(out)[1:]}
    assert 2 <= len(done) < 8
    kept = hashes(out)
    time.sleep(0.5)
    assert hashes(out) == kept  # nobody is writing any more
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert len(rows(out)) == 9 and hashes(root) == before
    assert all((out / name).stat().st_mtime_ns == when for name, when in done.items())
    for row in rows(out)[1:]:
        assert hashes(out)[row["target"]] == row["target_sha256"] and row["frames"] == 600
