"""vidtrain's own input path, whole and in steps, as endless streams of batches."""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import torch

from vidtrain.benchmarking import floor
from vidtrain.benchmarking.patterns import EVAL_CLIPS, EVAL_CROPS, Pattern, Sample, wanted_frames
from vidtrain.data.augment import to_input
from vidtrain.data.clip_samplers import ConstantClips, RandomClip, TsnSegments
from vidtrain.data.eval_loading import EvalLoader, EvalViews, ViewWindow
from vidtrain.data.loading import ClipBatch, Plan, Reading, TrainClips, train_batches
from vidtrain.data.video import Video, VideoList

# How a batch is used once it is there: left alone, made into what a model takes on the CPU (as
# other programs' loaders do), or on the GPU.
USES = ("loader", "on_cpu", "on_gpu")
MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
READING = Reading(num_workers=1)


@dataclass(frozen=True)
class InOrder(Plan):
    """Batches in the order of the list, epoch after epoch, as all programs are given them."""

    def micro_batches(self, *, seed: int, rank: int, start_step: int) -> Iterator[list]:
        """Yields (epoch, video index) keys, without end."""
        for epoch in itertools.count():
            for first in range(0, self.num_videos, self.batch_size):
                yield [(epoch, i) for i in range(first, first + self.batch_size)]


def batches(
    stream: str, pattern: Pattern, samples: list[Sample], *, batch: int, seed: int
) -> Iterator[dict[str, Any]]:
    """Endless batches of one stream; each is told of by samples, shape, dtype and bytes.

    Args:
        stream: One of `floor.STEPS`, "dataset" (no loader process) or one of `USES`.
        pattern: How to sample.
        samples: What to sample, over and over; a multiple of `batch`.
        batch: Samples per batch.
        seed: Of crops and flips.
    """
    if stream in floor.STEPS:
        return _bare(stream, pattern, samples, batch)
    if pattern.evaluation:
        views_of = _eval_views(pattern, samples)
        if stream == "dataset":
            return _eval_dataset(views_of)
        return _eval_loader(views_of, stream)
    reading = replace(READING, pin_memory=stream == "on_gpu")
    clips = _train_clips(pattern, samples, seed, reading)
    plan = InOrder(len(samples), batch, accumulate=1, epochs=1, world_size=1)
    if stream == "dataset":
        return _train_dataset(clips, plan)
    return _train_loader(clips, plan, stream)


def _bare(
    step: str, pattern: Pattern, samples: list[Sample], batch: int
) -> Iterator[dict[str, Any]]:
    wanted = [wanted_frames(pattern, sample) for sample in samples]
    for first in itertools.cycle(range(0, len(samples), batch)):
        places = range(first, first + batch)
        decoded = sum(floor.walk(samples[i].path, wanted[i], step) for i in places)
        number = sum(len(wanted[i]) for i in places)
        yield {"samples": list(places), "decoded": decoded, "wanted": number, "bytes": 0}


def _train_clips(
    pattern: Pattern, samples: list[Sample], seed: int, reading: Reading
) -> TrainClips:
    """The start is given by letting the list name the clip's frames as all there are."""
    videos = tuple(
        Video(sample.path, number, str(number))
        if sample.start is None
        else Video(sample.path, number, str(number), pattern.span, first_frame=sample.start)
        for number, sample in enumerate(samples)
    )
    sampler: Any = (
        RandomClip(pattern.frames, pattern.stride)
        if pattern.stride
        else TsnSegments(pattern.frames, 1, jitter=True)
    )
    return TrainClips(
        VideoList(videos, ("any",)), sampler, num_frames=pattern.frames, crop_size=pattern.crop,
        short_side=(256, 320), flip=True, seed=seed, reading=reading,
    )  # fmt: skip


def _train_dataset(clips: TrainClips, plan: Plan) -> Iterator[dict[str, Any]]:
    shape = (plan.batch_size, clips.num_frames, clips.crop_size, clips.crop_size, 3)
    out = np.empty(shape, np.uint8)
    for keys in plan.micro_batches(seed=clips.seed, rank=0, start_step=0):
        yield _told(clips.batch(keys, out)["labels"].tolist(), torch.from_numpy(out))


def _train_loader(clips: TrainClips, plan: Plan, stream: str) -> Iterator[dict[str, Any]]:
    use = _use(stream)
    for batch in train_batches(clips, plan, rank=0, start_step=0):
        yield _told(batch.labels.tolist(), use(batch))


def _use(stream: str) -> Callable[[ClipBatch], torch.Tensor]:
    """What is done with a batch: nothing, or what the training does between loader and model."""
    if stream == "loader":
        return lambda batch: batch.clips
    if stream == "on_cpu":
        return _Normalised()

    def on_gpu(batch: ClipBatch) -> torch.Tensor:
        clips = batch.clips.to("cuda", non_blocking=True)
        video = to_input(clips, flips=batch.flips, mean=MEAN, std=STD)
        done = torch.cuda.Event(blocking=True)  # waits without using the core
        done.record()
        done.synchronize()
        return video

    return on_gpu


class _Normalised:
    """What other loaders do to a batch on the CPU, into a buffer that is used again.

    A training leaves this to the device; `augment.to_input` is written for that.
    """

    def __init__(self) -> None:
        self.out = torch.empty(0)

    def __call__(self, batch: ClipBatch) -> torch.Tensor:
        """Returns (B, 3, T, S, S) float32."""
        video = batch.clips.permute(0, 4, 1, 2, 3)
        if self.out.shape != video.shape:
            self.out = torch.empty(video.shape)
        for place, (clip, flip) in enumerate(zip(video, batch.flips.tolist(), strict=True)):
            self.out[place] = clip.flip(-1) if flip else clip
        mean, std = (255 * torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
        return self.out.sub_(mean).div_(std)


def _eval_views(pattern: Pattern, samples: list[Sample]) -> EvalViews:
    videos = tuple(Video(sample.path, n, str(n)) for n, sample in enumerate(samples))
    return EvalViews(
        videos=VideoList(videos, ("any",)),
        sampler=ConstantClips(pattern.frames, pattern.stride, num_clips=EVAL_CLIPS),
        crop_size=pattern.crop, short_side=pattern.crop, num_crops=EVAL_CROPS, reading=READING,
    )  # fmt: skip


def _eval_dataset(views_of: EvalViews) -> Iterator[dict[str, Any]]:
    for index in itertools.cycle(range(len(views_of.videos.videos))):
        windows = list(views_of.windows(index))
        yield _told([index], *(window.pixels for window in windows))


def _eval_loader(views_of: EvalViews, stream: str) -> Iterator[dict[str, Any]]:
    every, crop = EVAL_CLIPS * EVAL_CROPS, views_of.crop_size
    loader = EvalLoader(views_of, videos_per_group=1, batch_size=every, rank=0, world_size=1)
    seen, size = 0, 0
    while True:
        for window in itertools.chain.from_iterable(loader):
            made = window.pixels if stream == "loader" else _views(window, stream, crop)
            seen, size = seen + len(window.positions), size + made.nbytes
            if seen == window.num_views:  # long videos come in several windows
                yield _told([window.video], made) | {"bytes": size}
                seen, size = 0, 0


def _views(window: ViewWindow, stream: str, size: int) -> torch.Tensor:
    """All views of a window, cut one clip at a time, as an evaluation does it."""
    device = "cuda" if stream == "on_gpu" else "cpu"
    pixels = window.pixels.to(device)
    shape = (EVAL_CROPS, window.positions.shape[1], size, size, 3)
    views = torch.empty(shape, dtype=torch.uint8, device=device)
    for first in range(0, len(window.positions), EVAL_CROPS):
        window.cut(pixels, first, first + EVAL_CROPS, views)
        if stream == "on_gpu":
            to_input(views, mean=MEAN, std=STD)
    if stream == "on_gpu":
        done = torch.cuda.Event(blocking=True)
        done.record()
        done.synchronize()
    return pixels


def _told(samples: list[int], *pixels: torch.Tensor) -> dict[str, Any]:
    return {
        "samples": samples, "shape": list(pixels[0].shape[1:]),
        "dtype": str(pixels[0].dtype).removeprefix("torch."),
        "bytes": sum(part.nbytes for part in pixels),
    }  # fmt: skip


def start_process() -> None:
    """Keeps this process and those it starts to one thread each."""
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
