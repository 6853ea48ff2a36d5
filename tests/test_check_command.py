"""`vidtrain check`: what it prints and writes, what is not done twice, what training skips."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import noise, write_video
from encoding import encode

from vidtrain.data.checking import BAD
from vidtrain.data.quarantine import leave_out, read_quarantine, stamp
from vidtrain.data.video import Video, VideoList
from vidtrain.errors import InputError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six good videos and two bad ones, with names that are hard to write."""
    for number in range(6):
        write_video(tmp_path / "data" / f"good {number}.mp4", noise(number, 100))
    spoilt = encode(tmp_path / "data" / "cut ü,=[1].mkv")
    os.truncate(spoilt, spoilt.stat().st_size // 2)
    (tmp_path / "data" / "empty.mp4").touch()
    names = sorted(os.listdir(tmp_path / "data"))
    (tmp_path / "data" / "list.txt").write_text("".join(f"{name} 0\n" for name in names))
    return tmp_path / "data"


def arguments(data: Path, *more: str) -> tuple[str, ...]:
    return ("check", "data=list_file", f"data.root={data}", "data.train=list.txt",
            "splits=[train]", "workers=2", "output=out", *more)  # fmt: skip


def results(folder: str = "out") -> dict[str, dict[str, Any]]:
    lines = Path(folder, "results.jsonl").read_text().splitlines()
    return {row["id"]: row for row in map(json.loads, lines)}


def test_what_is_written_and_what_training_leaves_out(
    data: Path, cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*arguments(data)) == 1
    said = capsys.readouterr()
    assert "2 of 8 files are bad" in said.err and "cut ü,=[1].mkv: cut" in said.err
    assert "6 ok, 0 to look at, 2 bad" in said.out and BAD["cut"].split()[0] in said.out
    rows = results()
    assert len(rows) == 8 and {row["status"] for row in rows.values()} == {"ok", "bad"}
    summary = json.loads(Path("out/summary.json").read_text())
    assert summary["statuses"] == {"ok": 6, "warn": 0, "bad": 2}
    assert summary["reasons"]["cut"]["examples"][0]["id"] == "cut ü,=[1].mkv"
    entries = read_quarantine("out/quarantine.jsonl")
    assert {Path(path).name for path in entries} == {"cut ü,=[1].mkv", "empty.mp4"}
    listed = VideoList(tuple(Video(str(data / name), 0, name) for name in sorted(rows)), ("0",))
    kept, left_out = leave_out(listed, "out/quarantine.jsonl")
    assert left_out == ["cut ü,=[1].mkv", "empty.mp4"] and len(kept.videos) == 6


def test_only_what_changed_is_decoded_again(
    data: Path, cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*arguments(data)) == 1
    before = results()
    file = Path("out/results.jsonl")
    file.write_bytes(file.read_bytes()[:-40])  # as a kill may leave it
    dropped = json.loads(json.dumps(list(before)[-1]))
    shutil.copy(data / "good 0.mp4", data / "empty.mp4")
    capsys.readouterr()
    assert cli(*arguments(data)) == 1
    expected = 8 - len({dropped, "empty.mp4"})
    assert f"{expected} of 8 files are as they were" in capsys.readouterr().err
    after = results()
    assert after.keys() == before.keys() and after["empty.mp4"]["status"] == "ok"
    assert all(after[n] == before[n] for n in before.keys() - {dropped, "empty.mp4"})
    (data / "cut ü,=[1].mkv").write_bytes((data / "good 1.mp4").read_bytes())
    assert cli(*arguments(data)) == 0
    assert Path("out/quarantine.jsonl").read_text() == ""


def test_sums_of_sha256sum_and_of_an_earlier_check(
    data: Path, cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("cut ü,=[1].mkv", "empty.mp4"):
        shutil.copy(data / "good 0.mp4", data / name)
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no sha256sum")
    done = subprocess.run(["sha256sum", *sorted(os.listdir(data))], cwd=data, capture_output=True,
                          check=True)  # fmt: skip
    Path("SUMS").write_bytes(done.stdout)
    assert cli(*arguments(data, "sums=SUMS")) == 0
    status = (data / "good 3.mp4").stat()
    content = bytearray((data / "good 3.mp4").read_bytes())
    content[-1] ^= 1
    (data / "good 3.mp4").write_bytes(content)
    os.utime(data / "good 3.mp4", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert cli(*arguments(data)) == 0  # nothing tells that it changed
    for sums in ("SUMS", "out/results.jsonl"):
        assert cli(*arguments(data, f"sums={sums}", f"output=by_{sums[:3]}")) == 1
        rows = results(f"by_{sums[:3]}")
        assert {n for n, row in rows.items() if row["reason"] == "changed"} == {"good 3.mp4"}
    capsys.readouterr()
    assert cli(*arguments(data, "sums=out/results.jsonl")) == 2
    Path("SUMS").write_text("no sum at all\n")
    assert cli(*arguments(data, "sums=SUMS", "output=new")) == 1
    Path("SUMS").write_text(f"{'0' * 64}  nobody.mp4\n")
    assert cli(*arguments(data, "sums=SUMS", "output=new")) == 1
    said = capsys.readouterr().err
    assert "what this check writes itself" in said and "line 1: 'no sum at all'" in said
    assert "names none of the 8 files" in said


def test_a_replaced_file_leaves_quarantine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [str(encode(tmp_path / f"{number}.mp4", frames=3)) for number in range(3)]
    quarantine = tmp_path / "quarantine.jsonl"
    entries = []
    for path in paths[:2]:
        size, mtime_ns = stamp(path) or (0, 0)
        entries.append({"path": path, "id": path, "size": size, "mtime_ns": mtime_ns,
                        "sha256": None, "reason": "hang"})  # fmt: skip
    quarantine.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    videos = VideoList(tuple(Video(path, 0, str(n)) for n, path in enumerate(paths)), ("a",))
    os.utime(paths[1], ns=(1, 1))
    kept, left_out = leave_out(videos, str(quarantine))
    assert left_out == ["0"] and [video.id for video in kept.videos] == ["1", "2"]
    said = capsys.readouterr().err
    assert paths[1] in said and "changed since" in said and paths[0] not in said
    for content in ("not json\n", "{}\n", "[1]\n", '{"path": "a"}\n'):
        quarantine.write_text(content)
        with pytest.raises(InputError, match="line 1"):
            read_quarantine(str(quarantine))
    with pytest.raises(InputError, match="cannot be read"):
        read_quarantine(str(tmp_path / "none"))


def test_wrong_settings(data: Path, cli: Callable[..., int]) -> None:
    for setting in ("splits=[test]", "workers=0", "timeout_seconds=0", "memory_gib=-1"):
        assert cli(*arguments(data, setting)) == 2
    assert not Path("out").exists()
