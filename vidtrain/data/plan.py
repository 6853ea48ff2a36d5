"""The arithmetic of training batches: which videos, how many, of which shape, at which step."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate as running_sum

import numpy as np

from vidtrain import randomness
from vidtrain.data.multigrid import Multigrid, Shape
from vidtrain.data.order import epoch_order
from vidtrain.errors import UsageError


@dataclass(frozen=True)
class Plan:
    """All batches of a training, each a function of its step.

    Attributes:
        num_videos: Videos of the training split.
        batch_size: Clips per optimizer step over all processes and micro-batches, at full shape.
        accumulate: Micro-batches per optimizer step.
        epochs: Epochs of the training.
        world_size: Number of processes.
        views_per_decode: Clips that come from each decoded video; divides the micro-batch.
        weights: Relative chance of each video to be drawn; None: each comes once an epoch.
        shapes: The schedule of clip shapes; None: the model's own throughout.
    """

    num_videos: int
    batch_size: int
    accumulate: int
    epochs: int
    world_size: int
    views_per_decode: int = 1
    weights: tuple[float, ...] | None = None
    shapes: Multigrid | None = None

    def __post_init__(self) -> None:
        """Refuses a schedule of shapes that the videos do not suffice for.

        Raises:
            UsageError: An epoch does not hold the batches of one short cycle.
        """
        if self.shapes is None:
            return
        clips = self.num_videos * self.views_per_decode
        factor = max(sum(shape.batch for shape in cycle) for cycle in self._cycles or ())
        if factor * self.batch_size > clips:
            fits = clips // factor
            raise UsageError(
                f"one short cycle of multigrid takes {factor} x train.batch_size={self.batch_size} "
                f"clips, and an epoch has {clips}; use "
                + (f"train.batch_size={fits} or less, or multigrid=none" * bool(fits)
                   or "multigrid=none")
            )  # fmt: skip

    @property
    def micro_batch(self) -> int:
        """Clips of one forward pass of one process, at full shape."""
        return self.batch_size // (self.accumulate * self.world_size)

    @cached_property
    def epoch_steps(self) -> tuple[int, ...]:
        """Optimizer steps of each epoch; what is left at its end for no whole batch is left out."""
        return tuple(self._steps_of(epoch) for epoch in range(self.epochs))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return sum(self.epoch_steps)

    def lr_factor(self, step: int) -> float:
        """Returns the factor on the learning rate that the clips' shape asks for."""
        if self.shapes is None or self._cycles is None:
            return 1.0
        return self.shapes.lr_factor(self._cycles[self._position(step)[0]])

    def shape(self, step: int) -> Shape | None:
        """Returns the shape of a step's clips; None: the model's own."""
        if self._cycles is None:
            return None
        epoch, place = self._position(step)
        return self._cycles[epoch][place % len(self._cycles[epoch])]

    @property
    def all_shapes(self) -> tuple[Shape, ...]:
        """Every shape that comes up, each once, in the order of the training; () without any."""
        return tuple(dict.fromkeys(shape for cycle in self._cycles or () for shape in cycle))

    def micro_batches(self, *, seed: int, rank: int, start_step: int) -> Iterator[list]:
        """Yields this rank's micro-batches from a step to the end of the training.

        Each is a list of keys: (epoch, video index), or (epoch, video index, n) where a video
        comes in an epoch for the n-th time after its first.
        """
        drawn, order, before = -1, np.empty(0, np.int64), np.empty(0, np.int64)
        for step in range(start_step, self.total_steps):
            epoch, place = self._position(step)
            if epoch != drawn:
                drawn = epoch
                rng = randomness.generator(seed, randomness.ORDER, epoch)
                order, before = epoch_order(rng, self.num_videos, self.weights)
            sizes = self._sizes(epoch)
            rounds, part = divmod(place, len(sizes))
            start = rounds * sum(sizes) + sum(sizes[:part])
            count = sizes[part] // (self.accumulate * self.world_size)
            for micro in range(self.accumulate):
                first = start + (micro * self.world_size + rank) * count
                taken = zip(order[first : first + count].tolist(),
                            before[first : first + count].tolist(), strict=True)  # fmt: skip
                yield [(epoch, i, n) if n else (epoch, i) for i, n in taken]

    @cached_property
    def _cycles(self) -> tuple[tuple[Shape, ...], ...] | None:
        return None if self.shapes is None else self.shapes.epochs(self.epochs)

    @cached_property
    def _ends(self) -> list[int]:
        return list(running_sum(self.epoch_steps))

    def _position(self, step: int) -> tuple[int, int]:
        """Epoch of a step, and its number in that epoch."""
        epoch = bisect_right(self._ends, step)
        return epoch, step - (self._ends[epoch - 1] if epoch else 0)

    def _sizes(self, epoch: int) -> tuple[int, ...]:
        """Videos of the steps that an epoch goes through, again and again."""
        videos = self.batch_size // self.views_per_decode
        cycle = self._cycles[epoch] if self._cycles is not None else ()
        return tuple(videos * shape.batch for shape in cycle) or (videos,)

    def _steps_of(self, epoch: int) -> int:
        sizes = self._sizes(epoch)
        rounds, rest = divmod(self.num_videos, sum(sizes))
        return rounds * len(sizes) + sum(end <= rest for end in running_sum(sizes))


def check_batch(batch_size: int, *, accumulate: int, views: int, world_size: int) -> None:
    """Refuses a global batch that does not divide.

    Args:
        batch_size: Clips per optimizer step over all processes and micro-batches.
        accumulate: Micro-batches per optimizer step.
        views: Clips of each decoded video.
        world_size: Number of processes.

    Raises:
        UsageError: The message says what it must be a multiple of.
    """
    if batch_size % (accumulate * world_size):
        raise UsageError(
            f"train.batch_size={batch_size} is the batch over all processes; it must be a "
            f"multiple of train.accumulate={accumulate} times {world_size} processes"
        )
    micro = batch_size // (accumulate * world_size)
    if micro % views:
        raise UsageError(
            f"data.views_per_decode={views} must divide the micro-batch of {micro} clips "
            "(train.batch_size over train.accumulate and the processes)"
        )
