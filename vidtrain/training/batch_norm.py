"""Batch-norm statistics: taken anew for fixed weights, or shared by all processes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vidtrain.distributed import World
from vidtrain.errors import UsageError


@torch.no_grad()
def precise_statistics(
    network: nn.Module,
    batches: Iterator[torch.Tensor],
    *,
    num_batches: int,
    mean: Callable[[torch.Tensor], torch.Tensor] | None = None,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> int:
    """Sets running means and variances to those of some batches under the present weights.

    Each batch is normalised by its own statistics, as in training; dropout and stochastic depth are
    off, as they will be when the statistics are used. Weights, training flags, momentum and counts
    stay as they were, and so do layers that are frozen or that the clips do not reach.

    Args:
        network: The plain network, not its DDP wrapper; a compiled one runs uncompiled here.
        batches: Clips as the network takes them, (B, 3, T, H, W), on its device.
        num_batches: How many of them to take.
        mean: Averages a float64 tensor over all processes; called once, by every process.
        autocast: Context of each forward pass.

    Returns:
        How many layers there are whose statistics are taken; with none, no batch is taken either.

    Source: Wu & Johnson, Rethinking "Batch" in BatchNorm, 2021, section 3; the variance is that of
    all batches together, as in their appendix (fvcore.nn.precise_bn).
    """
    modes = [(part, part.training) for part in network.modules()]
    norms = _counted(network)
    network.eval()
    sums = [torch.zeros(1 + 2 * norm.num_features, dtype=torch.float64) for norm in norms]
    try:
        with _counting(norms, sums), _uncompiled(network):
            for clips in islice(batches, num_batches if norms else 0):
                with autocast():
                    network(clips)
    finally:
        for part, training in modes:
            part.training = training
    if norms:
        device = norms[0].running_mean.device  # type: ignore[union-attr]
        together = torch.cat(sums).to(device)
        together = together if mean is None else mean(together)
        for norm, found in zip(norms, together.split([len(each) for each in sums]), strict=True):
            _set(norm, found)
    return len(norms)


def synchronised(network: nn.Module, world: World) -> nn.Module:
    """Returns the network with batch norms whose statistics are those of all processes' clips.

    Parameters stay the same objects and names. To be called before layers are frozen. A single
    process needs nothing, so its network is returned as it is.

    Args:
        network: The plain network.
        world: This process among all.

    Raises:
        UsageError: The network has no batch norm, or the processes have no GPUs.
    """
    if not any(isinstance(part, _BatchNorm) for part in network.modules()):
        raise UsageError(
            f"train.sync_bn=true changes nothing: {type(network).__name__} has no batch norm; "
            "leave it false"
        )
    if world.size == 1:
        return network
    if world.device.type != "cuda":
        raise UsageError(
            f"train.sync_bn=true: torch's SyncBatchNorm runs on CUDA only, and the {world.size} "
            f"processes are on {world.device.type}; use fewer processes with more clips each, "
            "train.precise_bn=100, or finetune.freeze_norm=true"
        )
    return nn.SyncBatchNorm.convert_sync_batchnorm(network)


def check_precise(network: nn.Module, num_batches: int) -> None:
    """Refuses to take statistics over some batches where there are none to be taken.

    Raises:
        UsageError: The network has no batch norm, or all of it is frozen.
    """
    if num_batches and not _counted(network):
        raise UsageError(
            f"train.precise_bn={num_batches} changes nothing: {type(network).__name__} has no "
            "batch norm that is not frozen; leave it 0"
        )


def _counted(network: nn.Module) -> list[_BatchNorm]:
    """Returns the layers that keep statistics in training; it is left in training mode."""
    network.train()  # frozen parts stay in eval mode
    return [
        part for part in network.modules()
        if isinstance(part, _BatchNorm) and part.training and part.running_mean is not None
    ]  # fmt: skip


@contextmanager
def _counting(norms: list[_BatchNorm], sums: list[torch.Tensor]) -> Iterator[None]:
    """Puts the layers into training mode, with buffers that hold the last batch alone."""
    before = [(norm.momentum, dict(norm.named_buffers())) for norm in norms]
    hooks = []
    for index, norm in enumerate(norms):
        norm.training, norm.momentum = True, 1.0
        for name, buffer in before[index][1].items():
            setattr(norm, name, torch.zeros_like(buffer))
        hooks.append(norm.register_forward_hook(partial(_add, sums, index)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for norm, (momentum, buffers) in zip(norms, before, strict=True):
            norm.momentum = momentum
            for name, buffer in buffers.items():
                setattr(norm, name, buffer)


def _add(
    sums: list[torch.Tensor], index: int, norm: _BatchNorm, args: tuple[torch.Tensor], _: Any
) -> None:
    """Adds the number, the sum and the sum of squares of a batch's values, by channel."""
    assert norm.running_mean is not None and norm.running_var is not None
    count = args[0].numel() // args[0].shape[1]
    mean, variance = norm.running_mean.double(), norm.running_var.double()
    if not isinstance(norm, nn.SyncBatchNorm):  # its count is that of all processes: next to 1
        variance = variance * (count - 1) / count  # torch keeps the unbiased estimate
    found = torch.cat([mean.new_full((1,), count), count * mean, count * (variance + mean**2)])
    sums[index] = sums[index].to(found.device) + found


def _set(norm: _BatchNorm, sums: torch.Tensor) -> None:
    """Writes mean and variance into the layer's own buffers, which DDP and others refer to."""
    assert norm.running_mean is not None and norm.running_var is not None
    if sums[0] > 0:
        mean, square = (sums[1:] / sums[0]).split(norm.num_features)
        norm.running_mean.copy_(mean)
        norm.running_var.copy_((square - mean**2).clamp_(min=0))


def _uncompiled(network: nn.Module) -> AbstractContextManager:
    """A compiled network would be compiled anew for its other flags and hooks, for minutes."""
    if network._compiled_call_impl is None:
        return nullcontext()
    return torch.compiler.set_stance("force_eager")
