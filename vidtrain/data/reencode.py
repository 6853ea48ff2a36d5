"""Encoding one video anew for training: small, quick to decode, every frame at its time.

Frame i of the new file is frame i of the original, at the same time from the first frame. Pixels
are upright and square; matrix and range of the colours stay as they are.
"""

import math
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.filter import Graph
from av.video.frame import PictureType, VideoFrame

from vidtrain.data.decode_frames import FrameFolderReader
from vidtrain.data.packet_trust import NO_PTS
from vidtrain.data.packets import packet_table
from vidtrain.data.sequential import damaged, decode_all, frame_times
from vidtrain.data.video_file import file_key
from vidtrain.errors import InputError

MAX_TICKS_PER_SECOND = 1_000_000
# Planar and semi-planar YUV, whose matrix can stay what it is. All else becomes RGB first.
YUV = ("yuv", "nv1", "nv2", "p01")
SMPTE170M, MPEG_RANGE, RGB_MATRIX = 6, 1, 0  # FFmpeg's numbers


@dataclass(frozen=True)
class Settings:
    """How files are encoded.

    Attributes:
        short_side: Short side, pixels; smaller videos keep their size.
        gop: Most frames from one keyframe to the next.
        crf: Quality of x264.
        preset: Speed of x264.
        frame_folder_fps: Frames per second of frame folders.
    """

    short_side: int
    gop: int
    crf: int
    preset: str
    frame_folder_fps: float | None


@dataclass(frozen=True, eq=False)
class _Source:
    """A video to encode: sizes as shown, N frames in order.

    Attributes:
        stamps: What each decoded frame's own time stamp must be, int64 (N,); None: not compared.
        times: Time of each frame in units of 1 / ticks seconds, int64 (N,), from 0 on, rising.
    """

    path: str
    height: int
    width: int
    turn: tuple[bool, bool, bool]
    square: bool
    stamps: np.ndarray | None
    times: np.ndarray
    ticks: int
    rate: Fraction
    frames: Generator[VideoFrame, None, None]


def new_size(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Even height and width with at most this short side; a video is never made larger."""
    short = min(height, width)
    if short <= short_side:
        return max(2, height // 2 * 2), max(2, width // 2 * 2)
    scale = short_side / short
    return max(2, 2 * round(height * scale / 2)), max(2, 2 * round(width * scale / 2))


def reencode(path: str, target: str, settings: Settings) -> dict[str, Any]:
    """Encodes a video file, tar member or frame folder as mp4, and reads the result back.

    Returns:
        frames (their number) and seconds (how long they are shown).

    Raises:
        InputError: The video cannot be read to its end, or what was written is not it.
    """
    source = _open(path, settings)
    size = new_size(source.height, source.width, settings.short_side)
    _encode(source, target, size, settings)
    _check(source, target, size, settings.gop)
    with open(target, "rb") as file:
        os.fsync(file.fileno())
    seconds = float(source.times[-1]) / source.ticks + float(1 / source.rate)
    return {"frames": len(source.times), "seconds": round(seconds, 3)}


def _open(path: str, settings: Settings) -> _Source:
    if os.path.isdir(path):
        fps = settings.frame_folder_fps
        reader = FrameFolderReader(path, fps=fps)
        height, width = reader.read([0]).shape[1:3]
        times, ticks, rate = _even_times(reader.num_frames, fps)
        frames = (_from_rgb(reader.read([i])[0]) for i in range(reader.num_frames))
        turn = (False, False, False)
        return _Source(path, height, width, turn, True, None, times, ticks, rate, frames)
    table = packet_table(path)
    stamps = np.sort(table.pts) if table.fast else frame_times(*file_key(path))
    if (stamps == NO_PTS).any() or (np.diff(stamps) <= 0).any():
        times, ticks, rate = _even_times(len(stamps), table.fps)
    else:
        base = table.time_base
        times, ticks = (stamps - stamps[0]) * base.numerator, base.denominator
        if ticks > MAX_TICKS_PER_SECOND:
            times = np.rint(times * (MAX_TICKS_PER_SECOND / ticks)).astype(np.int64)
            ticks = MAX_TICKS_PER_SECOND
        rate = _fraction(table.fps)
    return _Source(path, table.height, table.width, table.turn, table.sar == 1, stamps, times,
                   ticks, rate, decode_all(path, strict=table.fast))  # fmt: skip


def _fraction(fps: float | None) -> Fraction:
    """Frames per second; 25 where nothing is known. 30000/1001 keeps its denominator."""
    return max(Fraction(fps or 25).limit_denominator(1001), Fraction(1, 1001))


def _even_times(count: int, fps: float | None) -> tuple[np.ndarray, int, Fraction]:
    rate = _fraction(fps)
    return np.arange(count, dtype=np.int64) * rate.denominator, rate.numerator, rate


def _from_rgb(image: np.ndarray) -> VideoFrame:
    return VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")


def _frames(source: _Source) -> Iterator[VideoFrame]:
    """The frames, each whole, of one size and at its time.

    Raises:
        InputError: They are not, or there are fewer or more than the packets tell.
    """
    number, first = 0, None
    try:
        for frame in source.frames:
            first = first or frame
            if (frame.height, frame.width, frame.format.name) != (
                first.height, first.width, first.format.name,
            ):  # fmt: skip
                raise InputError(
                    f"The picture size or pixel format of {source.path} changes at frame {number}; "
                    "convert it to one."
                )
            expected = (
                source.stamps[number : number + 1].tolist() if source.stamps is not None else []
            )
            if frame.is_corrupt or (expected and expected[0] not in (frame.pts, NO_PTS)):
                raise damaged(source.path, number, "its data is damaged")
            yield frame
            number += 1
    except av.error.FFmpegError as error:
        raise damaged(source.path, number, str(error.strerror)) from None
    if number != len(source.times):
        raise damaged(source.path, number, f"{len(source.times)} are stated")


class _Shaper:
    """Turns, scales and converts the frames of one source to 8-bit 4:2:0.

    Args:
        frame: Its first frame.
        size: Height and width to make, as shown.
    """

    def __init__(self, source: _Source, frame: VideoFrame, size: tuple[int, int]) -> None:
        self._rgb = not frame.format.name.startswith(YUV) or int(frame.colorspace) == RGB_MATRIX
        self.matrix = SMPTE170M if self._rgb else int(frame.colorspace)
        full = frame.format.name.startswith("yuvj")
        self.range = MPEG_RANGE if self._rgb else 2 if full else int(frame.color_range)
        swap, mirror_columns, mirror_rows = source.turn
        height, width = size[::-1] if swap else size
        same = source.square and 0 <= frame.height - height < 2 and 0 <= frame.width - width < 2
        bounds = f"out_range={('auto', 'tv', 'pc')[self.range]}"
        if self._rgb:
            bounds += ":out_color_matrix=smpte170m"
        flags = "flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
        steps: list[tuple[str, str | None]] = []
        steps += [("crop", f"{width}:{height}:0:0")] if same else []
        steps += [("scale", f"{width}:{height}:{flags}:{bounds}"), ("format", "yuv420p")]
        steps += [("transpose", "dir=cclock_flip")] if swap else []
        steps += [("hflip", None)] if mirror_columns else []
        steps += [("vflip", None)] if mirror_rows else []
        name = "rgb24" if self._rgb else frame.format.name
        tags = "" if self._rgb else f":colorspace={self.matrix}:range={self.range}"
        self._graph = Graph()
        self._graph.threads = 1
        nodes = [self._graph.add(
            "buffer", f"video_size={frame.width}x{frame.height}:pix_fmt={name}:time_base=1/1{tags}"
        )]  # fmt: skip
        nodes += [self._graph.add(step, argument) for step, argument in steps]
        self._graph.link_nodes(*nodes, self._graph.add("buffersink"))
        self._graph.configure()

    def shape(self, frame: VideoFrame) -> VideoFrame:
        """Returns a new frame without time stamp and without the old one's coding type."""
        self._graph.push(_from_rgb(frame.to_ndarray(format="rgb24", threads=1))
                         if self._rgb and frame.format.name != "rgb24" else frame)  # fmt: skip
        shaped = self._graph.vpull()
        shaped.pict_type = PictureType.NONE  # x264 would take the old file's keyframes over
        return shaped


def _encode(source: _Source, target: str, size: tuple[int, int], settings: Settings) -> None:
    lengths = np.diff(source.times, append=source.times[-1] + round(source.ticks / source.rate))
    shaper: _Shaper | None = None
    with av.open(target, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        for number, frame in enumerate(_frames(source)):
            if shaper is None:
                shaper = _Shaper(source, frame, size)
                stream = container.add_stream("libx264", rate=source.rate, options={
                    "preset": settings.preset, "crf": str(settings.crf), "g": str(settings.gop),
                    "tune": "fastdecode", "a53cc": "0", "x264-params": "open-gop=0",
                })  # fmt: skip
                stream.height, stream.width = size
                codec = stream.codec_context
                codec.pix_fmt, codec.thread_count = "yuv420p", 1
                codec.time_base = Fraction(1, source.ticks)
                codec.colorspace, codec.color_range = shaper.matrix, shaper.range
                codec.color_primaries = int(frame.color_primaries)
                codec.color_trc = int(frame.color_trc)
            shaped = shaper.shape(frame)
            shaped.time_base = Fraction(1, source.ticks)
            shaped.pts, shaped.duration = int(source.times[number]), int(max(1, lengths[number]))
            container.mux(stream.encode(shaped))
        container.mux(stream.encode())


def _check(source: _Source, target: str, size: tuple[int, int], gop: int) -> None:
    """Raises InputError where the written file is not what it should be."""
    table = packet_table(target)
    keys = np.append(np.flatnonzero(table.keyframe), len(table.pts))
    times = np.sort(table.pts)
    seconds = (times - times[0]) * float(table.time_base)
    try:
        decoded = sum(not frame.is_corrupt for frame in decode_all(target, strict=True))
    except av.error.FFmpegError:
        decoded = -1
    problem = None
    if not table.fast:
        problem = str(table.slow_reason)
    elif not len(times) == decoded == len(source.times):
        problem = f"{len(source.times)} frames went in, {len(times)} were written, {decoded} decode"
    elif not np.allclose(seconds, source.times / source.ticks, rtol=0, atol=0.1 / source.ticks):
        problem = "its frames are not at their times"
    elif (table.height, table.width) != size or table.sar != 1 or any(table.turn):
        problem = f"it is {table.width}x{table.height}, not {size[1]}x{size[0]}"
    elif math.isnan(seconds[-1]) or np.diff(keys).max() > gop:
        problem = f"its keyframes are up to {np.diff(keys).max()} frames apart"
    if problem is not None:
        raise InputError(
            f"{source.path} was encoded wrongly ({problem}): the new file is not kept. Leave the "
            "video out, and please report this with the file."
        )
