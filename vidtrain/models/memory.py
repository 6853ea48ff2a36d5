"""Options that make a network smaller in memory or faster, without changing what it computes."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from vidtrain.errors import UsageError
from vidtrain.models.anatomy import layers


def apply(net: nn.Module, *, channels_last: bool, checkpointing: bool, compile: bool) -> nn.Module:
    """Sets the options on a network, in place, and returns it; its state_dict keys stay the same.

    Args:
        net: A plain network on its device; it still takes and returns the same tensors.
        channels_last: Keep convolution weights and clips with the channels innermost, as tensor
            cores read them.
        checkpointing: Keep the inputs of blocks only, and compute a block again in the backward
            pass. Same gradients, bit for bit; about a third more arithmetic.
        compile: Let torch.compile make kernels at the first call, which takes minutes.

    Raises:
        UsageError: The network has nothing that an option could serve, or torch.compile does not
            work here.

    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016 (checkpointing).
    """
    if channels_last:
        _channels_last(net)
    if checkpointing:
        _checkpoint_blocks(net, compile=compile)
    if compile:
        _check_compiler(next(net.parameters()).device)
        # PyTorch 2.11 compiles no forward pass that is its own, as nn.Sequential's is.
        if type(net).forward.__module__.startswith("torch."):
            net.forward = partial(_called, net.forward)  # type: ignore[method-assign]
        net.compile()
    return net


def _channels_last(net: nn.Module) -> None:
    convolutions = [part for part in net.modules() if isinstance(part, nn.Conv2d | nn.Conv3d)]
    if len(convolutions) < 2:
        raise UsageError(
            f"model.channels_last=true: the network has {len(convolutions)} convolutions "
            "and works on tokens, whose channels are innermost anyway; leave it false"
        )
    for part in convolutions:
        is_3d = isinstance(part, nn.Conv3d)
        part.to(memory_format=torch.channels_last_3d if is_3d else torch.channels_last)
    net.register_forward_pre_hook(_clips_channels_last)


def _clips_channels_last(net: nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
    """Images that a 2-D network cuts out of such a clip are in channels_last order too."""
    return args[0].contiguous(memory_format=torch.channels_last_3d)


def _checkpoint_blocks(net: nn.Module, *, compile: bool) -> None:
    blocks = [net.get_submodule(path) for layer in layers(net) for path in layer.blocks]
    if not blocks:
        raise UsageError(
            "model.checkpointing=true: the network has no blocks of several layers, and "
            "the inputs of single layers have to be kept anyway; leave it false"
        )
    for block in blocks:
        options: dict[str, Any] = {"use_reentrant": False}
        if any(isinstance(part, _BatchNorm) for part in block.modules()):
            if compile:
                raise UsageError(
                    "model.checkpointing=true and model.compile=true: the network has batch norm, "
                    "whose statistics would count twice wherever torch.compile splits a block; "
                    "use one of them"
                )
            options["context_fn"] = partial(_contexts, block)
        block.forward = partial(_checkpointed, block.forward, options)  # type: ignore[method-assign]


def _checkpointed(forward: Any, options: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, **options, **kwargs)


def _contexts(block: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _statistics_kept(block)


@contextmanager
def _statistics_kept(block: nn.Module) -> Iterator[None]:
    """Lets batch norms compute as in training but not count the same clips a second time."""
    norms = [part for part in block.modules() if isinstance(part, _BatchNorm) and part.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _called(forward: Callable[[torch.Tensor], Any], clips: torch.Tensor) -> Any:
    return forward(clips)


def _sine(values: torch.Tensor) -> torch.Tensor:
    return values.sin()


def _check_compiler(device: torch.device) -> None:
    """Compiles one small function, so that a missing compiler is said before any work is done."""
    from torch._dynamo import utils as dynamo

    try:
        torch.compile(_sine)(torch.zeros(2, device=device))
    except Exception as error:  # many types, of torch's parts and of the compilers below it
        raise UsageError(
            f"model.compile=true: torch.compile does not work here on {device.type} "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}); install what it asks "
            "for (a C++ compiler on a CPU, Triton on CUDA), or leave it false"
        ) from error
    dynamo.counters.clear()  # it is no graph of the network's
    dynamo.clear_compilation_metrics()


def graph_breaks() -> str:
    """Returns in one line what torch.compile has made of the networks of this process so far.

    A graph break is a place in a forward pass that it cannot compile: plain Python runs there, and
    nothing is fused across it. It compiles a network anew when a batch is of another size, and for
    evaluation.

    Returns:
        Number of graphs; of breaks and of recompilations with the reason of each.
    """
    from torch._dynamo import utils as dynamo  # takes a second to import

    graphs = dynamo.counters["stats"]["unique_graphs"]
    if not graphs:
        return f"torch.compile: PyTorch {torch.__version__} found nothing to compile"
    breaks = {_first_line(reason): count
              for reason, count in dynamo.counters["graph_break"].items()}  # fmt: skip
    again = Counter(
        _first_line(metrics.recompile_reason.partition(": ")[2])
        for metrics in dynamo.get_compilation_metrics()
        if metrics.recompile_reason
    )
    return (
        f"torch.compile: {graphs} graphs, {sum(breaks.values())} graph breaks{_listed(breaks)}, "
        f"{sum(again.values())} recompilations{_listed(again)}"
    )


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0].rstrip(":.") if text.strip() else "no reason given"


def _listed(reasons: Mapping[str, int]) -> str:
    shown = "; ".join(f"{count} x {reason}" for reason, count in reasons.items())
    return f" ({shown})" if shown else ""
