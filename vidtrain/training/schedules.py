"""Learning-rate schedules: functions of the step, so there is no state to restore."""

import math

from vidtrain.errors import UsageError


def cosine(
    step: int,
    *,
    total_steps: int,
    steps_per_epoch: int,
    warmup_epochs: float = 0.0,
    warmup_start: float = 0.01,
    final: float = 0.0,
) -> float:
    """Returns the factor on the base learning rate: linear warm-up, then half a cosine.

    Args:
        step: Optimizer step about to be taken, 0 <= step < total_steps.
        total_steps: Steps of the whole training.
        steps_per_epoch: Steps of one epoch.
        warmup_epochs: Length of the warm-up, epochs; may be a fraction.
        warmup_start: Factor at step 0 of a warm-up.
        final: Factor at the end of training.

    Raises:
        UsageError: The warm-up does not fit into the training.

    Source: Loshchilov & Hutter, SGDR, ICLR 2017, eq. 5, without restarts; warm-up as in Goyal et
    al., 2017, section 2.2.
    """
    warmup_steps = round(warmup_epochs * steps_per_epoch)
    if warmup_steps and warmup_steps >= total_steps:
        raise UsageError(
            f"schedule.warmup_epochs={warmup_epochs} is {warmup_steps} steps, but the whole "
            f"training has {total_steps}; lower it or raise train.epochs"
        )
    if step < warmup_steps:
        return warmup_start + (1.0 - warmup_start) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
