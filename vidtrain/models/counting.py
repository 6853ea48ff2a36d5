"""How big a network is and what a clip costs it, counted without memory or arithmetic."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

MAX_LAYERS = 48  # rows that are still read


@dataclass(frozen=True)
class Size:
    """Size of a network.

    Attributes:
        parameters: Numbers that are trained.
        gmacs: Billions of multiply-adds for one clip, which papers print as GFLOPs. Those of
            convolutions and matrix products, attention included; norms and activations are not
            counted.
    """

    parameters: int
    gmacs: float


@dataclass(frozen=True)
class Layer:
    """A part of a network.

    Attributes:
        name: Its name in the network, as in state_dict keys.
        kind: Its class.
        depth: 0 for a part of the network itself, 1 for a part of that.
        output: Shapes it returns for one clip, without the axis of the batch.
        parameters: As in Size, of it and its parts.
        gmacs: As in Size, of it and its parts.
        share: Its part of the network's cost, in [0, 1].
    """

    name: str
    kind: str
    depth: int
    output: tuple[tuple[int, ...], ...]
    parameters: int
    gmacs: float
    share: float


@dataclass
class _Call:
    inputs: tuple[tuple[int, ...], ...] = ()
    output: tuple[tuple[int, ...], ...] = ()
    flops: int = 0


def count(net: nn.Module, *, num_frames: int, crop_size: int) -> Size:
    """Counts the parameters of a network and the cost of one clip, in evaluation.

    Args:
        net: Takes (B, 3, T, H, W); on any device; stays as it is.
        num_frames: T of the clip.
        crop_size: H and W of the clip, pixels.

    Raises:
        UsageError: The network takes no clip of that size.
    """
    calls = _run(net, num_frames=num_frames, crop_size=crop_size)
    return Size(_parameters(net), _gmacs(calls[""].flops))


def layers(
    net: nn.Module, *, num_frames: int, crop_size: int, max_rows: int = MAX_LAYERS
) -> list[Layer]:
    """Lists the parts of a network, each before its own parts.

    Args:
        net: As for `count`.
        num_frames: As for `count`.
        crop_size: As for `count`.
        max_rows: Parts are listed down to the deepest level at which there are at most so many
            rows, but at least those of the network itself. Parts without parameters, cost or
            another shape at their output than at their input are left out.

    Raises:
        UsageError: The network takes no clip of that size.
    """
    calls = _run(net, num_frames=num_frames, crop_size=crop_size)
    total = max(calls[""].flops, 1)
    rows = [
        Layer(
            name=name,
            kind=type(module).__name__,
            depth=depth,
            output=calls[name].output,
            parameters=_parameters(module),
            gmacs=_gmacs(calls[name].flops),
            share=calls[name].flops / total,
        )
        for name, module, depth in _called(net, calls)
        if calls[name].flops or calls[name].inputs != calls[name].output or _parameters(module)
    ]
    depths = sorted({row.depth for row in rows})
    fitting = [d for d in depths if sum(row.depth <= d for row in rows) <= max_rows]
    return [row for row in rows if row.depth <= max(fitting, default=0)]


def _run(net: nn.Module, *, num_frames: int, crop_size: int) -> dict[str, _Call]:
    """Returns what each module was given, returned and spent, by name; "" is the network."""
    net = without_values(net).eval()
    calls: dict[str, _Call] = {}
    counter = FlopCounterMode(display=False)
    begun: list[int] = []

    def before(*_: Any) -> None:
        begun.append(counter.get_total_flops())

    def after(name: str, inputs: Any, output: Any) -> None:
        call = calls.setdefault(name, _Call())
        call.flops += counter.get_total_flops() - begun.pop()
        call.inputs, call.output = tuple(_shapes(inputs)), tuple(_shapes(output))

    for name, module in net.named_modules():
        module.register_forward_pre_hook(before)
        module.register_forward_hook(
            lambda _, inputs, output, name=name: after(name, inputs, output)
        )
    clip = torch.empty(1, 3, num_frames, crop_size, crop_size, device="meta")
    # Fused attention is not among what the counter knows on every device; its products are.
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        net(clip)
    return calls


def without_values(net: nn.Module) -> nn.Module:
    """Returns a copy on the meta device, which takes no memory for weights."""
    known: dict[int, Any] = {}
    for parameter in net.parameters():
        known[id(parameter)] = nn.Parameter(
            torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad
        )
    for buffer in net.buffers():
        known[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(net, known)


def _called(
    module: nn.Module, calls: Mapping[str, _Call], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, nn.Module, int]]:
    """Yields the parts that were called; lists of parts are not, and do not count as a level."""
    for child_name, child in module.named_children():
        name = f"{prefix}{child_name}"
        if name in calls:
            yield name, child, depth
        yield from _called(child, calls, f"{name}.", depth + (name in calls))


def _shapes(value: Any) -> Iterator[tuple[int, ...]]:
    if isinstance(value, torch.Tensor):
        yield tuple(value.shape[1:])
    elif isinstance(value, Mapping):
        yield from _shapes(tuple(value.values()))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _shapes(item)


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _gmacs(flops: int) -> float:
    return flops / 2 / 1e9
