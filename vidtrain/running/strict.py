"""repro=strict: deterministic algorithms, pinned threads, no TF32; refusals before training starts.

Source: the docstring of torch.use_deterministic_algorithms, read at torch 2.14, and the calls of
`alertNotDeterministic` in that release's CUDA library.
"""

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode

from vidtrain import build
from vidtrain.config.train import TrainConfig
from vidtrain.distributed import World
from vidtrain.errors import UsageError
from vidtrain.models.counting import without_values
from vidtrain.models.deterministic import separate_pools
from vidtrain.records import runlog
from vidtrain.running.parts import Parts

# Where num_threads is null. The only number that every machine has: with more, libraries may use
# fewer than they are told, and sums on a CPU depend on how many there are.
THREADS = 1
WORKSPACE, WORKSPACE_SIZES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")


@dataclass(frozen=True)
class Kernel:
    """A CUDA kernel that has no deterministic version.

    Attributes:
        op: aten name of what raises.
        forward: aten name of what it is the backward pass of; or the same.
        name: What PyTorch's documentation calls it.
        remedy: What to use in its place.
    """

    op: str
    forward: str
    name: str
    remedy: str


def _backward(forward: str, name: str, remedy: str) -> Kernel:
    return Kernel(f"{forward}_backward", forward, name, remedy)


_MEAN = "take the mean over the axes: features.mean((2, 3, 4)); an output size of 1 is such a mean"
_RESIZE = "use mode=nearest, or resize what is not trained once, before training"
_PAD = "pad with constant or replicate"
_UNPOOL = "use a transposed convolution"
KERNELS = (
    _backward("avg_pool3d", "torch.nn.AvgPool3d", _MEAN),
    _backward("_adaptive_avg_pool2d", "torch.nn.AdaptiveAvgPool2d", _MEAN),
    _backward("_adaptive_avg_pool3d", "torch.nn.AdaptiveAvgPool3d", _MEAN),
    _backward("adaptive_max_pool2d", "torch.nn.AdaptiveMaxPool2d", "use features.amax((2, 3))"),
    _backward("fractional_max_pool2d", "torch.nn.FractionalMaxPool2d", "use MaxPool2d"),
    _backward("fractional_max_pool3d", "torch.nn.FractionalMaxPool3d", "use MaxPool3d"),
    # The documentation takes it for deterministic; that holds with return_indices=True only.
    _backward("max_pool3d_with_indices", "torch.nn.MaxPool3d", "use nn.MaxPool3d as a module, "
              "which repro=strict exchanges, and not the function"),
    Kernel("max_unpool2d", "max_unpool2d", "torch.nn.MaxUnpool1d", _UNPOOL),
    Kernel("max_unpool2d", "max_unpool2d", "torch.nn.MaxUnpool2d", _UNPOOL),
    Kernel("max_unpool3d", "max_unpool3d", "torch.nn.MaxUnpool3d", _UNPOOL),
    *(_backward(op, "torch.nn.functional.interpolate", _RESIZE)
      for op in ("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d",
                 "upsample_trilinear3d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")),
    *(_backward(f"reflection_pad{axes}d", f"torch.nn.ReflectionPad{axes}d", _PAD)
      for axes in (1, 2, 3)),
    Kernel("nll_loss2d_forward", "nll_loss2d_forward", "torch.nn.NLLLoss",
           "flatten space away: (N, classes) and (N,)"),
    _backward("_ctc_loss", "torch.nn.CTCLoss", "compute it on the CPU"),
    _backward("_embedding_bag", "torch.nn.EmbeddingBag", "use nn.Embedding and amax"),
    Kernel("put_", "put_", "torch.Tensor.put_", "use index_put_ with accumulate=False"),
    Kernel("histc", "histc", "torch.histc", "compute it on the CPU"),
    Kernel("bincount", "bincount", "torch.bincount", "compute it on the CPU"),
    Kernel("median.dim", "median.dim", "torch.median", "use sort"),
    *(_backward(op, "torch.nn.functional.grid_sample", "warp clips before the network, where no "
                "gradient is needed")
      for op in ("grid_sampler_2d", "grid_sampler_3d", "cudnn_grid_sampler")),
    Kernel("scatter_reduce", "scatter_reduce", "torch.Tensor.scatter_reduce", "use reduce=sum"),
    Kernel("index_reduce", "index_reduce", "torch.index_reduce", "use index_add"),
)  # fmt: skip


@contextmanager
def mode(config: TrainConfig) -> Iterator[None]:
    """Sets, before anything is built, what config.repro asks for, and takes it back at the end.

    Raises:
        UsageError: An unknown value, or a setting or variable that contradicts strict.
    """
    if config.repro not in ("default", "strict"):
        raise UsageError(f"repro={config.repro} is unknown; use default or strict")
    if config.repro == "default":
        yield
        return
    if config.precision.tf32:
        raise UsageError(
            "repro=strict and precision.tf32=true contradict each other: TF32 rounds products as "
            "the graphics card likes; set precision.tf32=false, or repro=default"
        )
    workspace, before, threads = os.environ.get(WORKSPACE), _flags(), torch.get_num_threads()
    _check_workspace(workspace)
    try:
        os.environ.setdefault(WORKSPACE, WORKSPACE_SIZES[0])
        _set_flags(dict.fromkeys(before, False) | {
            "algorithms": True, "fill": True, "cudnn_deterministic": True,
        })  # fmt: skip
        torch.set_num_threads(config.num_threads or THREADS)
        yield
    finally:
        _set_flags(before)
        torch.set_num_threads(threads)
        if workspace is None:
            os.environ.pop(WORKSPACE, None)


def _check_workspace(workspace: str | None) -> None:
    if workspace is not None and workspace not in WORKSPACE_SIZES:
        raise UsageError(
            f"repro=strict needs {WORKSPACE}={WORKSPACE_SIZES[0]} or {WORKSPACE_SIZES[1]}, but the "
            f"environment has {workspace!r}; unset the variable"
        )
    if workspace is None and torch.cuda.is_initialized():
        raise UsageError(
            f"repro=strict: CUDA is in use already, and cuBLAS reads {WORKSPACE} once; set "
            f"{WORKSPACE}={WORKSPACE_SIZES[0]} before the process starts"
        )


def _flags() -> dict[str, bool]:
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def _set_flags(flags: dict[str, bool]) -> None:
    torch.use_deterministic_algorithms(flags["algorithms"], warn_only=flags["warn_only"])
    deterministic.fill_uninitialized_memory = flags["fill"]  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = flags["cudnn_deterministic"]
    torch.backends.cudnn.benchmark = flags["cudnn_benchmark"]
    torch.backends.cudnn.allow_tf32 = flags["cudnn_tf32"]
    torch.backends.cuda.matmul.allow_tf32 = flags["matmul_tf32"]


def refuse(config: TrainConfig, parts: Parts, world: World) -> None:
    """Under repro=strict on CUDA: exchanges 3-D max pools, and refuses what has no remedy here.

    Raises:
        UsageError: The network uses a kernel that is not deterministic; each is named, with the
            layers that it is used in and what to use in its place.
    """
    if config.repro != "strict" or world.device.type != "cuda":
        return
    pools = separate_pools(parts.model)
    if pools and world.is_main:
        runlog.warn(f"repro=strict: {len(pools)} 3-D max pools are computed over space, then over "
                    "time, which is deterministic on CUDA")  # fmt: skip
    inputs, network = config.model.input, parts.model
    if parts.sharded:  # a part of the weights cannot be run by itself
        network = build.model(config.model, num_classes=len(parts.class_names), seed=config.seed)
    try:
        found = unsupported(network, (2, 3, inputs.num_frames, *[inputs.crop_size] * 2))
    except Exception as error:  # a network of somebody's own may look at values
        runlog.warn(f"repro=strict: model={config.model.name} cannot be looked through before "
                    f"training ({type(error).__name__}: {str(error).splitlines()[0]}); PyTorch "
                    "stops at the first kernel that is not deterministic")  # fmt: skip
        return
    if found:
        raise UsageError(
            f"repro=strict: model={config.model.name} needs CUDA kernels that are not "
            f"deterministic: {'; '.join(found)}. Or take another model (docs/reproducibility.md), "
            "device=cpu, or repro=default"
        )


def unsupported(network: nn.Module, shape: tuple[int, ...]) -> list[str]:
    """Goes through a training step without values and lists kernels that CUDA lacks.

    Args:
        network: On any device; stays as it is.
        shape: Of a batch of clips (B, 3, T, H, W).

    Returns:
        A phrase for each: its name, the layers where it is used, and what to use in its place.
    """
    network = without_values(network).train()
    seen = _Seen()
    for path, part in network.named_modules():
        part.register_forward_pre_hook(partial(seen.enter, path))
        part.register_forward_hook(seen.leave)
    try:
        with seen:
            logits = network(torch.empty(shape, device="meta"))
            if logits.requires_grad:
                logits.sum().backward()
    except NotImplementedError:  # one that cannot be run without values is noted too
        if not any(kernel.op in seen.where for kernel in KERNELS):
            raise
    lines = {}
    for kernel in KERNELS:
        if kernel.op in seen.where:
            layers = [path for path in dict.fromkeys(seen.where[kernel.forward]) if path]
            at = f" in {', '.join(layers[:4])}{', ...' * (len(layers) > 4)}" if layers else ""
            lines[kernel.op] = f"{kernel.name}{at} ({kernel.op}): {kernel.remedy}"
    return list(lines.values())


class _Seen(TorchDispatchMode):
    """Notes the operations that run, and the layer each runs in."""

    def __init__(self) -> None:
        super().__init__()
        self.path: list[str] = []
        self.where: dict[str, list[str]] = defaultdict(list)

    def enter(self, path: str, *_: Any) -> None:
        self.path.append(path)

    def leave(self, *_: Any) -> None:
        self.path.pop()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        for known in (name, f"{name}.{func._schema.overload_name}"):
            self.where[known].append(self.path[-1] if self.path else "")
        return func(*args, **(kwargs or {}))
