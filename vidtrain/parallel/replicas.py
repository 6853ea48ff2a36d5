"""Every process has the whole network, and gradients are averaged while they come in (DDP)."""

import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from vidtrain.distributed import World


def replicate(
    model: nn.Module, world: World, *, bucket_mb: float = 25.0, compress: bool = False,
    static_graph: bool = False, find_unused: bool = False,
) -> nn.Module:  # fmt: skip
    """Wraps a network so that gradients are averaged over all processes.

    Args:
        model: The plain network on its device.
        world: This process among all.
        bucket_mb: Size of the pieces that gradients travel in, MB.
        compress: Let them travel as bfloat16: half the bytes, rounded to 8 bits of mantissa.
        static_graph: Every step uses the same parameters, in the same order.
        find_unused: Look in each step for parameters that were not used.

    Returns:
        The wrapped network; the plain one where there is one process or nothing to train.

    Source: Li et al., PyTorch Distributed: Experiences on Accelerating Data Parallel Training,
    VLDB 2020.
    """
    if world.size == 1 or not any(p.requires_grad for p in model.parameters()):
        return model
    wrapped = DistributedDataParallel(
        model, device_ids=[world.device.index] if world.device.type == "cuda" else None,
        bucket_cap_mb=bucket_mb, static_graph=static_graph, find_unused_parameters=find_unused,
    )  # fmt: skip
    if compress:
        wrapped.register_comm_hook(None, default_hooks.bf16_compress_hook)
    return wrapped


def restore_buffers(model: nn.Module, kept: list[torch.Tensor]) -> None:
    """Gives buffers the values that they had, in place."""
    for buffer, value in zip(model.buffers(), kept, strict=True):
        buffer.copy_(value)
