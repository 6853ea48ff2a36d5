"""What every back end does alike: sizes, cuts, times, tar members, colours, and giving back."""

import os
import subprocess
import sys
import tarfile
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil
import pytest
from encoding import encode, need_decoder, number_of, numbered

from vidtrain.data.decode_pyav import PyavReader
from vidtrain.data.decode_torchcodec import TorchcodecReader
from vidtrain.data.reading import DECODERS, open_video
from vidtrain.data.video import Box, Video, tar_member
from vidtrain.data.views import cut_frames
from vidtrain.errors import InputError, UsageError

B_FRAMES = {"g": "12", "bf": "2", "sc_threshold": "0"}
UNEVEN = [sum(20 * (1 + n % 3 + 9 * (n % 7 == 0)) for n in range(end)) for end in range(60)]


def reader_of(decoder: str, path: Path | str) -> Any:
    need_decoder(decoder, Path(path).parent)
    return DECODERS[decoder](str(path))


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_cut_is_the_crop_scaled(tmp_path: Path, decoder: str) -> None:
    path = encode(tmp_path / "a.mp4", options=B_FRAMES)
    boxes = [Box(8, 10, 32, 40), Box(0, 0, 48, 64)]
    out = [np.full((3, 16, 24, 3), 9, np.uint8), np.full((3, 48, 64, 3), 9, np.uint8)]
    with closing(reader_of(decoder, path)) as reader:
        assert (reader.height, reader.width, reader.num_frames, reader.fps) == (48, 64, 60, 30.0)
        reader.cut([41, 3, 41], boxes, out)
        frames = reader.read([41, 3, 41])
        with pytest.raises(InputError, match=r"a\.mp4 has no frame 60"):
            reader.cut([60], boxes[:1], [out[0][:1]])
    assert [number_of(frame) for frame in out[1]] == [41, 3, 41]
    for box, found in zip(boxes, out, strict=True):
        expected = np.empty_like(found)
        cut_frames(frames, box, expected)
        difference = found - expected.astype(float)
        if decoder == "pyav":  # cuts planes before converting, and some colour at half the size
            assert np.abs(difference).mean() < 5
            assert np.abs(difference @ (0.299, 0.587, 0.114)).mean() < 2.5  # luma
        else:
            assert not difference.any()


@pytest.mark.parametrize("decoder", DECODERS)
def test_times_of_uneven_frames(tmp_path: Path, decoder: str) -> None:
    path = encode(tmp_path / "a.mp4", options=B_FRAMES, ticks=UNEVEN)
    with closing(reader_of(decoder, path)) as reader:
        assert [reader.frame_at(tick / 600) for tick in UNEVEN] == list(range(60))
        assert [reader.frame_at(tick / 600 - 0.01) for tick in UNEVEN] == list(range(60))
        assert reader.frame_at(UNEVEN[40] / 600 + 0.001) == 41
        assert reader.frame_at(-1.0) == 0 and reader.frame_at(1e6) == 60


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_member_of_a_tar_file(tmp_path: Path, decoder: str) -> None:
    tar = tmp_path / "shard.tar"
    with tarfile.open(tar, "w") as file:
        for name in ("a.mp4", "b.mkv"):
            file.add(encode(tmp_path / name, options=B_FRAMES, frames=30), name)
    with tarfile.open(tar) as file:
        member = file.getmember("b.mkv")
    path = tar_member(str(tar), member.offset_data, member.size)
    with closing(reader_of(decoder, path)) as reader:
        assert [number_of(frame) for frame in reader.read([29, 4, 17])] == [29, 4, 17]


@pytest.mark.parametrize("decoder", DECODERS)
def test_pixels_are_made_square(tmp_path: Path, decoder: str) -> None:
    path = tmp_path / "wide.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=30, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(3, 2)
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with closing(reader_of(decoder, path)) as reader:
        assert (reader.height, reader.width) == (48, 96)
        frames = reader.read([3, 1])
        out = np.empty((1, 48, 96, 3), np.uint8)
        reader.cut([3], [Box(0, 0, 48, 96)], [out])
    assert frames.shape == (2, 48, 96, 3)
    assert [number_of(frame[:, ::3].repeat(2, 1)[:, :64]) for frame in frames] == [3, 1]
    assert np.abs(out[0] - frames[0].astype(float)).mean() < 4
    with closing(PyavReader(str(path))) as reader:
        assert np.abs(reader.read([3])[0] - frames[0].astype(float)).mean() < 1


def test_a_mirrored_file_is_not_given_to_those_who_cannot_mirror(tmp_path: Path) -> None:
    path = encode(tmp_path / "m.mp4", frames=3, rotation=(0, True, False))
    for decoder in ("decord", "torchcodec"):
        need_decoder(decoder, tmp_path)
        with pytest.raises(InputError, match=r"m\.mp4, because it .*mirror.*data\.decoder=pyav"):
            DECODERS[decoder](str(path))


def test_torchcodec_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, name, None)  # as Python marks what is not there
    with pytest.raises(
        UsageError, match=r"not installed: pip install 'vidtrain\[torchcodec\]' and"
    ):
        TorchcodecReader(str(encode(tmp_path / "a.mp4", frames=3)))


@pytest.mark.slow
def test_torchcodec_without_ffmpeg(tmp_path: Path) -> None:
    pytest.importorskip("torchcodec")
    path = encode(tmp_path / "a.mp4", frames=3)
    program = f"""
import torch
def fail(*_):  # what the dynamic loader says where FFmpeg is not installed
    raise OSError("libavutil.so: cannot open shared object file")
torch.ops.load_library = fail
from vidtrain.data.decode_torchcodec import TorchcodecReader
from vidtrain.errors import UsageError
try:
    TorchcodecReader({str(path)!r})
except UsageError as error:
    print(error)
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "cannot load FFmpeg's shared libraries" in done.stdout, done.stderr
    assert "and install FFmpeg, or set data.decoder=pyav" in done.stdout


# ITU-T H.273: shares of red and blue in the luma; 2 is not stated, which is taken for BT.601.
MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593), 2: (0.299, 0.114)}
PATCHES = [(150, 90, 160), (60, 150, 110), (200, 128, 128), (100, 128, 100)]
DEPTHS = {"yuv420p": 8, "yuv422p": 8, "yuv444p": 8, "yuv420p10le": 10, "yuv444p10le": 10}


def patches(path: Path, pix_fmt: str, matrix: int, full: bool) -> Path:
    """Four flat patches, 32x32 each, side by side in one lossless frame."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=30)
        stream.width, stream.height, stream.pix_fmt = 128, 32, pix_fmt
        frame = av.VideoFrame(128, 32, pix_fmt)
        dtype, unit = (np.uint8, 1) if DEPTHS[pix_fmt] == 8 else (np.uint16, 4)
        for plane, levels in zip(frame.planes, zip(*PATCHES, strict=True), strict=True):
            row = np.repeat(np.array(levels) * unit, plane.width // 4).astype(dtype)
            pixels = np.zeros((plane.height, plane.line_size // dtype().itemsize), dtype)
            pixels[:, : plane.width] = row
            plane.update(pixels.tobytes())
        for carrier in (stream.codec_context, frame):
            carrier.colorspace, carrier.color_range = matrix, 2 if full else 1
        container.mux([*stream.encode(frame), *stream.encode()])
    return path


def by_formula(patch: tuple[int, int, int], matrix: int, full: bool) -> np.ndarray:
    """ITU-R BT.601, 709 and 2020: luma is kr R + kg G + kb B, colour the distance from it."""
    kr, kb = MATRICES[matrix]
    luma, colour, black = (255, 255, 0) if full else (219, 224, 16)
    y, cb, cr = (patch[0] - black) / luma, (patch[1] - 128) / colour, (patch[2] - 128) / colour
    red, blue = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    rgb = np.array([red, (y - kr * red - kb * blue) / (1 - kr - kb), blue])
    return np.clip(rgb * 255, 0, 255)


@pytest.mark.parametrize("pix_fmt", DEPTHS)
@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True])
def test_cuts_have_the_colours_of_the_formulas(
    tmp_path: Path, pix_fmt: str, matrix: int, full: bool
) -> None:
    path = patches(tmp_path / "c.mkv", pix_fmt, matrix, full)
    boxes = [Box(4, 32 * n + 6, 24, 20) for n in range(4)]
    out = [np.empty((1, 14, 10, 3), np.uint8) for _ in boxes]
    with closing(PyavReader(str(path))) as reader:
        reader.cut([0], boxes, out)
        whole = reader.read([0])[0]
    for number, patch in enumerate(PATCHES):
        expected = by_formula(patch, matrix, full)
        assert np.abs(out[number] - expected).max() <= 2
        inside = whole[4:28, 32 * number + 6 : 32 * number + 26]
        assert np.abs(inside - expected).max() <= 3


def check_nothing_is_kept(path: Path, rounds: int, megabytes: float) -> None:
    process = psutil.Process()

    def once(number: int) -> None:
        os.utime(path, (number, number))  # a new file to all caches
        with open_video(Video(str(path), 0, "a")) as reader:
            reader.read([number % 60, 59 - number % 60])

    for number in range(100):
        once(number)
    memory, files = process.memory_info().rss, process.num_fds()
    for number in range(100, rounds + 100):
        once(number)
    assert process.num_fds() == files
    grown = (process.memory_info().rss - memory) / 2**20
    print(f"{rounds} opens: {grown:.1f} MB more")
    assert grown < megabytes


@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_nothing_is_kept_of_200_opened_files(tmp_path: Path, name: str) -> None:
    check_nothing_is_kept(encode(tmp_path / name, options=B_FRAMES), 200, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.mp4", "a.ts"])
def test_nothing_is_kept_of_2000_opened_files(tmp_path: Path, name: str) -> None:
    check_nothing_is_kept(encode(tmp_path / name, options=B_FRAMES), 2000, 10)
