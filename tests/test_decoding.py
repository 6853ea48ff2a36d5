"""Every decoder returns exactly the frames asked for, of every kind of file, or refuses it."""

import os
import random
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import REPO
from corpus import decode
from encoding import encode, hide_first, need_decoder, number_of

from vidtrain.data.decode_decord import DecordReader
from vidtrain.data.decode_pyav import PyavReader
from vidtrain.data.decode_torchcodec import TorchcodecReader
from vidtrain.data.packets import packet_table
from vidtrain.data.reading import check_decoder, open_video
from vidtrain.data.video import Video
from vidtrain.errors import InputError, UsageError

CLIPS = REPO.parent / "shared" / "data" / "clips"
SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".gif"}
B_FRAMES = {"g": "12", "bf": "2", "sc_threshold": "0"}
UNEVEN = [sum(20 * (1 + n % 3 + 9 * (n % 7 == 0)) for n in range(end)) for end in range(60)]


def x264(text: str) -> dict[str, str]:
    return {"x264-params": f"scenecut=0:b-adapt=0:{text}"}


# Name -> how to make it, why frames are not found by time stamp, why decord is not trusted.
KINDS: dict[str, tuple[Callable[[Path], Path], str | None, str | None]] = {
    "closed_gop.mp4": (lambda p: encode(p, options=B_FRAMES), None, None),
    "uneven_times.mp4": (lambda p: encode(p, options=B_FRAMES, ticks=UNEVEN), None, None),
    "closed_gop.mkv": (lambda p: encode(p, options=B_FRAMES), None, None),
    "vp9.webm": (
        lambda p: encode(p, codec="libvpx-vp9", options={"g": "20", "cpu-used": "8"}), None, None,
    ),
    "fragments.mp4": (
        lambda p: encode(p, options=B_FRAMES, muxer={"movflags": "frag_keyframe+empty_moov"}),
        None, None,
    ),
    "open_gop.mp4": (
        lambda p: encode(p, options=x264("keyint=12:open-gop=1:bframes=3")), None, "shown before",
    ),
    "open_gop_hevc.mp4": (
        lambda p: encode(p, codec="libx265", options={
            "x265-params": "keyint=12:min-keyint=12:open-gop=1:bframes=3:log-level=none"}),
        None, "shown before",
    ),
    "recovery_points.mp4": (
        lambda p: encode(p, options=x264("keyint=12:intra-refresh=1:bframes=0")),
        None, "need earlier frames",
    ),
    "crowded_keyframes.mp4": (
        lambda p: encode(p, options=B_FRAMES | {"forced-idr": "1"}, keyframes=(17, 18, 41, 42),
                         muxer={"movflags": "frag_keyframe+empty_moov"}),
        None, "decoded before the one before",
    ),
    "no_index.mkv": (lambda p: encode(p, options=B_FRAMES, muxer={"live": "1"}), None, "metadata"),
    "av1.mp4": (
        lambda p: encode(p, codec="libsvtav1", options={"preset": "12"}), None, "wanted index",
    ),
    "edit_list.mp4": (
        lambda p: hide_first(encode(p, options=B_FRAMES), 17), "edit list", "edit list",
    ),
    "stream.ts": (lambda p: encode(p, options=B_FRAMES), "mpegts", "mpegts"),
    "b_frames.avi": (lambda p: encode(p, codec="mpeg4", options={"bf": "2"}), "avi", "avi"),
    "vp8.webm": (
        lambda p: encode(p, codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16"}),
        "vp8", "vp8",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a kind of file when it is first asked for."""
    folder = tmp_path_factory.mktemp("kinds")

    def make(name: str) -> Path:
        path = folder / name
        return path if path.exists() else KINDS[name][0](path)

    return make


def questions(count: int, seed: int = 0) -> list[list[int]]:
    """Frames to ask for: single ones, the ends, unordered with repeats, runs and far jumps."""
    draw = random.Random(seed)
    some = [[draw.randrange(count) for _ in range(size)] for size in (1, 1, 1, 1, 6, 16, 16)]
    start = draw.randrange(count)
    return [[0], [count - 1], [count - 1, 0], list(range(start, min(count, start + 9))), *some]


@pytest.mark.parametrize("name", KINDS)
def test_pyav_returns_the_frames_asked_for(made: Callable[[str], Path], name: str) -> None:
    path, expected = made(name), list(decode(made(name)))
    first = 17 if name == "edit_list.mp4" else 0
    assert [number_of(frame) for frame in expected] == list(range(first, 60))
    reason = packet_table(str(path)).slow_reason
    assert str(KINDS[name][1]) in str(reason)
    with closing(PyavReader(str(path))) as reader:
        assert reader.num_frames == len(expected)
        for indices in questions(len(expected)):
            np.testing.assert_array_equal(reader.read(indices), [expected[i] for i in indices])


@pytest.mark.parametrize("name", KINDS)
def test_decord_returns_the_frames_asked_for_or_refuses(
    made: Callable[[str], Path], name: str
) -> None:
    pytest.importorskip("decord")
    path, reason = made(name), KINDS[name][2]
    if reason is not None:
        with pytest.raises(InputError, match=rf"{name}.*{reason}.*set data\.decoder=pyav"):
            DecordReader(str(path))
        return
    expected = list(decode(path))
    with closing(DecordReader(str(path))) as reader:
        assert reader.num_frames == len(expected)
        for indices in questions(len(expected)):
            np.testing.assert_array_equal(reader.read(indices), [expected[i] for i in indices])


@pytest.mark.parametrize("name", KINDS)
def test_torchcodec_returns_the_frames_asked_for_or_refuses(
    made: Callable[[str], Path], name: str
) -> None:
    path = made(name)
    need_decoder("torchcodec", path.parent)
    reason = KINDS[name][1 if name != "recovery_points.mp4" else 2]
    if reason is not None:
        with pytest.raises(InputError, match=rf"{name}.*{reason}.*set data\.decoder=pyav"):
            TorchcodecReader(str(path))
        return
    expected = list(decode(path))
    with closing(TorchcodecReader(str(path))) as reader:
        assert reader.num_frames == len(expected)
        for indices in questions(len(expected)):
            try:
                frames = reader.read(indices)
            except InputError as error:  # it may seek past a keyframe, and is found out
                if name != "crowded_keyframes.mp4" or "another time" not in str(error):
                    raise
            else:
                np.testing.assert_array_equal(frames, [expected[i] for i in indices])


def real_clips() -> list[object]:
    if not CLIPS.is_dir():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no real clips in {CLIPS}"))]
    found = sorted(path for path in CLIPS.rglob("*") if path.suffix in SUFFIXES)
    return [pytest.param(path, id=path.relative_to(CLIPS).as_posix()) for path in found]


@pytest.mark.parametrize("path", real_clips())
def test_real_clip(path: Path) -> None:
    if path.name == "corrupted.mp4":
        with closing(PyavReader(str(path))) as reader:
            reader.read([27])
            with pytest.raises(InputError, match=r"Frame 28 of .*corrupted.mp4 cannot be decoded"):
                reader.read([3, 28, 40])
        return
    expected = list(decode(path))
    indices = [0, *random.Random(1).choices(range(len(expected)), k=6), len(expected) - 1]
    with closing(PyavReader(str(path))) as reader:
        assert reader.num_frames == len(expected)
        np.testing.assert_array_equal(reader.read(indices), [expected[i] for i in indices])
    pytest.importorskip("decord")
    try:
        trusted = DecordReader(str(path))
    except InputError as error:
        assert "set data.decoder=pyav" in str(error)  # noqa: PT017
        return
    with closing(trusted) as reader:
        difference = np.abs(reader.read(indices) - np.array([expected[i] for i in indices], float))
    assert difference.mean() == 0 or ("10bits" in path.name and difference.mean() < 4)


MATRICES = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593), 2: (0.299, 0.114)}


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("full", [False, True])
def test_colours_follow_the_stated_matrix_and_range(
    tmp_path: Path, matrix: int, full: bool
) -> None:
    luma, blue, red = 150, 90, 160
    planes = np.repeat(np.array([luma, blue, red], np.uint8), [32 * 32, 256, 256]).reshape(48, 32)
    path = tmp_path / "colour.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        for carrier in (stream.codec_context, frame):
            carrier.colorspace, carrier.color_range = matrix, 2 if full else 1
        container.mux([*stream.encode(frame), *stream.encode()])
    # ITU-R BT.601, 709 and 2020: luma is kr R + kg G + kb B; a stream that states none is 601.
    kr, kb = MATRICES[matrix]
    y, cb, cr = (
        (luma / 255, (blue - 128) / 255, (red - 128) / 255)
        if full
        else ((luma - 16) / 219, (blue - 128) / 224, (red - 128) / 224)
    )
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    expected = np.array([r, (y - kr * r - kb * b) / (1 - kr - kb), b]) * 255
    with closing(PyavReader(str(path))) as reader:
        assert np.abs(reader.read([0]) - expected).max() < 3


TURNS: dict[str, tuple[tuple[object, ...], Callable[[np.ndarray], np.ndarray]]] = {
    "90 degrees counter-clockwise": ((90,), np.rot90),
    "90 degrees clockwise": ((-90,), lambda frame: np.rot90(frame, -1)),
    "upside down": ((180,), lambda frame: np.rot90(frame, 2)),
    "mirrored": ((0, True, False), np.fliplr),
    "flipped": ((0, False, True), np.flipud),
    "turned, then mirrored": ((90, True, False), lambda frame: np.fliplr(np.rot90(frame))),
}


@pytest.mark.parametrize("name", TURNS)
def test_frames_are_turned_as_the_file_asks(tmp_path: Path, name: str) -> None:
    rotation, turn = TURNS[name]
    plain = list(decode(encode(tmp_path / "plain.mp4", frames=5)))
    path = str(encode(tmp_path / "turned.mp4", frames=5, rotation=rotation))
    with closing(PyavReader(path)) as reader:
        np.testing.assert_array_equal(reader.read([4, 0]), [turn(plain[4]), turn(plain[0])])
    pytest.importorskip("decord")
    with pytest.raises(InputError, match=r"because it is to be turned or mirrored; set data\.dec"):
        DecordReader(path)


def test_a_slanted_picture_is_refused(tmp_path: Path) -> None:
    path = encode(tmp_path / "slanted.mp4", frames=3, rotation=(30,))
    with pytest.raises(InputError, match=r"slanted\.mp4 is to be shown at \d+ degrees; convert"):
        PyavReader(str(path))


@pytest.mark.parametrize("bridge", ["native", "torch"])
def test_decord_works_whatever_bridge_is_set(made: Callable[[str], Path], bridge: str) -> None:
    decord = pytest.importorskip("decord")
    decord.bridge.set_bridge(bridge)
    try:
        with closing(DecordReader(str(made("closed_gop.mp4")))) as reader:
            frames = reader.read([30, 7, 7])
    finally:
        decord.bridge.reset_bridge()
    assert type(frames) is np.ndarray
    assert [number_of(frame) for frame in frames] == [30, 7, 7]


def test_decord_that_is_not_installed(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "decord", None)  # as Python marks what is not there
    with pytest.raises(UsageError, match=r"pip install decord.*data\.decoder=pyav"):
        DecordReader(str(made("closed_gop.mp4")))


def test_unknown_decoder_is_told_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"decoder=pyva: .*mean pyav\? Choose .*pyav, decord"):
        check_decoder("pyva")


@pytest.mark.parametrize("decoder", ["pyav", "decord"])
def test_open_video_limits_the_frames(made: Callable[[str], Path], decoder: str) -> None:
    path = str(made("closed_gop.mp4"))
    with open_video(Video(path, 0, "a", num_frames=20), decoder) as reader:
        assert (reader.num_frames, reader.fps) == (20, 30.0)
        assert number_of(reader.read([19])[0]) == 19
        for wrong in (20, -1):
            with pytest.raises(InputError, match=rf"has no frame {wrong}: it has 20, counted from"):
                reader.read([wrong])
    for stated in (61, 0):
        with (
            pytest.raises(InputError, match=rf"^{stated} frames are stated for .*it holds 60"),
            open_video(Video(path, 0, "a", num_frames=stated), decoder),
        ):
            pass


def test_a_changed_file_is_looked_at_again(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", frames=5)
    assert len(packet_table(str(path)).pts) == 5
    assert len(packet_table(str(encode(path, frames=8))).pts) == 8


def test_no_file_stays_open(made: Callable[[str], Path]) -> None:
    before = os.listdir("/proc/self/fd")
    for name in ("closed_gop.mp4", "stream.ts"):
        with open_video(Video(str(made(name)), 0, "a")) as reader:
            reader.read([3, 50])
        with pytest.raises(InputError), open_video(Video(str(made(name)), 0, "a", 99)):
            pass
    assert len(os.listdir("/proc/self/fd")) == len(before)
