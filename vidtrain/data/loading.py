"""From a list of videos to batches of raw clips: keyed samples, resumable order, exact shards.

A training sample is a function of (seed, epoch, video index) and a training batch a function of
the step, so any worker count, any split over processes and any resume give the same batches.
Evaluation batches are fixed groups of videos, dealt out whole: each video is seen exactly once.
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from vidtrain import randomness
from vidtrain.data import views
from vidtrain.data.reading import open_video
from vidtrain.data.video import Video, VideoList
from vidtrain.errors import InputError

Sampler = Callable[[int, float | None, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Reading:
    """How files are read and loader processes run.

    Attributes:
        decoder: pyav or decord.
        frame_folder_fps: Frames per second of frame folders; None: unknown.
        num_workers: Loader processes; 0 reads in the calling process.
        prefetch_batches: Batches each worker keeps ready.
        timeout_seconds: Longest wait for one batch; 0: no limit.
        pin_memory: Page-locked batches, for fast copies to a GPU.
    """

    decoder: str = "pyav"
    frame_folder_fps: float | None = None
    num_workers: int = 0
    prefetch_batches: int = 2
    timeout_seconds: float = 300.0
    pin_memory: bool = False


@dataclass(frozen=True)
class Plan:
    """The arithmetic of training batches.

    Attributes:
        num_videos: Videos of the training split.
        batch_size: Clips per optimizer step over all processes and micro-batches.
        accumulate: Micro-batches per optimizer step.
        epochs: Epochs of the training.
        world_size: Number of processes.
    """

    num_videos: int
    batch_size: int
    accumulate: int
    epochs: int
    world_size: int

    @property
    def micro_batch(self) -> int:
        """Clips of one forward pass of one process."""
        return self.batch_size // (self.accumulate * self.world_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; the last, incomplete batch of an epoch is left out."""
        return self.num_videos // self.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    def micro_batches(self, *, seed: int, rank: int, start_step: int) -> Iterator[list]:
        """Yields this rank's micro-batches from a step to the end, as (epoch, video index) keys."""
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(start_step, self.total_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                rng = randomness.generator(seed, randomness.ORDER, epoch)
                order = rng.permutation(self.num_videos)
            start = step % self.steps_per_epoch * self.batch_size + rank * self.micro_batch
            for micro in range(self.accumulate):
                first = start + micro * self.micro_batch * self.world_size
                yield [(epoch, int(i)) for i in order[first : first + self.micro_batch]]


@dataclass(frozen=True)
class ClipBatch:
    """Raw clips and where they come from.

    Attributes:
        clips: (B, T, S, S, 3) uint8 RGB; in evaluation B counts views.
        labels: (B,) int64.
        flips: (B,) bool, which clips to mirror.
        videos: (B,) int64, index into the list of videos.
        frames: (B, T) int64, source frame of each frame of each clip.
    """

    clips: torch.Tensor
    labels: torch.Tensor
    flips: torch.Tensor
    videos: torch.Tensor
    frames: torch.Tensor

    def pin_memory(self) -> "ClipBatch":
        """Returns the batch with page-locked clips (called by the loader)."""
        return ClipBatch(self.clips.pin_memory(), self.labels, self.flips, self.videos, self.frames)


@dataclass(frozen=True)
class TrainClips(Dataset):
    """Training samples: item (epoch, index) is one randomly cut clip of one video.

    Attributes:
        videos: The training split.
        sampler: Picks frame indices.
        crop_size: Side of the crop, pixels.
        short_side: Range of the short-side jitter, pixels.
        flip: Mirror half of the clips.
        seed: The run's seed.
        reading: How to read.
    """

    videos: VideoList
    sampler: Sampler
    crop_size: int
    short_side: tuple[int, int]
    flip: bool
    seed: int
    reading: Reading

    def __getitem__(self, key: tuple[int, int]) -> ClipBatch | str:
        """Returns a batch of one clip, or the message of an unreadable video."""
        epoch, index = key
        rng = randomness.generator(self.seed, randomness.SAMPLE, epoch, index)

        def cut(frames: np.ndarray) -> list[np.ndarray]:
            box = views.random_crop_box(
                *frames.shape[1:3], crop_size=self.crop_size, short_side=self.short_side, rng=rng
            )
            return [views.cut(frames, box, self.crop_size)]

        flip = self.flip and bool(rng.integers(2))
        return _read(self.videos.videos[index], index, self.sampler, rng, cut, self.reading, flip)


@dataclass(frozen=True)
class EvalViews(Dataset):
    """Evaluation samples: item i is all views of video i.

    Attributes:
        videos: The split to evaluate.
        sampler: Picks frame indices, one row per temporal view.
        crop_size: Side of the crop, pixels.
        short_side: Short side that crops are cut from, pixels.
        num_crops: 1 or 3 crops per temporal view.
        reading: How to read.
    """

    videos: VideoList
    sampler: Sampler
    crop_size: int
    short_side: int
    num_crops: int
    reading: Reading

    def __getitem__(self, index: int) -> ClipBatch | str:
        """Returns the video's views, temporal views outermost, or the message of an error."""

        def cut(frames: np.ndarray) -> list[np.ndarray]:
            boxes = views.eval_crop_boxes(
                *frames.shape[1:3],
                short_side=self.short_side,
                crop_size=self.crop_size,
                num_crops=self.num_crops,
            )
            return [views.cut(frames, box, self.crop_size) for box in boxes]

        rng = randomness.generator(0, randomness.SAMPLE, index)
        return _read(self.videos.videos[index], index, self.sampler, rng, cut, self.reading, False)


def _read(
    video: Video,
    index: int,
    sampler: Sampler,
    rng: np.random.Generator,
    cut: Callable[[np.ndarray], list[np.ndarray]],
    reading: Reading,
    flip: bool,
) -> ClipBatch | str:
    """Reads the union of all wanted frames once and cuts the views from it."""
    try:
        with open_video(video, reading.decoder, reading.frame_folder_fps) as reader:
            indices = sampler(reader.num_frames, reader.fps, rng)
            union, positions = np.unique(indices, return_inverse=True)
            frames = reader.read(union.tolist())
    except InputError as error:
        # An exception would reach the main process wrapped in a worker's traceback.
        return str(error)
    crops = cut(frames)
    positions = positions.reshape(indices.shape)
    clips = np.stack([crop[row] for row in positions for crop in crops])
    count = len(clips)
    return ClipBatch(
        clips=torch.from_numpy(clips),
        labels=torch.full((count,), video.label),
        flips=torch.full((count,), flip),
        videos=torch.full((count,), index),
        frames=torch.from_numpy(np.repeat(indices, len(crops), axis=0)),
    )


def join_samples(samples: list[ClipBatch | str]) -> ClipBatch | str:
    """Joins samples into one batch; the first unreadable one stands for the batch."""
    good = [sample for sample in samples if isinstance(sample, ClipBatch)]
    if len(good) < len(samples):
        return next(sample for sample in samples if isinstance(sample, str))
    fields = ("clips", "labels", "flips", "videos", "frames")
    return ClipBatch(**{f: torch.cat([getattr(sample, f) for sample in good]) for f in fields})


def _start_worker(worker: int) -> None:
    """Keeps a worker to one thread, and leaves Ctrl-C to the main process."""
    del worker
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _batches(dataset: Dataset, keys: Iterable[list], reading: Reading) -> Iterator[ClipBatch]:
    workers = reading.num_workers
    # A fork of this process would copy its threads' locks; a server forks workers from a clean one.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vidtrain.data.loading"])
    parallel = {
        "multiprocessing_context": context,
        "prefetch_factor": reading.prefetch_batches,
        "timeout": reading.timeout_seconds,
        "worker_init_fn": _start_worker,
    }
    loader = DataLoader(
        dataset,
        batch_sampler=keys,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=join_samples,
        pin_memory=reading.pin_memory,
        **(parallel if workers else {}),  # type: ignore[arg-type]
    )
    try:
        for batch in loader:
            if isinstance(batch, str):
                raise InputError(batch)
            yield batch
    except RuntimeError as error:  # what torch says of workers that hang or die
        if "DataLoader" not in str(error):
            raise
        raise InputError(
            f"a loader process gave no batch ({str(error).splitlines()[0]}); if a file hangs, "
            "data.num_workers=0 shows where; if memory ran out, use fewer data.num_workers; if it "
            f"is only slow, raise data.timeout_seconds={reading.timeout_seconds:g}"
        ) from error


def train_batches(
    clips: TrainClips, plan: Plan, *, rank: int, start_step: int
) -> Iterator[ClipBatch]:
    """Yields this rank's micro-batches from a step to the end of the training.

    Raises:
        InputError: A video cannot be read; the message names it.
    """
    keys = plan.micro_batches(seed=clips.seed, rank=rank, start_step=start_step)
    return _batches(clips, keys, clips.reading)


def eval_batches(
    views_of: EvalViews, *, videos_per_batch: int, rank: int, world_size: int
) -> Iterator[ClipBatch]:
    """Yields this rank's batches of whole videos; over all ranks each video comes exactly once.

    Groups of videos do not depend on the number of processes, so neither do a video's logits.

    Raises:
        InputError: A video cannot be read; the message names it.
    """
    count = len(views_of.videos.videos)
    groups = [
        list(range(first, min(first + videos_per_batch, count)))
        for first in range(0, count, videos_per_batch)
    ]
    return _batches(views_of, groups[rank::world_size], views_of.reading)
