"""Every process has a part of every weight, and fetches the rest layer by layer (FSDP2)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from vidtrain.distributed import World


def shard(
    model: nn.Module, blocks: Sequence[str], world: World, *, reshard: bool = True,
    gather: torch.dtype | None = None,
) -> None:  # fmt: skip
    """Leaves each process its part of every parameter, in place; to be done before the optimizer.

    Args:
        model: The network on its device, with equal weights on all processes.
        blocks: Paths of the modules whose weights are fetched together.
        world: This process among all.
        reshard: Give the others' parts back after the forward pass of a block.
        gather: Type that weights travel in and blocks compute in; gradients are added up in
            float32. None: their own.

    Source: Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, VLDB
    2023.
    """
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(
        param_dtype=gather, reduce_dtype=torch.float32 if gather is not None else None
    )
    for path in blocks:
        fully_shard(
            model.get_submodule(path), mesh=mesh, reshard_after_forward=reshard, mp_policy=policy
        )
    # The root's own weights are used first and last; they are not given back in between.
    fully_shard(model, mesh=mesh, reshard_after_forward=False, mp_policy=policy)


def is_sharded(model: nn.Module) -> bool:
    """Returns whether each process has a part of the weights only."""
    return isinstance(model, FSDPModule)


@contextmanager
def whole(model: nn.Module, *, reshard: bool) -> Iterator[None]:
    """Holds all weights on every process, so that forward passes need no other process.

    Args:
        model: A network; nothing is done to one that is not sharded.
        reshard: As `shard` was told.
    """
    parts = [part for part in model.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(reshard and part is not model, recurse=False)


def synchronise(model: nn.Module, wanted: bool) -> None:
    """Sets whether the backward passes to come add up gradients over all processes."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(wanted)


def place_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns this process's part of a value that every process has, placed as another tensor."""
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    on_device = value.to(like.device)
    return distribute_tensor(on_device, like.device_mesh, like.placements, src_data_rank=None)


def full(value: Any) -> Any:
    """Returns a sharded tensor put together from all processes; anything else as it is."""
    return value.full_tensor() if isinstance(value, DTensor) else value
