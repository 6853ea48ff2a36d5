"""`vidtrain check` under fire: hanging and dying decoders, kills, too little memory, real files."""

import multiprocessing
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import av
import psutil
import pytest
from conftest import REPO, noise, write_video
from encoding import encode

from vidtrain.data.checking_pool import check_files

SHARED = REPO.parent / "shared"
GIB = 2**30


@pytest.fixture
def long_video(tmp_path: Path) -> Path:
    """A file of a few kB a second that takes seconds to decode."""
    write_video(tmp_path / "short.mp4", noise(0, 100, 60))
    path = tmp_path / "long.mp4"
    with av.open(str(tmp_path / "short.mp4")) as old, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        packets = [p for p in old.demux(video=0) if p.size]
        length, place = sum(p.duration or 0 for p in packets), 0
        template = [(bytes(p), p.pts or 0, p.dts or 0, p.is_keyframe, p.time_base) for p in packets]
        for _ in range(2000):
            for content, pts, dts, key, time_base in template:
                packet = av.Packet(content)
                packet.stream, packet.pts, packet.dts = stream, pts + place, dts + place
                packet.time_base, packet.is_keyframe = time_base, key
                new.mux(packet)
            place += length
    return path


def reading(path: Path) -> list[psutil.Process]:
    """Processes that have the file open, which are the pool's."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(file.path == str(path) for file in process.open_files()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def pool(paths: list[Path], **settings: Any) -> Iterator[dict[str, Any] | None]:
    jobs = [(str(path), None) for path in paths]
    return check_files(jobs, **({"workers": 2, "timeout": 60.0, "memory_bytes": GIB} | settings))


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL, signal.SIGSEGV])
def test_a_child_that_hangs_or_dies_is_replaced(
    tmp_path: Path, long_video: Path, fault: signal.Signals
) -> None:
    others = [encode(tmp_path / f"{number}.mp4", frames=3) for number in range(4)]
    before = set(multiprocessing.active_children())  # of other tests
    hit: list[psutil.Process] = []
    rows = {}
    for row in pool([long_video, *others], timeout=10.0 if fault == signal.SIGSTOP else 120.0):
        if row is not None:
            rows[row["path"]] = row
        elif not hit and (hit := reading(long_video)):
            hit[0].send_signal(fault)
    assert hit and not hit[0].is_running()
    bad = rows.pop(str(long_video))
    expected = ("hang", "timeout_seconds=10") if fault == signal.SIGSTOP else ("crash", fault.name)
    assert bad["status"] == "bad" and bad["reason"] == expected[0]
    assert expected[1] in bad["detail"] and bad["size"] == long_video.stat().st_size
    assert len(rows) == 4 and {row["status"] for row in rows.values()} == {"ok"}
    assert set(multiprocessing.active_children()) <= before


def test_a_file_that_takes_too_long(
    tmp_path: Path, long_video: Path, cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    encode(tmp_path / "good.mp4", frames=3)
    (tmp_path / "list.txt").write_text("long.mp4 0\ngood.mp4 0\n")
    command = ("check", "data=list_file", f"data.root={tmp_path}", "data.train=list.txt",
               "splits=[train]", "output=out")  # fmt: skip
    assert cli(*command, "timeout_seconds=0.5") == 1
    assert "long.mp4: hang" in capsys.readouterr().err
    assert cli(*command, "timeout_seconds=0.4") == 1  # not tried again
    assert "2 of 2 files are as they were" in capsys.readouterr().err
    assert cli(*command, "timeout_seconds=240") == 0
    assert "1 of 2 files are as they were" in capsys.readouterr().err


def test_a_file_that_takes_too_much_memory(tmp_path: Path) -> None:
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 8192, 4096, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(8192, 4096, "yuv420p")))
        container.mux(stream.encode())
    good = encode(tmp_path / "good.mp4", frames=3)
    rows = [row for row in pool([path, good], workers=1, memory_bytes=100 * 2**20) if row]
    assert [row["reason"] for row in rows] == ["memory", None]
    (row,) = [row for row in pool([path], memory_bytes=2 * GIB) if row]
    assert row["status"] == "ok" and row["decoded_frames"] == 3


def test_closing_the_pool_ends_its_processes(tmp_path: Path, long_video: Path) -> None:
    before = set(multiprocessing.active_children())  # of other tests
    with closing(pool([long_video] * 2)) as rows:  # type: ignore[type-var]
        for _ in rows:
            if reading(long_video):
                break
        assert set(multiprocessing.active_children()) > before
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_check_goes_on(tmp_path: Path, long_video: Path, number: signal.Signals) -> None:
    names = [f"{n}.mp4" for n in range(8)]
    for name in names:
        encode(tmp_path / name, frames=3)
    (tmp_path / "list.txt").write_text("".join(f"{n} 0\n" for n in [*names, "long.mp4"]))
    command = [sys.executable, "-m", "vidtrain", "check", "data=list_file", "splits=[train]",
               f"data.root={tmp_path}", "data.train=list.txt", "output=out",
               "workers=1"]  # fmt: skip
    results = tmp_path / "out" / "results.jsonl"
    first = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    for _ in range(600):
        time.sleep(0.1)
        if results.exists() and results.read_text().count("\n") == len(names):
            break
    children = psutil.Process(first.pid).children(recursive=True)
    assert children
    first.send_signal(number)
    _, said = first.communicate(timeout=30)
    assert first.returncode == (-9 if number == signal.SIGKILL else 128 + number), said
    if number != signal.SIGKILL:
        assert "stopped after 8 of 9 files; the same command goes on" in said
        assert "Traceback" not in said
    psutil.wait_procs(children, timeout=30)
    assert not [child for child in children if child.is_running()]
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    assert "8 of 9 files are as they were" in second.stderr
    assert results.read_text().count("\n") == 9


@pytest.mark.slow
def test_training_with_quarantine(
    tmp_path: Path, class_folders: Path, small_run: tuple[str, ...], cli: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    root = tmp_path / "data"
    shutil.copytree(class_folders, root)
    victim = next((root / "train").glob("*/*.mp4"))
    victim.write_bytes(victim.read_bytes()[:300])
    settings = ("data=folder", f"data.root={root}")
    run = (*small_run, *settings[1:], "train.epochs=1")
    assert cli("train", *run) == 1
    assert victim.name in capsys.readouterr().err
    assert cli("check", *settings, "output=out") == 1
    assert victim.name in capsys.readouterr().err
    assert cli("train", *run, "data.quarantine=out/quarantine.jsonl") == 0
    assert "leaves out 1 videos" in capsys.readouterr().err


@pytest.mark.slow
def test_corpus(tmp_path: Path) -> None:
    """Every malformed file that a script makes gets its reason, every unusual one passes."""
    script = SHARED / "tools" / "make_bad_videos.sh"
    if not script.exists() or shutil.which("ffmpeg") is None:
        pytest.skip("the script or ffmpeg is not here")
    subprocess.run(["bash", script, tmp_path], capture_output=True, check=False)
    expected = {
        "zero.mp4": "unreadable", "cut_moov_missing.mp4": "unreadable", "text.mp4": "unreadable",
        "audio_only.mp4": "unreadable", "cover_art.m4a": "unreadable", "fifo.mp4": "unreadable",
        "lie_count.mp4": "unreadable", "cut_mid_faststart.mp4": "cut", "cut_mid.mkv": "cut",
        "bitrot.mp4": "damaged", "reschange.ts": "damaged", "bomb.mp4": "too_large",
        "frames_gap": "folder", "isdir.mp4": "folder", "neg.mkv": "times", "lie_size.mp4": "header",
    }  # fmt: skip
    files = [path for path in tmp_path.iterdir() if path.suffix not in (".png", ".py")]
    assert len(files) >= 36
    found = {Path(row["path"]).name: row["reason"] for row in pool(files, timeout=300.0) if row}
    assert found == {path.name: expected.get(path.name) for path in files}


@pytest.mark.slow
def test_real_clips() -> None:
    """Real files are good, but for one that is known to be damaged."""
    if not (SHARED / "data").exists():
        pytest.skip("the real clips are not here")
    kinds = {".mp4", ".avi", ".mkv", ".mov", ".mpg", ".webm", ".gif"}
    files = [path for folder in ("clips", "surv_fight") for path in (SHARED / "data" / folder)
             .rglob("*") if path.suffix in kinds]  # fmt: skip
    assert len(files) > 300
    rows = [row for row in pool(files) if row]
    flagged = {Path(row["path"]).name: row["reason"] for row in rows if row["status"] != "ok"}
    assert len(rows) == len(files) and flagged == {"corrupted.mp4": "damaged"}
