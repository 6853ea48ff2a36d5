"""Learning-rate schedules: the factor on the base rate as a function of the optimizer step.

Nothing is remembered from step to step, so there is no state to restore. Times are read from the
timeline's clock: where epochs differ in length, as in multigrid training, a schedule is the same
at the same epoch.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

from vidtrain.errors import UsageError
from vidtrain.training.timeline import Length, Timeline

Schedule = Callable[[int], float]


def cosine(
    *,
    timeline: Timeline,
    warmup: Length = "0.5 epochs",
    warmup_start: float = 0.01,
    final: float = 0.0,
    after_warmup: bool = True,
) -> Schedule:
    """Returns a linear warm-up and then half a cosine to the end of the training.

    Args:
        timeline: Steps and epochs of the training.
        warmup: Length of the warm-up.
        warmup_start: Factor at the first step of a warm-up.
        final: Factor at the end of the training.
        after_warmup: Whether the cosine begins where the warm-up ends; otherwise at the start of
            the training, so that the warm-up rises to the curve and the factor stays below 1.

    Raises:
        UsageError: The warm-up does not fit into the training, or a factor is negative.

    Source: Loshchilov & Hutter, SGDR, ICLR 2017, eq. 5, without restarts; `after_warmup` is
    PySlowFast's SOLVER.COSINE_AFTER_WARMUP.
    """
    _check_factors(final=final)
    warm = _warmup_steps(timeline, warmup)
    progress = _progress(timeline, warm if after_warmup else 0)

    def fall(step: int) -> float:
        return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress(step)))

    return _warmed_up(timeline, warm, warmup_start, fall)


def linear(
    *,
    timeline: Timeline,
    warmup: Length = "0.5 epochs",
    warmup_start: float = 0.01,
    final: float = 0.0,
) -> Schedule:
    """Returns a linear warm-up and then a straight line down to the end of the training.

    Args:
        timeline: Steps and epochs of the training.
        warmup: Length of the warm-up.
        warmup_start: Factor at the first step of a warm-up.
        final: Factor at the end of the training.

    Raises:
        UsageError: The warm-up does not fit into the training, or a factor is negative.
    """
    _check_factors(final=final)
    warm = _warmup_steps(timeline, warmup)
    progress = _progress(timeline, warm)
    return _warmed_up(
        timeline, warm, warmup_start, lambda step: 1.0 + (final - 1.0) * progress(step)
    )


def multistep(
    *,
    timeline: Timeline,
    milestones: list[Length],
    gamma: float = 0.1,
    warmup: Length = "0.5 epochs",
    warmup_start: float = 0.01,
) -> Schedule:
    """Returns a linear warm-up and then steps down: at each milestone the rate is multiplied.

    Args:
        timeline: Steps and epochs of the training.
        milestones: Times from the start of the training, rising, after the warm-up.
        gamma: What the rate is multiplied by, above 0.
        warmup: Length of the warm-up.
        warmup_start: Factor at the first step of a warm-up.

    Raises:
        UsageError: The milestones do not rise or lie outside the training, or the warm-up does.

    Source: He et al., Deep Residual Learning, CVPR 2016, section 3.4.
    """
    _check_factors(gamma=gamma)
    if not gamma:
        raise UsageError("schedule.gamma=0 ends the training at the first milestone; above 0")
    warm = _warmup_steps(timeline, warmup)
    steps = [timeline.steps(each, "schedule.milestones") for each in milestones]
    if not steps or steps[0] <= warm or steps[-1] >= timeline.total_steps or any(
        later <= earlier for earlier, later in pairwise(steps)
    ):  # fmt: skip
        raise UsageError(
            f"schedule.milestones={milestones} are steps {steps}; they must rise and lie between "
            f"the end of the warm-up (step {warm}) and of the training (step "
            f"{timeline.total_steps})"
        )
    return _warmed_up(
        timeline, warm, warmup_start,
        lambda step: gamma ** sum(milestone <= step for milestone in steps),
    )  # fmt: skip


def constant(
    *, timeline: Timeline, warmup: Length = "0.5 epochs", warmup_start: float = 0.01
) -> Schedule:
    """Returns a linear warm-up and then the base rate.

    Args:
        timeline: Steps and epochs of the training.
        warmup: Length of the warm-up.
        warmup_start: Factor at the first step of a warm-up.

    Raises:
        UsageError: The warm-up does not fit into the training.
    """
    warm = _warmup_steps(timeline, warmup)
    return _warmed_up(timeline, warm, warmup_start, lambda step: 1.0)


def one_cycle(
    *,
    timeline: Timeline,
    warmup: Length = "30%",
    warmup_start: float = 0.04,
    final: float = 4e-6,
    anneal: Literal["linear", "cosine"] = "linear",
) -> Schedule:
    """Returns one cycle: a long rise to the base rate, and a fall to almost nothing.

    Momentum stays as it is (OneCycleLR: cycle_momentum=False).

    Args:
        timeline: Steps and epochs of the training.
        warmup: Length of the rise.
        warmup_start: Factor at the first step (OneCycleLR: 1 / div_factor).
        final: Factor at the end (OneCycleLR: 1 / div_factor / final_div_factor).
        anneal: Shape of the rise and of the fall.

    Raises:
        UsageError: The rise does not fit into the training, or a factor is negative.

    Source: Smith & Topin, Super-Convergence, 2018; numbers of torch.optim.lr_scheduler.OneCycleLR.
    """
    _check_factors(final=final, warmup_start=warmup_start)
    rise = _warmup_steps(timeline, warmup)
    top = timeline.clock(rise)
    progress = _progress(timeline, rise)

    def between(start: float, end: float, share: float) -> float:
        if anneal == "cosine":
            share = 0.5 * (1.0 - math.cos(math.pi * share))
        return start + (end - start) * share

    def factor(step: int) -> float:
        if step < rise:
            return between(warmup_start, 1.0, timeline.clock(step) / top)
        return between(1.0, final, progress(step))

    return factor


def _warmup_steps(timeline: Timeline, warmup: Length) -> int:
    steps = timeline.steps(warmup, "schedule.warmup")
    if steps and steps >= timeline.total_steps:
        raise UsageError(
            f"schedule.warmup={warmup} is {steps} steps, but the whole training has "
            f"{timeline.total_steps}; shorten it or raise train.epochs"
        )
    return steps


def _warmed_up(timeline: Timeline, warm: int, start: float, after: Schedule) -> Schedule:
    """Returns a schedule with a line from `start` to its own value at step `warm` before it.

    Source: Goyal et al., 2017, section 2.2 (gradual warm-up).
    """
    _check_factors(warmup_start=start)
    end, top = timeline.clock(warm), after(warm)

    def factor(step: int) -> float:
        if step < warm:
            return start + (top - start) * timeline.clock(step) / end
        return after(step)

    return factor


def _progress(timeline: Timeline, start: int) -> Schedule:
    """Returns the share of the way from a step to the end of the training."""
    begin = timeline.clock(start)
    way = timeline.clock(timeline.total_steps) - begin
    return lambda step: (timeline.clock(step) - begin) / way


def _check_factors(**factors: float) -> None:
    for name, value in factors.items():
        if not 0 <= value < math.inf:
            raise UsageError(f"schedule.{name}={value} is a factor on the rate: it must be >= 0")
