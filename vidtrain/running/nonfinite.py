"""Steps whose loss or gradient is not finite: left out, told with their samples, and limited."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vidtrain.errors import InputError


@dataclass
class NonFinite:
    """The steps of a run that were left out.

    Attributes:
        budget: Most steps that may be left out in the whole run.
        steps: The steps that were.
        kept: Copies of the network's buffers: a bad clip spoils batch-norm statistics already in
            the forward pass.
    """

    budget: int
    steps: list[int] = field(default_factory=list)
    kept: list[torch.Tensor] = field(default_factory=list)

    def remember(self, network: nn.Module) -> None:
        """Copies the buffers ahead of a step."""
        buffers = list(network.buffers())
        if not self.budget or not buffers:
            return
        if not self.kept:
            self.kept = [torch.empty_like(buffer) for buffer in buffers]
        _copy(buffers, self.kept)

    def leave_out(self, step: int, network: nn.Module, facts: dict[str, Any]) -> None:
        """Undoes what a step did to the buffers, and counts it.

        Args:
            step: The step that is not taken.
            network: The plain network.
            facts: What is known of the step, for the message.

        Raises:
            InputError: There have been more such steps than may be left out.
        """
        self.steps.append(step)
        if len(self.steps) > self.budget:
            named = ", ".join(facts["videos"][:8]) + ", ..." * (len(facts["videos"]) > 8)
            before = f" after {self.budget} steps that were left out" if self.budget else ""
            others = "" if facts["precision"] == "fp32" else ", or use precision=fp32"
            raise InputError(
                f"loss is {facts['loss']} and gradient norm {facts['grad_norm']} at step {step} "
                f"(epoch {facts['epoch']:.2f}, lr {facts['lr']:.2e}, precision "
                f"{facts['precision']}){before}; videos of the batch: {named} (nonfinite.jsonl has "
                "all). Nothing was saved since the last checkpoint. Lower optimizer.lr, or set "
                f"train.clip_grad_norm=1{others}"
            )
        if self.kept:
            _copy(self.kept, list(network.buffers()))


def _copy(source: list[torch.Tensor], target: list[torch.Tensor]) -> None:
    """Copies tensors to others; a kernel takes many only where all are of one type."""
    for dtype in {tensor.dtype for tensor in source}:
        pairs = [pair for pair in zip(target, source, strict=True) if pair[1].dtype == dtype]
        torch._foreach_copy_([one for one, _ in pairs], [one for _, one in pairs])
