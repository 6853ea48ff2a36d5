"""Draws and encodes the clips of the synthetic dataset: shapes whose motion is the class.

Every frame is a torus: what leaves on one side enters on the other. Starts are uniform on it,
and looks, speeds and counts are drawn before the class is looked at. So a single frame has the
same distribution for every class, and any part of a video shows its motion as well as any other.
"""

import io
import math
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

CLASS_NAMES = (
    "move_left",
    "move_right",
    "move_up",
    "move_down",
    "circle_clockwise",
    "circle_counterclockwise",
)
_STRAIGHT = {"move_left": (-1, 0), "move_right": (1, 0), "move_up": (0, -1), "move_down": (0, 1)}
_TURNING = {"circle_clockwise": 1, "circle_counterclockwise": -1}

_FRAME_RATES = (
    Fraction(15),
    Fraction(20),
    Fraction(24000, 1001),
    Fraction(25),
    Fraction(30000, 1001),
)
_SIDES = range(96, 161, 8)  # pixels; even, as yuv420p asks
_MAX_ASPECT = 1.4  # so that a centre crop still shows most of the frame
_SECONDS = (1.0, 2.5)
_NUM_MOVING = (3, 5)  # one path for all of them
_NUM_STILL = (1, 3)
_NUM_JITTERING = (1, 2)
_JITTER = 1.5  # pixels, standard deviation around a fixed place: motion without direction
# In units of the shorter frame side.
_RADIUS = (0.10, 0.17)
_SPEED = (0.6, 1.0)  # per second
_TURN_RADIUS = (0.07, 0.11)  # tight: half a second is a good part of a turn


@dataclass(frozen=True)
class _Shape:
    """A painted shape: how far it covers each pixel, float32 (S, S, 1) in 0..1, and its colour."""

    cover: np.ndarray
    colour: np.ndarray

    def paint(self, frame: np.ndarray, x: float, y: float) -> None:
        """Paints into `frame`, float32 (H, W, 3) in 0..255, around pixel (x, y) on the torus."""
        height, width, _ = frame.shape
        span = np.arange(len(self.cover)) - len(self.cover) // 2
        place = np.ix_((round(y) + span) % height, (round(x) + span) % width)
        under = frame[place]
        frame[place] = under + self.cover * (self.colour - under)


def _cover(*, corners: int, hollow: bool, radius: float, angle: float) -> np.ndarray:
    """A regular polygon, a disc (`corners` 0), or the outline of either, with soft edges."""
    span = np.arange(-math.ceil(radius) - 1, math.ceil(radius) + 2)
    dx, dy = span[None, :], span[:, None]
    if corners:
        normals = angle + 2 * math.pi * np.arange(corners) / corners
        distance = np.max([dx * math.cos(a) + dy * math.sin(a) for a in normals], axis=0)
        edge = radius * math.cos(math.pi / corners)
    else:
        distance, edge = np.hypot(dx, dy), radius
    cover = np.clip(edge - distance + 0.5, 0, 1)
    if hollow:
        cover -= np.clip(0.55 * edge - distance + 0.5, 0, 1)
    return cover[..., None].astype(np.float32)


def _shapes(rng: np.random.Generator, count: int, short_side: int) -> list[_Shape]:
    return [
        _Shape(
            cover=_cover(
                corners=int(rng.choice([0, 3, 4, 6])),
                hollow=bool(rng.random() < 0.3),
                radius=rng.uniform(*_RADIUS) * short_side,
                angle=rng.uniform(0, 2 * math.pi),
            ),
            # One channel bright, one dark: seen on every background.
            colour=rng.permutation(
                [rng.uniform(200, 255), rng.uniform(0, 255), rng.uniform(0, 60)]
            ).astype(np.float32),
        )
        for _ in range(count)
    ]


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A cloudy background that tiles, float32 (H, W, 3) around mid grey."""
    y, x = np.meshgrid(np.arange(height) / height, np.arange(width) / width, indexing="ij")
    picture = np.full((height, width, 3), 1.0) * rng.uniform(80, 150, 3)
    for _ in range(6):
        waves = rng.integers(-5, 6, 2)
        phase = 2 * math.pi * (waves[0] * x + waves[1] * y + rng.random())
        picture += np.cos(phase)[..., None] * rng.uniform(-12, 12, 3)
    return picture.astype(np.float32)


def _path(
    rng: np.random.Generator, motion: str, seconds: np.ndarray, short_side: int
) -> np.ndarray:
    """Offsets in pixels from the start, (len(seconds), 2) as (x, y); y grows downwards."""
    speed = rng.uniform(*_SPEED) * short_side
    radius = rng.uniform(*_TURN_RADIUS) * short_side
    phase = rng.uniform(0, 2 * math.pi)
    if motion in _STRAIGHT:
        return speed * seconds[:, None] * np.array(_STRAIGHT[motion])
    angle = phase + _TURNING[motion] * speed / radius * seconds
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return radius * (circle - circle[0])


def draw_clip(rng: np.random.Generator, motion: str) -> tuple[np.ndarray, Fraction]:
    """Draws one clip of class `motion`, a member of `CLASS_NAMES`.

    Returns:
        The frames, uint8 (T, H, W, 3) RGB, and the frame rate.
    """
    width, height = (int(side) for side in rng.choice(_SIDES, 2))
    while max(width, height) > _MAX_ASPECT * min(width, height):
        width, height = (int(side) for side in rng.choice(_SIDES, 2))
    short_side = min(width, height)
    rate = _FRAME_RATES[rng.integers(len(_FRAME_RATES))]
    seconds = np.arange(round(rng.uniform(*_SECONDS) * rate)) / float(rate)

    counts = [
        int(rng.integers(low, high + 1)) for low, high in (_NUM_STILL, _NUM_JITTERING, _NUM_MOVING)
    ]
    shapes = _shapes(rng, sum(counts), short_side)
    starts = rng.uniform(0, 1, (len(shapes), 2)) * (width, height)
    offsets = [np.zeros((len(seconds), 2))] * counts[0]
    offsets += [rng.normal(0, _JITTER, (len(seconds), 2)) for _ in range(counts[1])]
    offsets += [_path(rng, motion, seconds, short_side)] * counts[2]
    # Else the moving shapes would always cover the others.
    order = rng.permutation(len(shapes))

    background = _texture(rng, height, width)
    grain = rng.normal(0, rng.uniform(1, 5), (height, width, 1)).astype(np.float32)
    frames = np.empty((len(seconds), height, width, 3), np.uint8)
    for t in range(len(seconds)):
        frame = background + np.roll(grain, rng.integers(0, (height, width)), axis=(0, 1))
        for i in order:
            shapes[i].paint(frame, *(starts[i] + offsets[i][t]))
        frames[t] = np.clip(frame, 0, 255)
    return frames, rate


def encode_h264(frames: np.ndarray, *, rate: Fraction, group_size: int) -> bytes:
    """Encodes uint8 (T, H, W, 3) RGB as an H.264 mp4 file with B-frames; H and W even.

    One encoder thread and fixed settings: the same frames give the same bytes.

    Args:
        frames: The frames in display order.
        rate: Frames per second.
        group_size: Most frames between two key frames.
    """
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {
            "preset": "veryfast",
            "crf": "23",
            "g": str(group_size),
            "bf": "2",
            # Macroblock-tree rate control gives other bytes from run to run, even on one thread.
            "x264-params": "b-adapt=0:mbtree=0",
        }
        for array in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()
