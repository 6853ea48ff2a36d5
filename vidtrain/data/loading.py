"""From a list of videos to training batches of raw clips: keyed samples, resumable order.

A sample is a function of (seed, epoch, video index, view) and a batch a function of the step (see
`plan`), so any worker count, any split over processes and any resume give the same batches.
"""

import dataclasses
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from vidtrain import randomness
from vidtrain.data import views, workers
from vidtrain.data.clip_samplers import with_frames
from vidtrain.data.multigrid import Shape
from vidtrain.data.plan import Plan
from vidtrain.data.reading import open_video
from vidtrain.data.slots import ClipBatch, SlotPool, as_batch, in_slot
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
class TrainClips:
    """Training samples: a key is one or more randomly cut clips of one video.

    A key is (epoch, index), or (epoch, index, n) where a video comes for the n-th time after its
    first in an epoch.

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

    def batch_shape(self, count: int) -> tuple[int, int, int, int, int]:
        """Returns (B, T, S, S, 3) of the clips of some videos."""
        size = self.crop_size
        return count * self.views_per_decode, self.num_frames, size, size, 3

    def num_bytes(self, count: int) -> int:
        """Returns the bytes that the clips of some videos take."""
        return int(np.prod(self.batch_shape(count)))

    def shaped(self, shape: Shape | None) -> "TrainClips":
        """Returns the samples with clips of another shape; None: as they are.

        A smaller crop may come from a frame scaled down further, down to where it covers as much of
        the frame as the full crop did.

        Source: Wu et al., multigrid, CVPR 2020; slowfast/datasets/kinetics.py of
        facebookresearch/SlowFast.
        """
        if shape is None:
            return self
        smallest = round(self.short_side[0] * shape.crop_size / self.crop_size)
        fewer = shape.num_frames < self.num_frames
        return dataclasses.replace(
            self,
            num_frames=shape.num_frames,
            crop_size=shape.crop_size,
            short_side=(max(shape.crop_size, smallest), self.short_side[1]),
            sampler=with_frames(self.sampler, shape.num_frames) if fewer else self.sampler,
        )

    def batch(self, keys: list, clips: np.ndarray | None = None,
              at: Callable[[int], None] = lambda video: None) -> dict[str, Any]:  # fmt: skip
        """Reads one batch.

        Args:
            keys: Of each video.
            clips: (B, T, S, S, 3) uint8 to write to; None: made here.
            at: Called with the index of the video that is read next; -1 at the end.

        Returns:
            The fields of a `ClipBatch` as arrays.

        Raises:
            InputError: A video cannot be read, and nothing may stand in for it.
        """
        if clips is None:
            clips = np.empty(self.batch_shape(len(keys)), np.uint8)
        rows: list[dict[str, Any]] = []
        bad: dict[int, str] = {}
        for place, key in enumerate(keys):
            rows.append(self._sample(key, clips[place :: len(keys)], bad, at))
        at(-1)
        joined = {name: np.stack([row[name] for row in rows], axis=1) for name in rows[0]}
        flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in joined.items()}
        return flat | {"clips": clips, "bad": bad}

    def _sample(
        self, key: tuple[int, ...], out: np.ndarray, bad: dict[int, str],
        at: Callable[[int], None],
    ) -> dict[str, Any]:  # fmt: skip
        """Reads the video of a key, or one that stands in for it, into (views, T, S, S, 3)."""
        chosen, again = key[1], key[2:]
        for attempt in range(MOST_REPLACEMENTS + 1):
            # Short keys, as ever, for what is read first; longer ones never meet them.
            counters = (*key[:2], attempt, *again) if attempt or again else key
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


@dataclass(frozen=True)
class _SlotFiller(Dataset):
    """In a loader process: item (slot, keys, shape) is a batch, written into that slot."""

    clips: TrainClips
    buffers: torch.Tensor
    activity: workers.Activity

    def __getitem__(
        self, item: tuple[int, list, Shape | None]
    ) -> tuple[int, dict[str, Any] | InputError]:
        slot, keys, shape = item
        clips = self.clips.shaped(shape)
        out = in_slot(self.buffers, slot, clips.batch_shape(len(keys)))
        try:
            fields = clips.batch(keys, out.numpy(), self.activity.at)
        except InputError as error:
            # If raised, it would reach the main process wrapped in a worker's traceback.
            return slot, error
        return slot, fields | {"clips": out.shape}


def train_batches(
    clips: TrainClips, plan: Plan, *, rank: int, start_step: int
) -> Generator[ClipBatch, None, None]:
    """Yields this rank's micro-batches from a step to the end of the training.

    Loader processes write into shared buffers, which are used again: copy what you keep.

    Raises:
        InputError: A video cannot be read, or a loader process fails; the message names it.
        UsageError: The clip sampler cannot take as few frames as the plan asks for.
    """
    keys = plan.micro_batches(seed=clips.seed, rank=rank, start_step=start_step)
    wanted = (
        (batch, plan.shape(start_step + number // plan.accumulate))
        for number, batch in enumerate(keys)
    )
    videos, shapes = plan.micro_batch // plan.views_per_decode, plan.all_shapes or (None,)
    largest = max(clips.shaped(shape).num_bytes(videos * (shape.batch if shape else 1))
                  for shape in shapes)  # fmt: skip
    return _batches(clips, wanted, largest)


def statistics_batches(
    clips: TrainClips, plan: Plan, *, rank: int, step: int, count: int
) -> Generator[ClipBatch, None, None]:
    """Yields this rank's share of training clips that batch-norm statistics are taken over.

    They are full-size micro-batches in an order of their own, which the training's does not depend
    on, cut and drawn as in training; after `count` of them it ends. They are read beside a
    `train_batches` that goes on afterwards.

    Args:
        clips: The training samples.
        plan: The training's plan.
        rank: Of this process.
        step: Steps taken; another step has other clips.
        count: Micro-batches per process.

    Raises:
        InputError: As `train_batches`.
    """
    seed = randomness.derive(clips.seed, randomness.STATISTICS, step)
    batch = plan.micro_batch * plan.world_size
    epochs = -(-count // (plan.num_videos * plan.views_per_decode // batch))
    own = dataclasses.replace(plan, batch_size=batch, accumulate=1, epochs=epochs, shapes=None)
    keys = islice(own.micro_batches(seed=seed, rank=rank, start_step=0), count)
    size = clips.num_bytes(plan.micro_batch // plan.views_per_decode)
    return _batches(dataclasses.replace(clips, seed=seed), ((key, None) for key in keys), size)


def _batches(
    clips: TrainClips, wanted: Iterable[tuple[list, Shape | None]], size: int
) -> Generator[ClipBatch, None, None]:
    """Yields the batches of keys and shapes, none of which takes more than `size` bytes."""
    reading = clips.reading
    under_way = max(1, reading.num_workers) * reading.prefetch_batches
    count = under_way + 3  # one in use, two on their way to the device
    if reading.num_workers:
        workers.check_machine(reading.num_workers, count * size)
    pool = SlotPool(count, size, shared=reading.num_workers > 0, pin=reading.pin_memory)
    activity = workers.Activity(reading.num_workers)
    loader = workers.loader(
        _SlotFiller(clips, pool.buffers, activity), reading,
        keys=((pool.take(), keys, shape) for keys, shape in wanted),
        workers=reading.num_workers, shared_bytes=0,
    )  # fmt: skip
    items = workers.guarded(lambda: iter(loader), activity, clips.videos, reading.timeout_seconds)
    try:
        for slot, fields in items:
            if isinstance(fields, InputError):
                raise fields
            yield as_batch(fields | {"clips": in_slot(pool.buffers, slot, fields["clips"])})
            pool.give_back(slot)
    finally:
        pool.close()
