"""One process or many: the only module that talks to torch.distributed."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vidtrain.errors import InputError, UsageError


@dataclass(frozen=True)
class World:
    """This process among all processes of the run.

    Attributes:
        rank: Number of this process, 0 <= rank < size.
        size: Number of processes.
        device: Device this process computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


@contextmanager
def session(device: str, *, num_threads: int | None = None) -> Iterator[World]:
    """Joins the process group that torchrun's environment describes, if any, and leaves it.

    Args:
        device: auto, cpu, cuda or cuda:N.
        num_threads: CPU threads of this process; None leaves torch's choice.

    Raises:
        UsageError: The device is unknown or not there.
    """
    if num_threads is not None:
        if num_threads < 1:
            raise UsageError(f"num_threads={num_threads} must be at least 1")
        torch.set_num_threads(num_threads)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    chosen = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size > 1 and "RANK" not in os.environ:
        raise UsageError(f"WORLD_SIZE={size} is set but RANK is not; start with torchrun")
    if size > 1:
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        yield World(rank=rank, size=size, device=chosen)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _device(name: str, local_rank: int) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"device={name!r} is not a device; use auto, cpu, cuda or cuda:N"
        ) from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise UsageError(f"device={name!r} is not supported; use auto, cpu, cuda or cuda:N")
    index = local_rank if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise UsageError(
            f"device={name!r} needs GPU {index}, but {torch.cuda.device_count()} are visible; "
            "use device=cpu, or start fewer processes per node"
        )
    return torch.device("cuda", index)


def replicate(model: nn.Module, world: World) -> nn.Module:
    """Wraps a model so that gradients are averaged over all processes (DDP)."""
    if world.size == 1:
        return model
    ids = [world.device.index] if world.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids)


def copy_buffers(model: nn.Module, world: World) -> None:
    """Gives every process rank 0's buffers (batch-norm statistics), in place."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def mean(values: torch.Tensor, world: World) -> torch.Tensor:
    """Returns the element-wise mean of a float tensor over all processes."""
    if world.size > 1:
        values = values.clone()
        dist.all_reduce(values)
        values /= world.size
    return values


def any_each(flags: Sequence[bool], world: World) -> list[bool]:
    """Returns for each flag whether it is true on any process; every process gets the same."""
    if world.size == 1:
        return list(flags)
    shared = torch.tensor([int(flag) for flag in flags], device=world.device)
    dist.all_reduce(shared, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in shared.tolist()]


def any_true(flag: bool, world: World) -> bool:
    """Returns whether the flag is true on any process; every process gets the same answer."""
    return any_each([flag], world)[0]


def gather(value: Any, world: World) -> list[Any]:
    """Returns every process's picklable value in rank order on rank 0, and [] elsewhere."""
    if world.size == 1:
        return [value]
    values: list[Any] | None = [None] * world.size if world.is_main else None
    dist.gather_object(value, values)
    return values or []


def share(value: Any, world: World) -> Any:
    """Returns rank 0's picklable value on every process."""
    if world.size == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, device=world.device)
    return values[0]


def together(action: Any, world: World) -> Any:
    """Runs an action on rank 0 and returns its result everywhere; its InputError is raised on all.

    Without this, rank 0 would stop with a clear message while the others wait for it.
    """
    outcome: tuple[Any, tuple[type[InputError], str] | None] = (None, None)
    if world.is_main:
        try:
            outcome = (action(), None)
        except InputError as error:
            outcome = (None, (type(error), str(error)))
    result, failure = share(outcome, world)
    if failure is not None:
        raise failure[0](failure[1])
    return result
