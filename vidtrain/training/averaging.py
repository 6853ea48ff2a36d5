"""Exponential moving average of the weights."""

from timm.utils import ModelEmaV3
from torch import nn


def average_of(model: nn.Module, decay: float) -> ModelEmaV3:
    """Returns a copy of the model that follows its weights: `average.update(model, step=...)`.

    The decay rises with the step to the given value, so that early weights are soon forgotten.
    `average.module` is the averaged network; buffers are averaged as the weights are.

    Args:
        model: The network that is trained.
        decay: Share of the average kept per step once warmed up, in (0, 1).

    Source: Polyak & Juditsky, 1992; warm-up as in timm's ModelEmaV3.
    """
    return ModelEmaV3(model, decay=decay, use_warmup=True)
