"""Averages of the weights over the steps of a training."""

from collections.abc import Callable
from typing import Any

from timm.utils import ModelEmaV3
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel

from vidtrain.errors import UsageError
from vidtrain.training.timeline import Length, Timeline, recurring


class Ema:
    """Exponential moving average.

    Attributes:
        ready: Whether `module` may be judged; from the start, when it is the network itself.
    """

    ready = True

    def __init__(self, average: ModelEmaV3) -> None:
        self._average = average

    @property
    def module(self) -> nn.Module:
        """The averaged network, in eval mode; buffers are averaged as the weights are."""
        return self._average.module

    def update(self, model: nn.Module, *, step: int) -> None:
        """Moves the average towards the weights that step number `step`, from 0, has left."""
        # One kernel for many tensors takes no mixture of parts of weights and whole buffers.
        self._average.foreach = not isinstance(next(model.parameters()), DTensor)
        self._average.update(model, step=step)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed training needs besides the weights of `module`: nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` returned."""


class Swa:
    """Plain mean of the weights at some steps (stochastic weight averaging)."""

    def __init__(self, average: AveragedModel, due: Callable[[int], bool]) -> None:
        self._average = average
        self._due = due

    @property
    def module(self) -> nn.Module:
        """The averaged network, in eval mode; buffers are those of the latest weights in it.

        Its batch-norm statistics are another network's, so take them anew before it is used.
        """
        return self._average.module

    @property
    def ready(self) -> bool:
        """Whether there is an average yet."""
        return int(self._average.n_averaged) > 0

    def update(self, model: nn.Module, *, step: int) -> None:
        """Adds the weights that step number `step`, from 0, has left, if they are due."""
        if self._due(step + 1):
            self._average.update_parameters(model)

    def state_dict(self) -> dict[str, Any]:
        """Returns what a resumed training needs besides the weights of `module`."""
        return {"averaged": int(self._average.n_averaged)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up what `state_dict` returned."""
        self._average.n_averaged.fill_(state["averaged"])


def ema(model: nn.Module, *, timeline: Timeline, decay: float = 0.999, warmup: bool = True) -> Ema:
    """Returns an average that forgets old weights exponentially.

    Args:
        model: The network that is trained, on its device; it is copied.
        timeline: Not used: decay counts steps.
        decay: Share of the average kept per step, in (0, 1).
        warmup: Let the decay of step t rise as 1 - t^(-2/3) to the given value, so that early
            weights are soon forgotten.

    Raises:
        UsageError: The decay is out of range.

    Source: Polyak & Juditsky, 1992; warm-up as in timm's ModelEmaV3.
    """
    if not 0 < decay < 1:
        raise UsageError(f"average.decay={decay} must lie between 0 and 1; use average=none")
    return Ema(ModelEmaV3(model, decay=decay, use_warmup=warmup))


def swa(
    model: nn.Module, *, timeline: Timeline, start: Length = "75%", every: Length = "1 epoch"
) -> Swa:
    """Returns the mean of the weights at `start` and then every so often.

    Args:
        model: The network that is trained, on its device; it is copied.
        timeline: Steps and epochs of the training.
        start: When the first weights are taken; before, there is no average.
        every: Time between two.

    Raises:
        UsageError: A length of time is none, or the start is not within the training.

    Source: Izmailov et al., Averaging Weights Leads to Wider Optima and Better Generalization,
    UAI 2018, algorithm 1.
    """
    first = timeline.steps(start, "average.start")
    if first > timeline.total_steps:
        raise UsageError(
            f"average.start={start} is step {first}, but the whole training has "
            f"{timeline.total_steps}; nothing would be averaged"
        )
    average = AveragedModel(model)
    average.module.eval()
    return Swa(average, recurring(timeline, every, "average.every", start=first))
