"""Which frames of a video make a clip.

A sampler is called with a video's number of frames, its frame rate and a generator, and returns
int64 indices (views, T). It is told of the model's input by `clip_frames`, `sampling_rate` and
`target_fps`; samplers for evaluation also by `num_clips`.

Videos shorter than a clip: the clip starts at frame 0, and the last frame repeats. TsnSegments has
no length of clip: of a video with fewer frames than segments, each frame repeats in its place.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from vidtrain.errors import InputError, UsageError


@dataclass(frozen=True)
class _Spec:
    """A clip of T frames, a stride apart.

    Attributes:
        clip_frames: T.
        sampling_rate: Distance of two frames of a clip, in source frames.
        target_fps: Rate at which sampling_rate counts; None: the video's own.
    """

    clip_frames: int
    sampling_rate: int
    target_fps: float | None = None

    def __post_init__(self) -> None:
        for name in ("clip_frames", "sampling_rate"):
            if getattr(self, name) < 1:
                raise UsageError(f"clip sampler: {name}={getattr(self, name)} must be at least 1")
        if self.target_fps is not None and self.target_fps <= 0:
            raise UsageError(f"model.input.target_fps={self.target_fps} must be above 0")

    def stride(self, fps: float | None) -> float:
        """Distance of two frames of a clip, in source frames; may be a fraction."""
        if self.target_fps is None:
            return float(self.sampling_rate)
        if fps is None:
            raise InputError(
                f"model.input.target_fps={self.target_fps} needs the rate of each video, but "
                "this one has none; for frame folders set data.frame_folder_fps"
            )
        return self.sampling_rate * fps / self.target_fps

    def room(self, num_frames: int, stride: float) -> int:
        """Last frame that a clip can start at."""
        # Rounded as `clip` does it, or the last frame might be asked for twice.
        return max(0, num_frames - 1 - int((self.clip_frames - 1) * stride + 0.5))

    def clip(self, start: int, num_frames: int, stride: float) -> np.ndarray:
        """(T,) indices of the clip that starts at a frame."""
        offsets = np.floor(np.arange(self.clip_frames) * stride + 0.5).astype(np.int64)
        return np.minimum(start + offsets, num_frames - 1)


@dataclass(frozen=True)
class RandomClip(_Spec):
    """One clip at a random start, every start equally likely.

    Source: the dense sampling of Feichtenhofer et al., SlowFast, ICCV 2019, section 4.

    Attributes:
        max_sampling_rate: Draw each clip's distance of two frames from sampling_rate to this one;
            None: it is sampling_rate.
    """

    max_sampling_rate: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_sampling_rate is not None and self.max_sampling_rate < self.sampling_rate:
            raise UsageError(
                f"clip_sampler.train.max_sampling_rate={self.max_sampling_rate} is below "
                f"model.input.sampling_rate={self.sampling_rate}"
            )

    def __call__(self, num_frames: int, fps: float | None, rng: np.random.Generator) -> np.ndarray:
        """Returns (1, T) indices."""
        stride = self.stride(fps)
        if self.max_sampling_rate is not None:
            rate = int(rng.integers(self.sampling_rate, self.max_sampling_rate + 1))
            stride *= rate / self.sampling_rate
        start = int(rng.integers(self.room(num_frames, stride) + 1))
        return self.clip(start, num_frames, stride)[None]


@dataclass(frozen=True)
class ConstantClips(_Spec):
    """The same number of clips from every video: one in the middle, or several evenly spaced.

    The first of several starts at the first frame, the last ends with the last frame.

    Source: the 10-clip testing of Wang et al., Non-local networks, CVPR 2018, section 4.

    Attributes:
        num_clips: Clips per video.
    """

    num_clips: int = 1

    def __call__(self, num_frames: int, fps: float | None, rng: np.random.Generator) -> np.ndarray:
        """Returns (num_clips, T) indices; nothing is drawn."""
        stride = self.stride(fps)
        room = self.room(num_frames, stride)
        starts = [room / 2] if self.num_clips == 1 else np.linspace(0, room, self.num_clips)
        return np.stack([self.clip(int(s), num_frames, stride) for s in starts])


@dataclass(frozen=True)
class UniformClips(_Spec):
    """Consecutive clips that cover the whole video; the last ends with the last frame.

    Source: the uniform clip sampler of PyTorchVideo.

    Attributes:
        num_clips: Must be 1: the number of clips follows from the video's length.
        views_vary: Tells that videos differ in their number of views.
    """

    views_vary: ClassVar[bool] = True

    num_clips: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_clips != 1:
            raise UsageError(
                f"eval.num_clips={self.num_clips} has no meaning with clip_sampler=uniform, which "
                "covers each video; leave it out, or use clip_sampler=dense"
            )

    def __call__(self, num_frames: int, fps: float | None, rng: np.random.Generator) -> np.ndarray:
        """Returns (views, T) indices; nothing is drawn."""
        stride = self.stride(fps)
        room, span = self.room(num_frames, stride), max(1, round(self.clip_frames * stride))
        starts = [*range(0, num_frames - span, span), room]
        return np.stack([self.clip(start, num_frames, stride) for start in starts])


@dataclass(frozen=True)
class TsnSegments(_Spec):
    """One frame from each of T equal segments: random within it, or at fixed places.

    Source: Wang et al., Temporal segment networks, ECCV 2016, section 3.1.

    Attributes:
        jitter: Draw the place within each segment (training).
        num_clips: Without jitter: this many views, at evenly spaced places of the segments; one
            view takes the middle.
    """

    jitter: bool = False
    num_clips: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling_rate != 1 or self.target_fps is not None:
            raise UsageError(
                f"clip_sampler=tsn spreads frames over the whole video; model.input.sampling_rate="
                f"{self.sampling_rate} must be 1 and model.input.target_fps={self.target_fps} null"
            )

    def __call__(self, num_frames: int, fps: float | None, rng: np.random.Generator) -> np.ndarray:
        """Returns (1, T) or (num_clips, T) indices."""
        if self.jitter:
            places = rng.random((1, self.clip_frames))
        else:
            places = (np.arange(self.num_clips)[:, None] + 0.5) / self.num_clips
        indices = (np.arange(self.clip_frames) + places) * num_frames / self.clip_frames
        return np.minimum(indices.astype(np.int64), num_frames - 1)


def with_frames(sampler: object, frames: int) -> RandomClip | TsnSegments:
    """Returns the sampler that takes fewer frames from a video, as multigrid training asks.

    A clip lies anywhere between the frames' old distance and the old clip's span: its rate is drawn
    from sampling_rate to sampling_rate * (T // frames). Segments go on covering the whole video.

    Source: Wu et al., multigrid, CVPR 2020; get_random_sampling_rate in slowfast/datasets/utils.py
    of facebookresearch/SlowFast.

    Args:
        sampler: The training's sampler.
        frames: Frames to take, at most those that it takes now.

    Raises:
        UsageError: It is a sampler of another kind.
    """
    if isinstance(sampler, TsnSegments):
        return replace(sampler, clip_frames=frames)
    if not isinstance(sampler, RandomClip):
        raise UsageError(
            f"multigrid takes fewer frames of a clip, and does not know how with clip_sampler.train"
            f"={type(sampler).__name__}; use clip_sampler=dense or tsn, or multigrid=short"
        )
    widest = (sampler.max_sampling_rate or sampler.sampling_rate) * (sampler.clip_frames // frames)
    return replace(sampler, clip_frames=frames, max_sampling_rate=widest)


def describe(indices: np.ndarray) -> str:
    """Returns the (T,) frame indices of one clip in words: all of them, or the first and last."""
    shown = [str(index) for index in indices.tolist()]
    return " ".join(shown if len(shown) <= 16 else [*shown[:8], "...", *shown[-4:]])
