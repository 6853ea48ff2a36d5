"""One training step measured: contenders that take turns, time outside the model, peaks of GPUs."""

import gc
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd import Variable

from vidtrain.benchmarking.measuring import Ratio

# Dense tensor-core peak in bf16 and fp16 with fp32 sums, TFLOPS, by part of the GPU's name; the
# first that fits. Source: NVIDIA's data sheets of each card, without sparsity.
CARDS = {
    "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "GH200": 989, "A100": 312,
    "A10G": 70, "A10": 125, "L40S": 362, "L4": 121,
}  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """A way of taking a training step.

    Attributes:
        name: ours, plain, or an option of ours.
        step: Takes one optimizer step on the same raw clips; on CUDA it may return early.
        memory: Most bytes that were allocated for it (CUDA); 0: not known.
    """

    name: str
    step: Callable[[], Any]
    memory: int = 0


def warmed(name: str, build: Callable[[], Callable[[], Any]], device: torch.device) -> Contender:
    """Builds a contender and runs it until its kernels are made; memory is that of this alone.

    Args:
        name: As in Contender.
        build: Returns the step.
        device: Where it runs.
    """
    gc.collect()
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device) if cuda else 0
    step = build()
    for _ in range(2):
        step()
        synchronise(device)
    return Contender(name, step, torch.cuda.max_memory_allocated(device) - before if cuda else 0)


def interleaved(
    contenders: Sequence[Contender], *, rounds: int, repeat: int, rng: np.random.Generator,
    device: torch.device, advance: Callable[[str], None] = lambda name: None,
) -> dict[str, list[float]]:  # fmt: skip
    """Lets contenders take turns, in a new random order each round.

    On a CPU the time is that of this process on all cores, which other programs disturb little; on
    CUDA it is the clock's.

    Args:
        contenders: Warm ones.
        rounds: Turns of each.
        repeat: Steps of a turn.
        rng: Draws the order.
        device: Where they run.
        advance: Told the name of each turn that has ended.

    Returns:
        By name the seconds of a step, one for each round.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for _ in range(rounds):
        for place in rng.permutation(len(contenders)):
            contender = contenders[place]
            synchronise(device)
            began = clock()
            for _ in range(repeat):
                contender.step()
            synchronise(device)
            seconds[contender.name].append((clock() - began) / repeat)
            advance(contender.name)
    return seconds


def plain_step(
    network: nn.Module, optimizer: torch.optim.Optimizer, clips: torch.Tensor,
    labels: torch.Tensor, *, autocast: Callable[[], Any], prepare: Callable[[torch.Tensor], Any],
    scaler: Any,
) -> Callable[[], None]:  # fmt: skip
    """Returns the step that PyTorch's own tutorials write.

    Args:
        network: Takes what `prepare` returns, gives logits.
        optimizer: Over its parameters.
        clips: (B, T, H, W, 3) uint8 on the device.
        labels: (B,) int64 on the device.
        autocast: Returns the context of a forward pass.
        prepare: Turns the clips into the network's input.
        scaler: Loss scaler, which may be off.
    """

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = nn.functional.cross_entropy(network(prepare(clips)), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def plain_input(clips: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Normalises (B, T, H, W, 3) uint8 to (B, 3, T, H, W) float32, as PyTorchVideo's tutorial does.

    Source: docs/source/_static and tutorials/video_classification_example of PyTorchVideo: division
    by 255, then `Normalize`.
    """
    video = clips.permute(0, 4, 1, 2, 3) / 255.0
    shape = (1, -1, 1, 1, 1)
    means, stds = (torch.tensor(values, device=clips.device).view(shape) for values in (mean, std))
    return ((video - means) / stds).contiguous()


@dataclass
class Outside:
    """Wraps a task and an optimizer, and measures what of a step on a CPU is not the model's.

    The model's are what a plain loop has too, but for its input: the forward pass with the loss,
    the backward pass, and the optimizer's update and clearing of gradients.

    Attributes:
        task: Has `loss(network, clips, targets)`; all else is passed on.
        inside: Seconds of each step that were the model's.
        clock: Tells the time, in seconds.
    """

    task: Any
    inside: list[float] = field(default_factory=list)
    clock: Callable[[], float] = time.process_time

    def __getattr__(self, name: str) -> Any:
        """Returns what the task has."""
        return getattr(self.task, name)

    def watch(self, optimizer: torch.optim.Optimizer) -> None:
        """Counts the optimizer's updates, and its clearing of gradients, as the model's."""
        began, clear = [0.0], optimizer.zero_grad

        def zero_grad(set_to_none: bool = True) -> None:
            started = self.clock()
            clear(set_to_none)
            self._add(started)

        optimizer.zero_grad = zero_grad  # type: ignore[method-assign]
        optimizer.register_step_pre_hook(lambda *_: began.__setitem__(0, self.clock()))
        optimizer.register_step_post_hook(lambda *_: self._add(began[0]))

    def loss(self, network: nn.Module, clips: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the task's loss; it and its backward pass are counted."""
        began = self.clock()
        loss = self.task.loss(network, clips, targets)

        def backward(_: torch.Tensor) -> None:
            started = self.clock()
            Variable._execution_engine.queue_callback(lambda: self._add(started))

        loss.register_hook(backward)
        self._add(began)
        return loss

    def _add(self, began: float) -> None:
        if self.inside:
            self.inside[-1] += self.clock() - began


def overhead(step: Callable[[], Any], outside: Outside, *, steps: int) -> list[float]:
    """Returns for each of some steps the share of its time that is not the model's."""
    shares = []
    for _ in range(steps):
        outside.inside.append(0.0)
        began = outside.clock()
        step()
        shares.append(1 - outside.inside[-1] / (outside.clock() - began))
    return shares


def ratios(seconds: dict[str, list[float]], first: str, second: str) -> Ratio:
    """Returns how many times as long the first takes as the second, round by round."""
    return Ratio(tuple(a / b for a, b in zip(seconds[first], seconds[second], strict=True)))


def share_of_peak(gmacs: float, clips: int, seconds: list[float], card: str) -> float | None:
    """Returns the arithmetic of a training step over what the GPU could do in that time.

    A backward pass counts as two forward passes.

    Args:
        gmacs: Billions of multiply-adds of one clip forward.
        clips: Clips of a step.
        seconds: Of a step.
        card: Name of the GPU; None is returned for those that are not in `CARDS`.

    Source: Chowdhery et al., PaLM, 2022, appendix B (model FLOPs utilisation).
    """
    peak = next((tflops for name, tflops in CARDS.items() if name in card), None)
    if peak is None:
        return None
    return 3 * 2 * gmacs * 1e9 * clips / median(seconds) / (peak * 1e12)


def synchronise(device: torch.device) -> None:
    """Waits until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
