"""From a list of videos to training batches of raw clips: keyed samples, resumable order.

A sample is a function of (seed, epoch, video index, view) and a batch a function of the step, so
any worker count, any split over processes and any resume give the same batches.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from vidtrain import randomness
from vidtrain.data import views, workers
from vidtrain.data.reading import open_video
from vidtrain.data.slots import SlotPool
from vidtrain.data.video import VideoList
from vidtrain.errors import InputError, UsageError

Sampler = Callable[[int, float | None, np.random.Generator], np.ndarray]
# Videos tried in the place of an unreadable one before the sample is given up.
MOST_REPLACEMENTS = 10
HINT = "`vidtrain check` lists all bad videos in a file for data.quarantine."


@dataclass(frozen=True)
class Reading:
    """How files are read and loader processes run.

    Attributes:
        decoder: pyav, decord or torchcodec.
        frame_folder_fps: Frames per second of frame folders; None: unknown.
        num_workers: Loader processes; 0 reads in the calling process.
        prefetch_batches: Batches each worker keeps ready.
        timeout_seconds: Longest wait for one batch; 0: no limit.
        pin_memory: Page-locked batches, for fast copies to a GPU.
        index: File of the packet index; None: kept in memory.
    """

    decoder: str = "pyav"
    frame_folder_fps: float | None = None
    num_workers: int = 0
    prefetch_batches: int = 2
    timeout_seconds: float = 300.0
    pin_memory: bool = False
    index: str | None = None


@dataclass(frozen=True)
class Plan:
    """The arithmetic of training batches.

    Attributes:
        num_videos: Videos of the training split.
        batch_size: Clips per optimizer step over all processes and micro-batches.
        accumulate: Micro-batches per optimizer step.
        epochs: Epochs of the training.
        world_size: Number of processes.
        views_per_decode: Clips that come from each decoded video; divides the micro-batch.
    """

    num_videos: int
    batch_size: int
    accumulate: int
    epochs: int
    world_size: int
    views_per_decode: int = 1

    @property
    def micro_batch(self) -> int:
        """Clips of one forward pass of one process."""
        return self.batch_size // (self.accumulate * self.world_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps per epoch; the last, incomplete batch of an epoch is left out."""
        return self.num_videos * self.views_per_decode // self.batch_size

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    def micro_batches(self, *, seed: int, rank: int, start_step: int) -> Iterator[list]:
        """Yields this rank's micro-batches from a step to the end, as (epoch, video index) keys."""
        epoch, order = -1, np.empty(0, dtype=np.int64)
        batch, micro_batch = (n // self.views_per_decode for n in (self.batch_size,
                                                                   self.micro_batch))  # fmt: skip
        for step in range(start_step, self.total_steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                rng = randomness.generator(seed, randomness.ORDER, epoch)
                order = rng.permutation(self.num_videos)
            start = step % self.steps_per_epoch * batch + rank * micro_batch
            for micro in range(self.accumulate):
                first = start + micro * micro_batch * self.world_size
                yield [(epoch, int(i)) for i in order[first : first + micro_batch]]


@dataclass(frozen=True)
class ClipBatch:
    """Raw training clips and where they come from.

    With several views per decode, the first views of all videos come first, then the second ones:
    neighbours, which mixing pairs, are different videos.

    Attributes:
        clips: (B, T, S, S, 3) uint8 RGB; overwritten after the next batch has been asked for.
        labels: (B,) int64.
        flips: (B,) bool, which clips to mirror.
        videos: (B,) int64, index into the list of videos.
        frames: (B, T) int64, source frame of each frame of each clip.
        draws: (B,) int64, seed of each clip's augmentation.
        bad: Unreadable videos that others stand in for, by index, with what was wrong.
    """

    clips: torch.Tensor
    labels: torch.Tensor
    flips: torch.Tensor
    videos: torch.Tensor
    frames: torch.Tensor
    draws: torch.Tensor
    bad: dict[int, str]


@dataclass(frozen=True)
class TrainClips:
    """Training samples: a key (epoch, index) is one or more randomly cut clips of one video.

    Attributes:
        videos: The training split.
        sampler: Picks frame indices.
        num_frames: Frames of a clip, T.
        crop_size: Side of the crop, pixels.
        short_side: Range of the short-side jitter, pixels.
        flip: Mirror half of the clips.
        seed: The run's seed.
        reading: How to read.
        views_per_decode: Clips from each decoded video: the same frames, each with its own crop,
            flip and augmentation. Source: Hoffer et al., Augment your batch, CVPR 2020.
        crop_area: Share of the frame that a random resized crop covers, in place of the jitter.
        crop_aspect: Width over height of a random resized crop.
        replace: Let another video stand in for an unreadable one.
    """

    videos: VideoList
    sampler: Sampler
    num_frames: int
    crop_size: int
    short_side: tuple[int, int]
    flip: bool
    seed: int
    reading: Reading
    views_per_decode: int = 1
    crop_area: tuple[float, float] | None = None
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    replace: bool = False

    def batch(self, keys: list, clips: np.ndarray | None = None,
              at: Callable[[int], None] = lambda video: None) -> dict[str, Any]:  # fmt: skip
        """Reads one batch.

        Args:
            keys: (epoch, index) of each video.
            clips: (B, T, S, S, 3) uint8 to write to; None: made here.
            at: Called with the index of the video that is read next; -1 at the end.

        Returns:
            The fields of a `ClipBatch` as arrays.

        Raises:
            InputError: A video cannot be read, and nothing may stand in for it.
        """
        count, size = len(keys), self.crop_size
        if clips is None:
            shape = (count * self.views_per_decode, self.num_frames, size, size, 3)
            clips = np.empty(shape, np.uint8)
        rows: list[dict[str, Any]] = []
        bad: dict[int, str] = {}
        for place, (epoch, index) in enumerate(keys):
            rows.append(self._sample(epoch, index, clips[place::count], bad, at))
        at(-1)
        joined = {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]}
        flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in joined.items()}
        return flat | {"clips": clips, "bad": bad}

    def _sample(
        self, epoch: int, index: int, out: np.ndarray, bad: dict[int, str],
        at: Callable[[int], None],
    ) -> dict[str, Any]:  # fmt: skip
        """Reads the video of a key, or one that stands in for it, into (views, T, S, S, 3)."""
        chosen = index
        for attempt in range(MOST_REPLACEMENTS + 1):
            counters = (epoch, index, attempt) if attempt else (epoch, index)
            if attempt:
                draw = randomness.generator(self.seed, randomness.REPLACE, *counters)
                chosen = int(draw.integers(len(self.videos.videos)))
            at(chosen)
            try:
                return self._read(chosen, counters, out)
            except UsageError:  # a wrong setting is no bad video
                raise
            except InputError as error:
                if not self.replace:
                    raise InputError(f"{error} {HINT}") from None
                bad[chosen] = str(error)
        raise InputError(
            f"{len(bad)} videos in a row cannot be read; is the disk still there? "
            f"The first: {next(iter(bad.values()))}"
        )

    def _read(self, index: int, counters: tuple[int, ...], out: np.ndarray) -> dict[str, Any]:
        video = self.videos.videos[index]
        rng = randomness.generator(self.seed, randomness.SAMPLE, *counters)
        with open_video(video, self.reading.decoder, self.reading.frame_folder_fps) as reader:
            frames = self.sampler(reader.num_frames, reader.fps, rng)[0]
            boxes, flips = [], []
            for _ in range(self.views_per_decode):
                boxes.append(self._box(reader.height, reader.width, rng))
                flips.append(self.flip and bool(rng.integers(2)))
            reader.cut(frames.tolist(), boxes, list(out))
        count = self.views_per_decode
        draws = [randomness.derive(self.seed, randomness.AUGMENT, *counters, view)
                 for view in range(count)]  # fmt: skip
        return {
            "labels": np.full(count, video.label), "flips": np.array(flips),
            "videos": np.full(count, index), "frames": np.tile(frames, (count, 1)),
            "draws": np.array(draws, np.int64),
        }  # fmt: skip

    def _box(self, height: int, width: int, rng: np.random.Generator) -> views.Box:
        if self.crop_area is not None:
            return views.random_resized_crop_box(
                height, width, area=self.crop_area, aspect=self.crop_aspect, rng=rng
            )
        return views.random_crop_box(
            height, width, crop_size=self.crop_size, short_side=self.short_side, rng=rng
        )


def as_batch(fields: dict[str, Any]) -> ClipBatch:
    """Returns the arrays of `TrainClips.batch` as tensors that share their memory."""
    bad = fields.pop("bad")
    return ClipBatch(**{name: torch.as_tensor(array) for name, array in fields.items()}, bad=bad)


@dataclass(frozen=True)
class _SlotFiller(Dataset):
    """In a loader process: item (slot, keys) is a batch, written into that slot."""

    clips: TrainClips
    buffers: torch.Tensor
    activity: workers.Activity

    def __getitem__(self, key: tuple[int, list]) -> tuple[int, dict[str, Any] | InputError]:
        slot, keys = key
        try:
            fields = self.clips.batch(keys, self.buffers[slot].numpy(), self.activity.at)
        except InputError as error:
            # If raised, it would reach the main process wrapped in a worker's traceback.
            return slot, error
        return slot, {name: value for name, value in fields.items() if name != "clips"}


def train_batches(
    clips: TrainClips, plan: Plan, *, rank: int, start_step: int
) -> Iterator[ClipBatch]:
    """Yields this rank's micro-batches from a step to the end of the training.

    Loader processes write into shared buffers, which are used again: copy what you keep.

    Raises:
        InputError: A video cannot be read, or a loader process fails; the message names it.
    """
    reading, size = clips.reading, clips.crop_size
    under_way = max(1, reading.num_workers) * reading.prefetch_batches
    shape = (plan.micro_batch, clips.num_frames, size, size, 3)
    count = under_way + 3  # one in use, two on their way to the device
    if reading.num_workers:
        workers.check_machine(reading.num_workers, count * int(np.prod(shape)))
    pool = SlotPool(count, shape, shared=reading.num_workers > 0, pin=reading.pin_memory)
    activity = workers.Activity(reading.num_workers)
    micro_batches = plan.micro_batches(seed=clips.seed, rank=rank, start_step=start_step)
    loader = workers.loader(
        _SlotFiller(clips, pool.buffers, activity), reading,
        keys=((pool.take(), keys) for keys in micro_batches),
        workers=reading.num_workers, shared_bytes=0,
    )  # fmt: skip
    items = workers.guarded(lambda: iter(loader), activity, clips.videos, reading.timeout_seconds)
    try:
        for slot, fields in items:
            if isinstance(fields, InputError):
                raise fields
            yield as_batch(fields | {"clips": pool.buffers[slot]})
            pool.give_back(slot)
    finally:
        pool.close()
