"""One process or many: who this process is, and what all of them say to each other.

Besides this module only the rooms `parallel` (weights) and `health` and `benchmarking` (what is
measured) talk to torch.distributed.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from vidtrain.errors import InputError, UsageError

_left: list[Any] = []  # groups that this process has left
# What gloo, NCCL and the store say when a process, or the way to it, is gone.
_LOST = ("Connection closed by peer", "Connection reset", "Broken pipe", "Connection refused",
         "Timed out waiting", "ncclRemoteError", "remote process exited", "was aborted",
         "operation timeout", "recvValue failed", "sendBytes failed", "No route to host",
         "Connection timed out", "Application timeout")  # fmt: skip


@dataclass
class Place:
    """Where a process stands, for the others to be told when it does not come on.

    Attributes:
        where: In words.
        count: Occasions passed that every process passes in the same order.
        waiting: Whether it may be waiting for others there.
        since: When it came there, by the monotonic clock.
    """

    where: str = "start"
    count: int = 0
    waiting: bool = False
    since: float = field(default_factory=time.monotonic)

    def note(self, where: str, *, waiting: bool = False, counted: bool = False) -> None:
        """Notes that the process has come to a place."""
        self.where, self.waiting = where, waiting
        self.count += counted
        self.since = time.monotonic()


@dataclass(frozen=True)
class World:
    """This process among all processes of the run.

    Attributes:
        rank: Number of this process, 0 <= rank < size.
        size: Number of processes.
        device: Device this process computes on.
        place: Where it stands.
    """

    rank: int
    size: int
    device: torch.device
    place: Place = field(default_factory=Place, compare=False, repr=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0


@contextmanager
def session(
    device: str, *, num_threads: int | None = None, timeout_seconds: float = 1800
) -> Iterator[World]:
    """Joins the process group that torchrun's environment describes, if any, and leaves it.

    Args:
        device: auto, cpu, cuda or cuda:N; processes of a node take its GPUs in their order.
        num_threads: CPU threads of this process; None leaves torch's choice.
        timeout_seconds: Longest time that a process waits for another.

    Raises:
        UsageError: The device is unknown or not there.
        InputError: The processes do not find each other.
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
        _join("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timeout_seconds)
    try:
        yield World(rank=rank, size=size, device=chosen)
    except RuntimeError as error:
        if size > 1 and any(word in str(error) for word in _LOST):
            raise InputError(
                f"another process is gone ({_first_sentence(error)}); what it said "
                "itself, or its node, tells why"
            ) from error
        raise
    finally:
        # With NCCL this would wait for processes that are gone.
        if dist.is_initialized() and (chosen.type != "cuda" or sys.exc_info()[0] is None):
            # Kept, or DDP's reducer would be the last to let go of it: it ends gloo's threads while
            # it holds Python's lock, for which one of them may wait (pytorch/pytorch#56297).
            _left.append(dist.group.WORLD)
            dist.destroy_process_group()


def _first_sentence(error: Exception) -> str:
    return str(error).splitlines()[0].partition(". This is typically")[0][:300]


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


def _join(backend: str, timeout_seconds: float) -> None:
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))
    except (dist.DistError, RuntimeError, ValueError) as error:
        asked = ":".join(os.environ.get(key, "?") for key in ("MASTER_ADDR", "MASTER_PORT"))
        raise InputError(
            f"rank {os.environ.get('RANK')} cannot join the other processes at {asked} "
            f"({str(error).splitlines()[0]}); `vidtrain doctor` under the same launcher names the "
            "node and the cause"
        ) from error


def restart_advice() -> str | None:
    """Returns what is wrong with how processes on several nodes were started, or None.

    With its default torchrun gives restarted processes the address of a store that is gone
    (pytorch/pytorch#135712).
    """
    given = os.environ.get
    several = int(given("GROUP_WORLD_SIZE", "1")) > 1 or ":" in given("PET_NNODES", "")
    restarts = int(given("TORCHELASTIC_MAX_RESTARTS", "0")) > 0
    if several and restarts and given("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return (
            "torchrun on several nodes cannot restart processes as it was started: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for it, or use vidtrain launch, which does"
        )
    return None


def store(name: str, world: World, *, timeout_seconds: float) -> dist.Store | None:
    """Returns a connection of its own to the store where processes leave notes for each other.

    Args:
        name: What notes are left for; those of earlier starts of the processes are not seen.
        world: This process among all.
        timeout_seconds: Longest time that a call waits.

    Returns:
        None where there is one process.
    """
    if world.size == 1:
        return None
    nonce = share(os.urandom(8).hex(), world)
    port, limit = int(os.environ["MASTER_PORT"]), timedelta(seconds=timeout_seconds)
    client = dist.TCPStore(os.environ["MASTER_ADDR"], port, is_master=False, timeout=limit)
    return dist.PrefixStore(f"vidtrain/{name}/{nonce}", client)


def side_group() -> dist.ProcessGroup:
    """Returns a group of all processes, for calls beside those of the training; all must call."""
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup), "every process is in it"
    return group


@contextmanager
def _waiting(where: str, world: World) -> Iterator[None]:
    """Notes that this process waits for the others."""
    place = world.place
    before, waited = place.where, place.waiting
    place.note(where, waiting=True, counted=True)
    try:
        yield
    finally:
        place.note(before, waiting=waited)


def copy_buffers(model: nn.Module, world: World) -> None:
    """Gives every process rank 0's buffers (batch-norm statistics), in place."""
    if world.size > 1:
        with _waiting("sending buffers", world):
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)


def mean(values: torch.Tensor, world: World) -> torch.Tensor:
    """Returns the element-wise mean of a float tensor over all processes."""
    if world.size > 1:
        values = values.clone()
        with _waiting("adding up", world):
            dist.all_reduce(values)
        values /= world.size
    return values


def maximum(values: torch.Tensor, world: World) -> torch.Tensor:
    """Returns the element-wise maximum of a tensor over all processes, without waiting for it."""
    if world.size > 1:
        with _waiting("agreeing", world):
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return values


def any_each(flags: Sequence[bool], world: World) -> list[bool]:
    """Returns for each flag whether it is true on any process; every process gets the same."""
    if world.size == 1:
        return list(flags)
    shared = torch.tensor([int(flag) for flag in flags], device=world.device)
    with _waiting("agreeing", world):
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
    with _waiting("collecting", world):
        dist.gather_object(value, values)
    return values or []


def share(value: Any, world: World) -> Any:
    """Returns rank 0's picklable value on every process."""
    if world.size == 1:
        return value
    values = [value]
    with _waiting("hearing rank 0", world):
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
