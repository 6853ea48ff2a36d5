"""Small video files of every kind, whose frames carry their own number."""

import io
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from vidtrain.data.reading import DECODERS
from vidtrain.errors import UsageError

HEIGHT, WIDTH = 48, 64
TICK = Fraction(1, 600)


def numbered(number: int) -> np.ndarray:
    """A moving pattern, (48, 64, 3) uint8, with a number below 256 as eight squares on top."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    moving = [x * 3 + number * 7, y * 5 + number * 3, x + y + number * 11]
    frame = np.stack(moving, axis=-1).astype(np.uint8)
    for bit in range(8):
        frame[:8, bit * 8 : bit * 8 + 8] = 255 * (number >> bit & 1)
    return frame


def number_of(frame: np.ndarray) -> int:
    """The number that a decoded frame carries."""
    return sum(1 << bit for bit in range(8) if frame[4, bit * 8 + 4].mean() > 127)


def encode(
    path: Path,
    *,
    codec: str = "libx264",
    frames: int = 60,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    ticks: Sequence[int] | None = None,
    keyframes: Sequence[int] = (),
    rotation: tuple[Any, ...] | None = None,
) -> Path:
    """Writes numbered frames at 30 fps, or at the given times in 1/600 s."""
    if codec not in av.codecs_available:
        pytest.skip(f"the installed PyAV has no encoder {codec}")
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream: Any = container.add_stream(codec, rate=30, options=options or {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.time_base = TICK
        if rotation:
            stream.set_display_rotation(*rotation)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
            frame.pts, frame.time_base = ticks[number] if ticks else number * 20, TICK
            if number in keyframes:
                frame.pict_type = PictureType.I
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def sound_only(path: Path) -> Path:
    """Writes a second of silence."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        for start in range(0, 48000, 1024):
            frame = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
            frame.sample_rate, frame.pts = 48000, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def hide_first(path: Path, frames: int) -> Path:
    """Lets the edit list of an mp4 file begin at a later frame, as a stream copy of a cut does."""
    data = bytearray(path.read_bytes())
    place = data.index(b"elst") + 16  # type, version, count and duration: 4 bytes each
    begin = int.from_bytes(data[place : place + 4], "big")
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        begin += round(frames / 30 / stream.time_base)
    data[place : place + 4] = begin.to_bytes(4, "big")
    path.write_bytes(data)
    return path


def need_decoder(decoder: str, folder: Path) -> None:
    """Skips the test where a back end is not installed, or is without FFmpeg's libraries."""
    if decoder == "pyav":
        return
    pytest.importorskip(decoder)
    try:
        DECODERS[decoder](str(encode(folder / "probe.mp4", frames=3, options={"bf": "0"}))).close()
    except UsageError as error:
        pytest.skip(str(error))
