"""Multigrid training: larger batches of smaller clips, on a schedule of clip shapes.

Source: Wu et al., A multigrid method for efficiently training video models, CVPR 2020, as its
authors' code has it (slowfast/utils/multigrid.py and slowfast/datasets/multigrid_helper.py in
facebookresearch/SlowFast).
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from vidtrain.errors import UsageError


@dataclass(frozen=True)
class Shape:
    """What the clips of one optimizer step look like.

    Attributes:
        batch: Clips, as a multiple of those of a full-size step.
        num_frames: Frames of a clip, T.
        crop_size: Side of the crop, pixels.
    """

    batch: int
    num_frames: int
    crop_size: int


@dataclass(frozen=True)
class Multigrid:
    """A schedule of shapes whose batch grows as the clip shrinks: a step holds as much as before.

    A long cycle goes from the smallest base shape to the full one and stays with each for the same
    number of steps. A short cycle changes the crop from step to step: each of its own sizes, then
    the base shape's.

    Attributes:
        num_frames: T of the full shape.
        crop_size: Crop of the full shape, pixels.
        long_cycle: Base shapes as shares of the full (frames, crop); the last is (1, 1). Empty: the
            full shape throughout.
        short_cycle: Crops as shares of the full crop; none is larger than the base shape's. Empty:
            only the base shape.
        stages: Lengths of the stages of the training without multigrid, relative to each other, as
            a step-wise learning rate has them: each has a long cycle, but the last, which trains at
            the full shape and may be 0.
        lr_rule: How the learning rate follows the batch of the base shape: linear or sqrt. A short
            cycle does not change it.
    """

    num_frames: int
    crop_size: int
    long_cycle: tuple[tuple[float, float], ...] = ()
    short_cycle: tuple[float, ...] = ()
    stages: tuple[float, ...] = (94, 60, 42, 43)
    lr_rule: Literal["linear", "sqrt"] = "linear"

    def __post_init__(self) -> None:
        """Refuses values that make no schedule.

        Raises:
            UsageError: A value is out of range, or there is no cycle at all.
        """
        shares = [*self.short_cycle, *(share for pair in self.long_cycle for share in pair)]
        if not shares:
            raise UsageError("multigrid has neither a long_cycle nor a short_cycle; use "
                             "multigrid=none, short, long or both")  # fmt: skip
        if not all(0 < share <= 1 for share in shares):
            raise UsageError("multigrid.long_cycle and multigrid.short_cycle hold shares of the "
                             "full shape, above 0 and at most 1")  # fmt: skip
        if self.long_cycle and tuple(self.long_cycle[-1]) != (1, 1):
            raise UsageError(
                f"multigrid.long_cycle={self.long_cycle} must end with [1, 1], the full shape, "
                "which the model is used with"
            )
        if len(self.stages) < 2 or min(self.stages[:-1]) <= 0 or self.stages[-1] < 0:
            raise UsageError(
                f"multigrid.stages={self.stages} must hold two lengths or more, all above 0; the "
                "last, at the full shape, may be 0"
            )

    def epochs(self, count: int) -> tuple[tuple[Shape, ...], ...]:
        """Returns for each epoch the short cycle that its steps go through, again and again.

        Args:
            count: Epochs of the training.

        Raises:
            UsageError: There are too few for each base shape to have one.
        """
        cycles = [self._short_cycle(*pair) for pair in self.long_cycle or ((1.0, 1.0),)]
        clips = [sum(shape.batch for shape in cycle) / len(cycle) for cycle in cycles]
        phases = []
        for length in self.stages[:-1]:
            phases += [(cycle, length * clips[i] / sum(clips)) for i, cycle in enumerate(cycles)]
        # The last stage goes on at the full shape; it is shortened, in steps, as the others are.
        rest = self.stages[-1] / (sum(clips) / len(clips)) * clips[-1]
        phases[-1] = (cycles[-1], phases[-1][1] + rest)
        total, done, ends = sum(length for _, length in phases), 0.0, [0]
        for _, length in phases:
            done += length * count / total
            ends.append(round(done))
        if self.long_cycle and any(first == last for first, last in pairwise(ends)):
            fewer = "stages, for example [1, 0]" if len(self.stages) > 2 else "shapes in long_cycle"
            raise UsageError(
                f"train.epochs={count} are too few for multigrid.stages={list(self.stages)}: "
                f"of {len(self.stages) - 1} x {len(cycles)} shapes one would have no epoch; train "
                f"longer, or give fewer {fewer}"
            )
        return tuple(
            cycle
            for (cycle, _), (first, last) in zip(phases, pairwise(ends), strict=True)
            for _ in range(first, last)
        )

    def lr_factor(self, cycle: tuple[Shape, ...]) -> float:
        """Returns the factor on the learning rate during an epoch with this short cycle."""
        base = cycle[-1].batch
        return float(base) if self.lr_rule == "linear" else base**0.5

    def _short_cycle(self, frames_share: float, crop_share: float) -> tuple[Shape, ...]:
        """The shapes of a short cycle, the base shape last."""
        frames = max(1, round(self.num_frames * frames_share))
        base = max(1, round(self.crop_size * crop_share))
        crops = [min(base, max(1, round(self.crop_size * share))) for share in self.short_cycle]
        full = self.num_frames * self.crop_size**2
        return tuple(
            Shape(round(full / (frames * crop**2)), frames, crop) for crop in (*crops, base)
        )
