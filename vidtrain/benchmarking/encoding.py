"""Videos to measure with: written with PyAV's x264, no other program needed."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame

from vidtrain.data.video_file import open_video_file
from vidtrain.errors import InputError

SECONDS, RATE = 10, 30


@dataclass(frozen=True)
class Encoding:
    """How x264 writes a file.

    Attributes:
        gop: Most frames from one keyframe to the next.
        crf: Quality; lower is better and larger.
        preset: Speed of the encoder.
        tune: x264's tuning, or None.
    """

    gop: int
    crf: int = 23
    preset: str = "medium"
    tune: str | None = None


# What `vidtrain prepare` writes by default, with a short side of at most 320 pixels.
PREPARED = Encoding(gop=16, crf=20, tune="fastdecode")
PREPARED_SHORT_SIDE = 320


def encode(path: Path, frames: Iterable[VideoFrame], encoding: Encoding) -> None:
    """Writes frames of one size, even sides, as H.264 mp4 at 30 frames per second, atomically."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    options = {"preset": encoding.preset, "crf": str(encoding.crf), "g": str(encoding.gop)}
    if encoding.tune:
        options["tune"] = encoding.tune
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = {"movflags": "faststart"}
    with av.open(str(temporary), "w", format="mp4", options=flags) as container:
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, RATE)
        for number, frame in enumerate(frames):
            if number == 0:
                stream.width, stream.height = frame.width, frame.height
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            # x264 would follow the types that the frame had in its source.
            frame.pict_type = 0  # type: ignore[assignment]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    os.replace(temporary, path)


def decoded(path: str) -> Iterator[VideoFrame]:
    """All frames of a local video file."""
    container, stream = open_video_file(path)
    with container:
        try:
            yield from container.decode(stream)
        except av.error.FFmpegError as error:
            raise InputError(f"{path} cannot be decoded ({error.strerror}).") from None


def prepare(source: Path, path: Path) -> None:
    """Writes the smaller copy of a file, as `vidtrain prepare` does it by default."""

    def smaller() -> Iterator[VideoFrame]:
        for frame in decoded(str(source)):
            scale = min(1.0, PREPARED_SHORT_SIDE / min(frame.height, frame.width))
            width, height = (2 * round(side * scale / 2) for side in (frame.width, frame.height))
            yield frame.reformat(width, height, "yuv420p", interpolation="BICUBIC")

    encode(path, smaller(), PREPARED)


def looped(source: Path, *, height: int, width: int) -> Iterator[VideoFrame]:
    """Ten seconds of a real video: forwards and backwards again, filling the frame, cut to it."""
    frames = []
    for frame in decoded(str(source)):
        frames.append(_filling(frame, height, width))
        if len(frames) == SECONDS * RATE:
            break
    if len(frames) < 2:
        raise InputError(f"{source} has fewer than two frames; take a longer video.")
    there_and_back = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    for number in range(SECONDS * RATE):
        pixels = frames[there_and_back[number % len(there_and_back)]]
        yield VideoFrame.from_ndarray(pixels, format="rgb24")


def _filling(frame: VideoFrame, height: int, width: int) -> np.ndarray:
    """The middle of a frame that was scaled to fill height x width, uint8 RGB."""
    scale = max(height / frame.height, width / frame.width)
    pixels = frame.reformat(
        max(width, round(frame.width * scale)), max(height, round(frame.height * scale)),
        "rgb24", interpolation="BICUBIC",
    ).to_ndarray()  # fmt: skip
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    return np.ascontiguousarray(pixels[top : top + height, left : left + width])


def generated(seed: int, *, height: int, width: int) -> Iterator[VideoFrame]:
    """Ten seconds of a textured scene under a moving camera, things moving in it, and grain."""
    rng = np.random.default_rng(seed)
    side = int(1.5 * max(height, width))
    scene = _texture(rng, side)
    things = [_texture(rng, max(16, height // divisor)) for divisor in (3, 4, 6)]
    grain = rng.normal(0, 1.5, (height + 16, width + 16, 1)).astype(np.float32)
    room = np.array([side - height, side - width])
    phases = rng.uniform(0, 2 * np.pi, (len(things) + 1, 2))
    for number in range(SECONDS * RATE):
        time = 2 * np.pi * number / (SECONDS * RATE)
        place = ((np.sin(2 * time + phases[0]) + 1) / 2 * room).astype(int)
        frame = scene[place[0] : place[0] + height, place[1] : place[1] + width].copy()
        for speed, (thing, phase) in enumerate(zip(things, phases[1:], strict=True), start=3):
            size = np.array([height, width]) - len(thing)
            top, left = ((np.sin(speed * time + phase) + 1) / 2 * size).astype(int)
            frame[top : top + len(thing), left : left + len(thing)] = thing
        _counter(frame, number)
        shift = rng.integers(0, 16, 2)
        frame += grain[shift[0] : shift[0] + height, shift[1] : shift[1] + width]
        yield VideoFrame.from_ndarray(np.clip(frame, 0, 255).astype(np.uint8), format="rgb24")


def _texture(rng: np.random.Generator, side: int) -> np.ndarray:
    """Noise whose power falls with frequency as that of photographs, float32 (S, S, 3)."""
    falling = 1 / np.maximum(np.hypot(*np.meshgrid(*[np.fft.fftfreq(side) * side] * 2)), 1) ** 1.3
    layers = []
    for _ in range(3):
        noise = np.fft.ifft2(np.fft.fft2(rng.normal(size=(side, side))) * falling).real
        layers.append(128 + 40 * (noise - noise.mean()) / noise.std())
    grey = layers[0]
    return np.stack([0.7 * grey + 0.3 * layer for layer in layers], axis=-1).astype(np.float32)


def _counter(frame: np.ndarray, number: int) -> None:
    """Paints colour bars and a block that jumps, with sharp edges, as test pictures have them."""
    height, width = frame.shape[0] // 12, frame.shape[1] // 8
    for bar in range(8):
        colour = [255 * (bar >> bit & 1) for bit in range(3)]
        frame[:height, bar * width : (bar + 1) * width] = colour
    left = number % 8 * width
    frame[height : 2 * height, left : left + width] = 255 * (number // 8 % 2)


def write_groups(
    folder: Path, scenes: Sequence[tuple[str, int | Path]], sizes: Sequence[tuple[int, int, int]]
) -> Iterator[Path]:
    """Writes every scene in every (height, width, GOP); yields each file. Existing ones are kept.

    Files larger than `PREPARED_SHORT_SIDE` get a prepared copy, in a folder of its own.
    """
    for height, width, gop in sizes:
        group = folder / f"{width}x{height}_g{gop}"
        for name, scene in scenes:
            path = group / f"{name}.mp4"
            if not path.exists():
                make = looped if isinstance(scene, Path) else generated
                encode(path, make(scene, height=height, width=width), Encoding(gop))  # type: ignore[arg-type]
            yield path
            if min(height, width) > PREPARED_SHORT_SIDE:
                copy = folder / f"{group.name}_prepared" / path.name
                if not copy.exists():
                    prepare(path, copy)
                yield copy
