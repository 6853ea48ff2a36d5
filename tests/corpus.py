"""Video files of every kind, made with the ffmpeg program, and what an independent decoder sees."""

import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from vidtrain.data.video import VideoReader

X264 = "-c:v libx264 -preset veryfast -x264-params scenecut=0:b-adapt=0"
X265 = "-c:v libx265 -preset ultrafast -x265-params log-level=error"
B = f"{X264}:keyint=12:bframes=2"
BT709 = "-vf scale=out_color_matrix=bt709:out_range={} -colorspace bt709 -color_range {}"
PATTERN = "-f lavfi -i testsrc2=s=176x144:r=30:d=2"
# Name -> arguments of ffmpeg after the pattern; $NAME is another file of the corpus.
FILES = {
    "plain.mp4": B,
    "long_gop.mp4": f"{X264}:keyint=250:bframes=8:b-pyramid=normal:ref=8",
    "open_gop.mp4": f"{X264}:keyint=12:min-keyint=12:open-gop=1:bframes=3",
    "open_gop.mkv": f"{X264}:keyint=12:min-keyint=12:open-gop=1:bframes=3",
    "short_groups.mp4": f"{X264}:keyint=3:min-keyint=2:open-gop=1:bframes=1",
    "intra_refresh.mp4": f"{X264}:keyint=20:intra-refresh=1:bframes=0",
    "intra_refresh_b.mkv": f"{X264}:keyint=20:intra-refresh=1:bframes=2",
    "interlaced.mp4": f"{B}:tff=1 -flags +ilme+ildct",
    "fake_interlaced.mp4": f"{B}:fake-interlaced=1",
    "keyframes.mp4": f"{B} -force_key_frames expr:lt(mod(n,9),2)",
    "crowded.mp4": f"{B} -forced-idr 1 -force_key_frames expr:lt(mod(n,9),2) "
                   "-movflags frag_keyframe+empty_moov",
    "vfr.mp4": f"-vf setpts=(N*2+mod(N\\,3)+9*floor(N/7))/60/TB {B} -vsync vfr "
               "-video_track_timescale 30000",
    "vfr.mkv": f"-vf setpts=(N*2+mod(N\\,3)+9*floor(N/7))/60/TB {B} -vsync vfr",
    "hevc.mp4": f"{X265}:keyint=12:open-gop=0:bframes=3 -tag:v hvc1",
    "hevc_open_gop.mp4": f"{X265}:keyint=12:min-keyint=12:open-gop=1:bframes=3",
    "hevc_open_gop.mkv": f"{X265}:keyint=12:min-keyint=12:open-gop=1:bframes=4:b-pyramid=1",
    "hevc_layers.mp4": f"{X265}:keyint=20:bframes=4:b-pyramid=1:temporal-layers=1",
    "hevc_refresh.mp4": f"{X265}:keyint=30:intra-refresh=1:bframes=0",
    "hevc_12bit.mp4": f"{X265}:keyint=12 -pix_fmt yuv420p12le",
    "vp8.webm": "-c:v libvpx -auto-alt-ref 1 -lag-in-frames 16 -b:v 300k -cpu-used 8 -g 20",
    "vp9.webm": "-c:v libvpx-vp9 -auto-alt-ref 1 -lag-in-frames 25 -b:v 200k -cpu-used 8 -g 20",
    "vp9.mp4": "-c:v libvpx-vp9 -auto-alt-ref 1 -lag-in-frames 25 -b:v 200k -cpu-used 8 -g 20",
    "vp9_10bit.webm": "-c:v libvpx-vp9 -b:v 200k -cpu-used 8 -g 20 -pix_fmt yuv420p10le",
    "av1.mp4": "-c:v libsvtav1 -preset 12 -g 20",
    "av1.mkv": "-c:v libaom-av1 -cpu-used 8 -usage realtime -g 20",
    "av1_odd.mkv": "-vf crop=101:75 -c:v libaom-av1 -cpu-used 8 -usage realtime -g 20",
    "packed.avi": "-c:v libxvid -bf 2 -b:v 300k -g 12",
    "b_frames.avi": "-c:v mpeg4 -bf 2 -b:v 300k -g 12",
    "mpeg4.mp4": "-c:v mpeg4 -bf 2 -b:v 300k -g 12",
    "mpeg4.mkv": "-c:v mpeg4 -bf 2 -b:v 300k -g 12",
    "h264.avi": B,
    "mjpeg.avi": "-c:v mjpeg -pix_fmt yuvj420p -q:v 3",
    "mjpeg_odd.mov": "-vf crop=101:75 -c:v mjpeg -pix_fmt yuvj422p -q:v 3",
    "stream.ts": B,
    "stream.m2ts": B,
    "mpeg2.ts": "-c:v mpeg2video -bf 2 -b:v 500k -g 12",
    "mpeg2.mpg": "-c:v mpeg2video -bf 2 -b:v 500k -g 12",
    "mpeg2.mp4": "-c:v mpeg2video -bf 2 -b:v 500k -g 12",
    "mpeg1.mpg": "-c:v mpeg1video -r 25 -b:v 500k -g 12",
    "flv.flv": B,
    "sorenson.flv": "-c:v flv -b:v 300k",
    "wmv.wmv": "-c:v wmv2 -b:v 300k",
    "theora.ogv": "-c:v libtheora -q:v 5",
    "prores.mov": "-c:v prores",
    "ffv1.mkv": "-c:v ffv1",
    "animation.gif": "-r 10",
    "raw.h264": B,
    "raw.hevc": f"{X265}:keyint=12:bframes=3",
    "edit_delay.mp4": f"{B} -output_ts_offset 0.7",
    "fragments.mp4": f"{B} -movflags frag_keyframe+empty_moov",
    "fragments_delay.mp4": f"{B} -movflags frag_keyframe+delay_moov",
    "no_cues.mkv": f"{B} -live 1",
    "late.mkv": f"{B} -output_ts_offset 5",
    "yuv422.mp4": f"{B} -pix_fmt yuv422p",
    "yuv444.mp4": f"{B} -pix_fmt yuv444p",
    "odd444.mp4": f"-vf crop=101:75 {B} -pix_fmt yuv444p",
    "odd422.mkv": "-vf crop=101:75 -c:v libvpx-vp9 -b:v 200k -cpu-used 8 -g 20 -pix_fmt yuv422p",
    "odd420.mkv": "-vf crop=101:75 -c:v libvpx-vp9 -b:v 200k -cpu-used 8 -g 20 -pix_fmt yuv420p",
    "h264_10bit.mp4": f"{B} -pix_fmt yuv420p10le",
    "h264_422_10bit.mp4": f"{B} -pix_fmt yuv422p10le",
    "h264_444_10bit.mp4": f"{B} -pix_fmt yuv444p10le",
    "bt709.mp4": f"{BT709.format('tv', 'tv')} {B}",
    "bt709_full.mp4": f"{BT709.format('pc', 'pc')} {B}",
    "full.mp4": f"{B} -pix_fmt yuvj420p",
    "rgb.mp4": "-c:v libx264rgb -pix_fmt rgb24 -g 12",
    "grey.mp4": f"{B} -pix_fmt gray",
    "grey10.mp4": f"{B} -pix_fmt gray10le",
    "sar.mp4": f"-vf setsar=4/3 {B}",
    "sar_tall.mkv": f"-vf setsar=3/4 {B}",
    "sar_odd.mp4": f"-vf setsar=64/51 {B}",
    "two_videos.mp4": "-f lavfi -i testsrc=s=320x240:r=25:d=2 -map 0 -map 1 "
                      "-c:v libx264 -preset ultrafast -bf 2 -g 12",
    "sound.mp4": f"-f lavfi -i sine=d=3 -map 1 -map 0 {B} -c:a aac",
    "edit_cut.mp4": "-ss 0.9 -i $long_gop.mp4 -map 1 -c copy",
    "edit_cut_open.mov": "-ss 0.9 -i $open_gop.mp4 -map 1 -c copy",
    "no_keyframe.mkv": "-i $plain.mp4 -map 1 -ss 0.55 -c copy -copyinkf",
    "no_keyframe.mp4": "-i $plain.mp4 -map 1 -ss 0.55 -c copy -copyinkf",
    "lost.mkv": "-i $plain.mp4 -map 1 -c copy -bsf:v noise=drop=eq(mod(n\\,13)\\,6)",
    "lost_hevc.mkv": "-i $hevc.mp4 -map 1 -c copy -bsf:v noise=drop=eq(mod(n\\,13)\\,6)",
}  # fmt: skip
# Display matrices (a, b, c, d): shown column = a x + c y, row = b x + d y.
TURNS = {
    "turn_90": (0, 1, -1, 0), "turn_180": (-1, 0, 0, -1), "turn_270": (0, -1, 1, 0),
    "mirror": (-1, 0, 0, 1), "flip": (1, 0, 0, -1), "transpose": (0, 1, 1, 0),
    "transverse": (0, -1, -1, 0),
}  # fmt: skip


def ffmpeg(arguments: list[str]) -> bool:
    """Runs the program; False where this build of it cannot make the file."""
    command = ["ffmpeg", "-loglevel", "error", "-nostdin", "-y", *arguments]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def make(folder: Path) -> list[str]:
    """Makes the files; returns the names of those that the installed ffmpeg cannot make."""
    missing = []
    for name, text in FILES.items():
        words = [str(folder / w[1:]) if w[0] == "$" else w for w in text.split()]
        if not ffmpeg([*PATTERN.split(), *words, str(folder / name)]):
            missing.append(name)
            (folder / name).unlink(missing_ok=True)
    for source in ("plain.mp4", "sar.mp4"):
        for name, matrix in TURNS.items():
            turned(folder / source, folder / f"{name}_{source}", matrix)
    changed_size(folder)
    return missing


def make_bad(script: Path, folder: Path) -> None:
    """Runs the script that makes malformed files, without its two huge ones."""
    lines = script.read_text().splitlines()
    kept = "\n".join(line for line in lines if "long3h" not in line and "bomb" not in line)
    subprocess.run(["bash", "-c", kept, "make", str(folder)], check=False, capture_output=True)


def turned(source: Path, target: Path, matrix: tuple[int, int, int, int]) -> None:
    """Copies an mp4 file with a display matrix in its track header."""
    data = bytearray(source.read_bytes())
    place = data.index(b"tkhd") + 44
    for offset, value in zip((0, 4, 12, 16), matrix, strict=True):
        data[place + offset : place + offset + 4] = (value << 16).to_bytes(4, "big", signed=True)
    target.write_bytes(data)


def changed_size(folder: Path) -> None:
    """An H.264 stream in Matroska whose pictures get smaller, as new parameter sets say."""
    pictures = "-preset ultrafast -x264-params keyint=10:bframes=0:repeat-headers=1"
    for size in ("176x144", "128x96"):
        source = f"-f lavfi -i testsrc2=s={size}:r=30:d=1 -c:v libx264 {pictures}"
        ffmpeg([*source.split(), str(folder / f"{size}.h264")])
    joined = folder / "joined.h264"
    joined.write_bytes(b"".join((folder / f"{s}.h264").read_bytes() for s in ("176x144", "128x96")))
    ffmpeg(["-r", "30", "-i", str(joined), "-c", "copy", str(folder / "changed_size.mkv")])
    for path in (joined, folder / "176x144.h264", folder / "128x96.h264"):
        path.unlink()


@dataclass(frozen=True)
class Reference:
    """What one plain decoding of a file from the start gives, every frame.

    Attributes:
        digests: Of shape and pixels of each frame as shown.
        small: The frames scaled to 64 x 64, uint8 (N, 64, 64, 3).
        error: Why the decoding ended before the file, if it did.
    """

    digests: list[bytes]
    small: np.ndarray
    error: str | None


def decode(path: Path) -> Iterator[np.ndarray]:
    """All frames as they are shown, RGB, by PyAV's own loop: no code of ours, no seeks."""
    with av.open(str(path), metadata_errors="ignore") as container:
        stream: Any = container.streams.best("video")
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        for frame in container.decode(stream):
            yield shown(frame, stream.sample_aspect_ratio)


def shown(frame: Any, pixel_shape: Any) -> np.ndarray:
    """Pixels made square, then each moved to where the display matrix says."""
    image = frame.to_ndarray(format="rgb24", threads=1)
    width = round(image.shape[1] * (pixel_shape or 1))
    if width != image.shape[1]:
        image = cv2.resize(image, (width, image.shape[0]), interpolation=cv2.INTER_LINEAR)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = (value >> 16 for value in np.frombuffer(matrix, np.int32)[:5])
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    columns, rows = a * x + c * y, b * x + d * y
    columns, rows = columns - columns.min(), rows - rows.min()
    moved = np.empty((rows.max() + 1, columns.max() + 1, 3), np.uint8)
    moved[rows, columns] = image
    return moved


def reference(path: Path) -> Reference:
    """Decodes a file in order, as far as that goes."""
    digests, small, error = [], [], None
    try:
        for frame in decode(path):
            digests.append(digest(frame))
            small.append(shrink(frame))
    except (av.error.FFmpegError, OSError, AttributeError) as caught:  # no stream: None
        error = str(caught)
    return Reference(digests, np.array(small), error)


def digest(frame: np.ndarray) -> bytes:
    content = np.ascontiguousarray(frame).data
    return hashlib.blake2b(content, digest_size=16, salt=str(frame.shape).encode()[:16]).digest()


def shrink(frame: np.ndarray) -> np.ndarray:
    return cv2.resize(np.ascontiguousarray(frame), (64, 64), interpolation=cv2.INTER_AREA)


def questions(count: int, seed: int, pixels: int = 0) -> list[list[int]]:
    """Frames to ask for, call by call: all of a short file, in an order that makes it seek."""
    draw = random.Random(seed)
    if count * pixels > 1e8:  # some seconds of full HD
        return [draw.choices(range(count), k=12) for _ in range(2)]
    if count <= 100:
        asked = draw.sample(range(count), count)
    else:
        asked = [0, count - 1, *draw.choices(range(count), k=30)]
    calls = []
    while asked:
        size = draw.choice((1, 1, 2, 8))
        calls.append(asked[:size])
        asked = asked[size:]
    starts = [draw.randrange(count) for _ in range(3)]
    return [*calls, *(list(range(s, min(count, s + 12))) for s in starts)]


def wrong_frames(reader: VideoReader, expected: Reference, *, exact: bool, seed: int) -> list[int]:
    """Indices at which a reader gives another frame than the plain decoding does.

    A frame that is not equal to the last bit must be near, and nearer than any frame around it
    that differs from it; a constant difference of colour is left aside.
    """
    wrong = []
    pixels = reader.height * reader.width
    for call in questions(len(expected.digests), seed, pixels):
        frames = reader.read(call)
        assert frames.shape == (len(call), reader.height, reader.width, 3)
        for index, frame in zip(call, frames, strict=True):
            if digest(frame) != expected.digests[index]:
                if exact or not nearest(shrink(frame), expected.small, index):
                    wrong.append(index)
    return wrong


def nearest(frame: np.ndarray, small: np.ndarray, index: int) -> bool:
    start = max(0, index - 12)
    around = small[start : index + 13].astype(np.float32)
    if np.abs(around[index - start] - frame).mean() > 6:
        return False
    centred = around - around.mean(axis=(1, 2), keepdims=True)
    own = frame - frame.mean(axis=(0, 1), dtype=np.float32, keepdims=True)
    distance = np.abs(centred - own).mean(axis=(1, 2, 3))
    alike = np.abs(centred - centred[index - start]).mean(axis=(1, 2, 3)) < 0.02
    return bool((distance[~alike] > 1.05 * distance[index - start]).all())


def have_ffmpeg() -> bool:
    return shutil.which("ffmpeg") is not None


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
