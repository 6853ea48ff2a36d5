"""Lengths of time in a training, written as text and converted to optimizer steps once.

"5 epochs", "0.5 epoch", "1000 steps", "2e6 samples" and "30%" of the training; a bare number is
epochs. Epochs may differ in length, as they do with multigrid training.
"""

import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import accumulate, takewhile
from itertools import count as counting

from vidtrain.errors import UsageError

Length = str | float | int

# Two digits of exponent: more would be a number that takes minutes to write out.
_LENGTH = re.compile(
    r"\s*(?P<amount>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,2})?)"
    r"\s*(?P<unit>epochs?|steps?|samples?|%)?\s*"
)


@dataclass(frozen=True)
class Timeline:
    """Optimizer steps and epochs of a whole training.

    Attributes:
        epoch_steps: Optimizer steps of each epoch, each at least 1.
        batch_size: Clips that a step counts as where lengths are given in samples.
    """

    epoch_steps: tuple[int, ...]
    batch_size: int

    @cached_property
    def _ends(self) -> tuple[int, ...]:
        return tuple(accumulate(self.epoch_steps))

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self._ends[-1]

    def epoch_of(self, step: int) -> float:
        """Returns how many epochs are done after so many steps."""
        return float(self._epoch(step))

    def clock(self, step: int) -> float:
        """Returns a step on an even timeline, whose epochs all have as many as the longest has.

        What follows the clock is the same at the same epoch, however steps are spread over epochs.
        """
        return float(self._epoch(step) * max(self.epoch_steps))

    def step_at(self, epoch: float | Fraction) -> int:
        """Returns the steps that so many epochs take, to the nearest step."""
        whole = min(int(epoch), len(self.epoch_steps) - 1)
        before = self._ends[whole] - self.epoch_steps[whole]
        return before + round((Fraction(epoch) - whole) * self.epoch_steps[whole])

    def steps(self, length: Length, where: str) -> int:
        """Returns a length of time from the start of the training in steps, to the nearest.

        Args:
            length: As in the module's first lines.
            where: Config key, for messages.

        Raises:
            UsageError: It is not a length of time.
        """
        amount, unit = parse(length, where)
        if unit == "step":
            return round(amount)
        if unit == "sample":
            return round(amount / self.batch_size)
        return self.step_at(self._in_epochs(amount, unit))

    def _epoch(self, step: int) -> Fraction:
        index = min(bisect_right(self._ends, step), len(self.epoch_steps) - 1)
        before = self._ends[index] - self.epoch_steps[index]
        return index + Fraction(step - before, self.epoch_steps[index])

    def _in_epochs(self, amount: Fraction, unit: str) -> Fraction:
        return amount * len(self.epoch_steps) / 100 if unit == "%" else amount


def parse(length: Length, where: str) -> tuple[Fraction, str]:
    """Returns the amount and the unit of a length: epoch, step, sample or %.

    Args:
        length: Text or a number of epochs.
        where: Config key, for messages.

    Raises:
        UsageError: It is not a length of time.
    """
    found = _LENGTH.fullmatch(str(length))
    if found is None:
        raise UsageError(
            f"{where}={length!r} is not a length of time; write '5 epochs', '0.5 epoch', "
            "'1000 steps', '2e6 samples' or '30%' (of the training); a bare number is epochs"
        )
    return Fraction(found["amount"]), (found["unit"] or "epoch").rstrip("s")


def recurring(
    timeline: Timeline, every: Length, where: str, *, start: int = 0
) -> Callable[[int], bool]:
    """Returns whether something is due after so many steps: at `start` and then again and again.

    Args and errors are those of `occasions`.
    """
    return occasions(timeline, every, where, start=start).__contains__


def occasions(
    timeline: Timeline, every: Length, where: str, *, start: int = 0
) -> range | frozenset[int]:
    """Returns the numbers of steps after which something is due, `start` the first of them.

    What comes every epoch comes at the ends of epochs, whatever their lengths.

    Args:
        timeline: Steps and epochs of the training.
        every: Time between two occurrences.
        where: Config key of it, for messages.
        start: Step of the first one.

    Raises:
        UsageError: It is not a length of time, or less than a step.
    """
    amount, unit = parse(every, where)
    last = timeline.total_steps
    if unit in ("step", "sample"):
        period = timeline.steps(every, where)
        shortest: float | Fraction = period
        due: range | frozenset[int] = range(start, last + 1, max(1, period))
    else:
        span = timeline._in_epochs(amount, unit)
        shortest = span * min(timeline.epoch_steps)
        origin = timeline._epoch(start)
        times = (timeline.step_at(origin + k * span) for k in counting() if shortest >= 1)
        due = frozenset(takewhile(lambda step: step <= last, times)) if shortest >= 1 else range(0)
    if shortest < 1:
        raise UsageError(f"{where}={every} is less than one optimizer step; make it longer")
    return due
