"""What is said of good and bad video files, each decoded wholly."""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import noise, write_video
from encoding import HEIGHT, WIDTH, encode, hide_first, numbered, sound_only
from PIL import Image

from vidtrain.data.checking import BAD, WARN, check_file
from vidtrain.data.quarantine import stamp
from vidtrain.data.video import tar_member

FASTSTART = {"movflags": "+faststart"}


def images(folder: Path, count: int = 5) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.fromarray(numbered(number)).save(folder / f"img_{number:05d}.jpg")
    return folder


def old_avi(folder: Path) -> Path:
    """An MPEG-4 AVI with B-frames, whose packets carry no time of showing."""
    return encode(folder / "a.avi", codec="mpeg4", options={"bf": "2"})


def member(folder: Path) -> str:
    video = encode(folder / "a.mp4")
    with tarfile.open(folder / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("x"), io.BytesIO())
        tar.add(video, "a.mp4")
    with tarfile.open(folder / "a.tar") as tar:
        offset = tar.getmember("a.mp4").offset_data
    return tar_member(str(folder / "a.tar"), offset, video.stat().st_size)


GOOD: dict[str, Callable[[Path], Any]] = {
    "h264": lambda d: encode(d / "a.mp4"),
    "cavlc": lambda d: encode(d / "a.mp4", options={"x264-params": "cabac=0"}),
    "open gop": lambda d: encode(d / "a.mkv", options={"x264-params": "open-gop=1:keyint=12"}),
    "hevc": lambda d: encode(d / "a.mp4", codec="libx265"),
    "vp8 with hidden frames": lambda d: encode(
        d / "a.webm", codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "vp9 with hidden frames": lambda d: encode(
        d / "a.webm", codec="libvpx-vp9", options={"auto-alt-ref": "1", "lag-in-frames": "16"}),
    "av1": lambda d: encode(d / "a.mkv", codec="libsvtav1"),
    "mpeg4 avi": old_avi,
    "ts": lambda d: encode(d / "a.ts"),
    "edit list": lambda d: hide_first(encode(d / "a.mp4", options={"g": "60"}), 7),
    "turned": lambda d: encode(d / "a.mp4", rotation=(90,)),
    "varied times": lambda d: encode(d / "a.mp4", ticks=[n * n for n in range(1, 61)]),
    "images": lambda d: images(d / "a"),
    "tar member": member,
}  # fmt: skip


@pytest.mark.parametrize("kind", GOOD)
def test_good_files(tmp_path: Path, kind: str) -> None:
    path = GOOD[kind](tmp_path)
    row = check_file(str(path))
    frames = {"images": 5, "edit list": 53}.get(kind, 60)
    assert row["status"] == "ok", (row["reason"], row["detail"])
    assert (row["expected_frames"] >= row["decoded_frames"]) and row["decoded_frames"] == frames
    assert (row["width"], row["height"]) == (WIDTH, HEIGHT) and not row["size_changes"]
    assert row["rotation"] in ((90, -90, 270) if kind == "turned" else (0,))
    assert (row["size"], row["mtime_ns"]) == stamp(str(path))
    json.dumps(row)
    if kind not in ("images", "tar member"):
        assert row["sha256"] == hashlib.sha256(Path(path).read_bytes()).hexdigest()
    if kind not in ("images", "varied times", "mpeg4 avi"):
        assert row["fps"] == pytest.approx(30, rel=0.01)
    if kind in ("h264", "tar member"):
        assert row["route"] == "fast" and row["pts_order"] == "ok"
        assert row["stated_seconds"] == row["found_seconds"] == 2.0


def cut(path: Path, share: float = 0.5) -> Path:
    os.truncate(path, int(path.stat().st_size * share))
    return path


def zeroed(path: Path) -> Path:
    """Overwrites a part of the content, as a lost sector does."""
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 1500
    data[start : start + 256] = bytes(256)
    path.write_bytes(data)
    return path


def without_some(path: Path) -> Path:
    """Takes transport packets of the middle away."""
    data = path.read_bytes()
    middle = len(data) // 188 // 2 * 188
    path.write_bytes(data[:middle] + data[middle + 3 * 188 :])
    return path


def two_sizes(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
        for number, size in enumerate([(HEIGHT, WIDTH), (HEIGHT // 2, WIDTH)]):
            with av.open(buffer := io.BytesIO(), "w", format="mjpeg") as other:
                coded: Any = other.add_stream("mjpeg", rate=25)
                coded.height, coded.width, coded.pix_fmt = *size, "yuvj420p"
                frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 99, np.uint8), "rgb24")
                for packet in [*coded.encode(frame), *coded.encode()]:
                    other.mux(packet)
            packet = av.Packet(buffer.getvalue())
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base, packet.is_keyframe = Fraction(1, 25), True
            container.mux(packet)
    return path


def large(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 8192, 4608, "yuv420p"
        container.mux(stream.encode(av.VideoFrame(8192, 4608, "yuv420p")))
        container.mux(stream.encode())
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def spoilt_image(folder: Path) -> Path:
    (images(folder) / "img_00003.jpg").write_bytes(b"")
    return folder


def gap(folder: Path) -> Path:
    (images(folder) / "img_00003.jpg").unlink()
    return folder


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD_FILES: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "missing": ("unreadable", lambda d: d / "a.mp4"),
    "empty": ("unreadable", lambda d: written(d / "a.mp4", b"")),
    "text": ("unreadable", lambda d: written(d / "a.mp4", b"<html>404</html>\n")),
    "sound": ("unreadable", lambda d: sound_only(d / "a.mp4")),
    "pipe": ("unreadable", lambda d: pipe(d / "a.mp4")),
    "playlist": ("unreadable", lambda d: written(
        d / "a.mp4", b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n#EXT-X-ENDLIST\n")),
    "mp4 without its end": ("unreadable", lambda d: cut(encode(d / "a.mp4"))),
    "cut mp4": ("cut", lambda d: cut(encode(d / "a.mp4", muxer=FASTSTART), 0.6)),
    "cut mkv": ("cut", lambda d: cut(encode(d / "a.mkv"))),
    "cut avi": ("cut", lambda d: cut(old_avi(d), 0.25)),
    "zeros in mp4": ("damaged", lambda d: zeroed(encode(d / "a.mp4"))),
    "ts with a hole": ("damaged", lambda d: without_some(encode(d / "a.ts"))),
    "spoilt image": ("damaged", lambda d: spoilt_image(d / "a")),
    "gap": ("folder", lambda d: gap(d / "a")),
    "folder named as a file": ("folder", lambda d: folder(d / "a.mp4")),
    "two sizes": ("size_changes", lambda d: two_sizes(d / "a.mkv")),
    "large": ("too_large", lambda d: large(d / "a.mp4")),
    "askew": ("unsupported", lambda d: encode(d / "a.mp4", rotation=(30,))),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_files(tmp_path: Path, kind: str) -> None:
    reason, make = BAD_FILES[kind]
    row = check_file(str(make(tmp_path)))
    assert (row["status"], row["reason"]) == ("bad", reason), row["detail"]
    assert len(row["detail"]) > 10


def test_a_stream_that_was_cut_out_of_another_is_told_but_good(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.ts", options={"g": "12"}, frames=90)
    path.write_bytes(path.read_bytes()[188 * 30 :])
    row = check_file(str(path))
    assert row["status"] == "warn", (row["reason"], row["detail"])
    assert 0 < row["decoded_frames"] < 90


def test_another_content_is_found_though_it_decodes(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4")
    known = check_file(str(path))["sha256"]
    assert check_file(str(path), known)["status"] == "ok"
    write_video(path, noise(0, 100))
    assert check_file(str(path))["status"] == "ok"
    row = check_file(str(path), known)
    assert (row["status"], row["reason"]) == ("bad", "changed") and known in row["detail"]


def test_every_reason_is_in_the_guide() -> None:
    guide = (Path(__file__).parent.parent / "docs" / "check.md").read_text()
    for reason in (*BAD, *WARN):
        assert f"| `{reason}` |" in guide
