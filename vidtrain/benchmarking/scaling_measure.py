"""What one process of a group measures of its training steps and of the exchange."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vidtrain import distributed
from vidtrain.benchmarking.step import synchronise
from vidtrain.distributed import World

SUMS = 5


@dataclass(frozen=True)
class Steps:
    """Steps that a process took one after the other.

    Attributes:
        seconds: Of each step, by the clock.
        cpu: CPU seconds of each step, all threads of the process together.
    """

    seconds: list[float]
    cpu: list[float]


def steps(take: Callable[[], Any], number: int, world: World) -> Steps:
    """Takes steps, all processes beginning together.

    Args:
        take: Takes one optimizer step.
        number: Of steps.
        world: This process among all.
    """
    distributed.any_true(False, world)
    synchronise(world.device)
    taken = Steps([], [])
    for _ in range(number):
        began, worked = time.perf_counter(), time.process_time()
        take()
        synchronise(world.device)
        taken.seconds.append(time.perf_counter() - began)
        taken.cpu.append(time.process_time() - worked)
    return taken


def sums(lengths: Sequence[int], dtype: torch.dtype, world: World) -> float:
    """Returns the seconds of adding up buffers over all processes as DDP does, with nothing else.

    Args:
        lengths: Elements of each buffer; all are under way at once.
        dtype: Of the elements.
        world: This process among all.
    """
    buffers = [torch.zeros(length, dtype=dtype, device=world.device) for length in lengths]
    taken = []
    for _ in range(SUMS):
        distributed.any_true(False, world)
        synchronise(world.device)
        began = time.perf_counter()
        for work in [dist.all_reduce(buffer, async_op=True) for buffer in buffers]:
            work.wait()
        synchronise(world.device)
        taken.append(time.perf_counter() - began)
    return median(taken)


def bucket_sizes(network: nn.Module) -> list[int]:
    """Returns the bytes of the buckets that DDP has made after its first steps."""
    assert isinstance(network, DistributedDataParallel)
    facts = network._get_ddp_logging_data()
    listed = facts.get("rebuilt_bucket_sizes") or facts["bucket_sizes"]
    return [int(size) for size in str(listed).split(",")]


@dataclass
class Watched:
    """Wraps a task, and notes when a backward pass begins.

    Attributes:
        task: Has `loss(network, clips, targets)`; all else is passed on.
        device: Where it computes.
        began: When the last backward pass began.
    """

    task: Any
    device: torch.device
    began: Any = None

    def __getattr__(self, name: str) -> Any:
        """Returns what the task has."""
        return getattr(self.task, name)

    def loss(self, network: nn.Module, clips: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the task's loss."""
        loss: torch.Tensor = self.task.loss(network, clips, targets)
        loss.register_hook(self._note)
        return loss

    def _note(self, _: torch.Tensor) -> None:
        self.began = mark(self.device)


def anatomy(
    take: Callable[[], Any], watched: Watched, model: nn.Module, *, number: int
) -> dict[str, Any]:
    """Looks when in a step the backward pass begins and when each gradient is there.

    Args:
        take: Takes one optimizer step of the model.
        watched: Its task.
        model: The plain network.
        number: Of steps to look at.

    Returns:
        backward: The share of a step that the last backward pass takes. gradients: [bytes, share of
        the backward pass after which it is there] of each, in the order in which they come.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    device, marks = watched.device, dict[int, Any]()

    def note(parameter: torch.Tensor) -> None:
        marks[id(parameter)] = mark(device)

    handles = [p.register_post_accumulate_grad_hook(note) for p in trained]
    shares, ready = [], {id(p): list[float]() for p in trained}
    for _ in range(number):
        began = mark(device)
        take()
        ended = mark(device)
        synchronise(device)
        after = {key: between(watched.began, when) for key, when in marks.items()}
        backward = max(after.values())
        shares.append(backward / between(began, ended))
        for key, when in after.items():
            ready[key].append(when / backward)
    for handle in handles:
        handle.remove()
    # A parameter that had no gradient is waited for until the end.
    found = [[p.nbytes, median(ready[id(p)] or [1.0])] for p in trained]
    return {"backward": median(shares), "gradients": sorted(found, key=lambda one: one[1])}


def mark(device: torch.device) -> Any:
    """Returns a point in time, on CUDA one in the order of what the GPU was told."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(first: Any, second: Any) -> float:
    """Returns the seconds from one mark to another."""
    if isinstance(first, float):
        return float(second - first)
    return float(first.elapsed_time(second)) / 1000
