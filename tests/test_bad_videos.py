"""What is no good video is refused with one sentence; nothing hangs, follows links or guesses."""

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest
from encoding import encode, number_of, numbered, sound_only
from PIL import Image

from vidtrain.data.decode_frames import FrameFolderReader
from vidtrain.data.decode_pyav import PyavReader
from vidtrain.data.reading import DECODERS, open_video
from vidtrain.data.video import Video
from vidtrain.errors import InputError

FRONT = {"movflags": "faststart"}
NOT_A_VIDEO = r"is not a video file that can be read \(.+\): it is of another kind, a playlist"


def half(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def hls(path: Path) -> Path:
    secret = encode(path.with_name("secret.ts"))
    lines = ["#EXTM3U", "#EXT-X-TARGETDURATION:4", "#EXTINF:2.0,", f"file://{secret}"]
    return text(path, "\n".join([*lines, "#EXT-X-ENDLIST", ""]))


def concat(path: Path) -> Path:
    encode(path.with_name("secret.mp4"))
    return text(path, "ffconcat version 1.0\nfile secret.mp4\n")


def cover_art(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=48000)
        picture = container.add_stream("mjpeg", rate=1)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(numbered(1), format="rgb24")
        container.mux([*picture.encode(frame), *picture.encode()])
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        silence.sample_rate = 48000
        container.mux([*sound.encode(silence), *sound.encode()])
    return path


def other_size(path: Path) -> Path:
    """An MPEG-TS stream whose second half is half as large."""
    parts = []
    for size in (64, 32):
        part = path.with_name(f"{size}.ts")
        with av.open(str(part), "w") as container:
            stream = container.add_stream("libx264", rate=30)
            stream.width, stream.height, stream.pix_fmt = size, size, "yuv420p"
            for _ in range(10):
                pixels = np.zeros((size, size, 3), np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            container.mux(stream.encode())
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))
    return path


def damaged(path: Path) -> Path:
    """The samples of frames 30 and later are overwritten."""
    encode(path, options={"g": "10", "bf": "0"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        for entry in list(container.streams.video[0].index_entries)[30:]:
            data[entry.pos + 8 : entry.pos + entry.size] = b"\xff" * (entry.size - 8)
    path.write_bytes(data)
    return path


def no_frames(path: Path) -> Path:
    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return path


def picture(path: Path) -> Path:
    Image.new("RGB", (9, 9)).save(path, "png")
    return path


# Name -> how to make it, and the message when it is opened.
BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing.mp4": (lambda p: p, r"Cannot read the video .*missing.mp4: No such file"),
    "pipe.mp4": (pipe, r"pipe.mp4 is a pipe, socket or device, not a video file"),
    "empty.mp4": (lambda p: text(p, ""), r"empty.mp4 is empty \(0 bytes\); copy or download"),
    "error_page.mp4": (lambda p: text(p, "<html>404</html>"), NOT_A_VIDEO),
    "picture.mp4": (picture, NOT_A_VIDEO),
    "no_frames.mp4": (no_frames, r"no_frames.mp4 has a video stream without frames"),
    "playlist.mp4": (hls, NOT_A_VIDEO),
    "playlist.m3u8": (hls, NOT_A_VIDEO),
    "script.mp4": (concat, NOT_A_VIDEO),
    "sound.mp4": (sound_only, r"sound.mp4 has no video stream; leave it out or convert it"),
    "song.mp4": (cover_art, r"song.mp4 has no video stream"),
    "index_lost.mp4": (lambda p: half(encode(p)), NOT_A_VIDEO),
    "cut.mp4": (lambda p: half(encode(p, muxer=FRONT)),
                r"cut.mp4 is cut short: its index names \d+ bytes, \d+ are there"),
    "cut.mkv": (lambda p: half(encode(p)),
                r"cut.mkv is cut short: it states 2.0 s, [01]\.\d s are there"),
}  # fmt: skip


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused(tmp_path: Path, name: str, decoder: str) -> None:
    if decoder != "pyav":
        pytest.importorskip(decoder)
    make, message = BAD[name]
    path = make(tmp_path / name)
    with pytest.raises(InputError, match=message), open_video(Video(str(path), 0, "a"), decoder):
        pass


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("http://127.0.0.1:9/a.mp4", r"'http://127.0.0.1:9/a.mp4' is an address, not a local file"),
        ("concat:{}|{}", r"Cannot read the video concat:.*: No such file"),
    ],
)
def test_addresses_are_not_opened(tmp_path: Path, path: str, message: str) -> None:
    video = encode(tmp_path / "a.ts")
    with pytest.raises(InputError, match=message):
        PyavReader(path.format(video, video))


def test_a_folder_is_no_video_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.mp4 is a folder, not a video file"):
        PyavReader(str(folder(tmp_path / "a.mp4")))


@pytest.mark.parametrize("name", ["ünïcödé 视频.mp4", "new\nline.mp4", "a:b.mp4", "%03d.mp4"])
def test_any_file_name_will_do(tmp_path: Path, name: str) -> None:
    with closing(PyavReader(str(encode(tmp_path / name, frames=3)))) as reader:
        assert number_of(reader.read([2])[0]) == 2


def test_a_damaged_frame_is_named(tmp_path: Path) -> None:
    with closing(PyavReader(str(damaged(tmp_path / "a.mp4")))) as reader:
        assert [number_of(frame) for frame in reader.read([29, 5])] == [29, 5]
        with pytest.raises(InputError, match=r"Frame 30 of .*a\.mp4 cannot be decoded \(Invalid"):
            reader.read([3, 30, 40])
    with pytest.raises(InputError, match=r"Frame 30 of .*a\.avi cannot be decoded \(Invalid data"):
        PyavReader(str(damaged(tmp_path / "a.avi")))  # read in order, so counted first


def test_a_changing_picture_size_is_refused(tmp_path: Path) -> None:
    with (
        closing(PyavReader(str(other_size(tmp_path / "a.ts")))) as reader,
        pytest.raises(InputError, match=r"size of .*a\.ts changes \(64x64, 32x32\); convert it"),
    ):
        reader.read(range(reader.num_frames))


def images(path: Path, names: list[str]) -> Path:
    """A folder of one-colour images, the i-th of level 10 i."""
    path.mkdir()
    for index, name in enumerate(names):
        Image.new("RGB", (20, 10), (10 * index,) * 3).save(path / name)
    return path


@pytest.mark.parametrize("extension", ["png", "bmp", "PNG"])
def test_frame_folder_in_the_order_of_numbers(tmp_path: Path, extension: str) -> None:
    path = images(tmp_path / "v2", [f"frame_{n}.{extension}" for n in range(8, 13)])
    (path / "notes.txt").touch()
    with open_video(Video(str(path), 0, "a"), "pyav", 25.0) as reader:
        assert (reader.num_frames, reader.fps) == (5, 25.0)
        frames = reader.read([4, 0, 2, 2])
    assert frames.shape == (4, 10, 20, 3)
    assert frames[:, 5, 5, 0].tolist() == [40, 0, 20, 20]


@pytest.mark.parametrize("extension", ["jpg", "jpeg", "webp"])
def test_lossy_images_are_read(tmp_path: Path, extension: str) -> None:
    path = images(tmp_path / "a", [f"{n:05d}.{extension}" for n in range(3)])
    with open_video(Video(str(path), 0, "a", num_frames=2)) as reader:
        assert reader.num_frames == 2
        assert abs(int(reader.read([1])[0, 5, 5, 1]) - 10) < 3
        with pytest.raises(InputError, match=r"has no frame 2: it has 2"):
            reader.read([2])


FOLDERS: dict[str, tuple[list[str], int | None, str]] = {
    "nothing": ([], None, r"nothing holds no images \(\.jpg \.jpeg \.png \.bmp \.webp\)"),
    "gap": (["i_1.png", "i_2.png", "i_5.png"], None,
            r"gap have a gap: number 3 is missing \(after i_2.png comes i_5.png\)"),
    "series": (["img_1.png", "x_1.png", "y_1.png"], None,
               r"several series of images \(img_\*, x_\*, y_\*\); keep each in a folder"),
    "twice": (["i_1.png", "i_01.png"], None, r"i_01.png and i_1.png in .* carry the same number"),
    "unnumbered": (["cover.png"], None, r"The image cover.png in .*unnumbered has no number"),
    "fewer": (["1.png", "2.png"], 3, r"3 frames are stated for .*fewer, but it holds 2;"),
    "none": (["1.png", "2.png"], 0, r"0 frames are stated for .*none, but it holds 2;"),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_bad_frame_folder_is_refused(tmp_path: Path, name: str) -> None:
    names, num_frames, message = FOLDERS[name]
    path = str(images(tmp_path / name, names))
    with (
        pytest.raises(InputError, match=message),
        open_video(Video(path, 0, "a", num_frames), "pyav"),
    ):
        pass


def test_bad_images_are_named(tmp_path: Path) -> None:
    path = images(tmp_path / "a", [f"i_{n}.png" for n in range(5)])
    (path / "i_1.png").write_bytes(b"")
    (path / "i_2.png").write_text("<html>404</html>")
    (path / "i_3.png").write_bytes((path / "i_3.png").read_bytes()[:50])
    Image.new("RGB", (9, 9)).save(path / "i_4.png")
    reader = FrameFolderReader(str(path))
    for index, message in (
        (1, r"Cannot read the image .*i_1\.png: it is empty \(0 bytes\); copy it again"),
        (2, r"Cannot read the image .*i_2\.png: cannot identify"),
        (3, r"Cannot read the image .*i_3\.png: "),
        (4, r"a have different sizes: i_0\.png 20x10, i_4\.png 9x9"),
    ):
        with pytest.raises(InputError, match=message):
            reader.read([0, index])
