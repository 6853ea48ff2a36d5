"""Repairs to PyTorchVideo's networks: exportable, any clip size, logits out, reproducible."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from pytorchvideo.layers.swish import Swish
from pytorchvideo.models.head import ResNetBasicHead, VisionTransformerBasicHead
from pytorchvideo.models.slowfast import PoolConcatPathway
from pytorchvideo.models.x3d import ProjectedPool
from torch import nn

_SIZES = ("stride", "kernel_size", "padding", "dilation")


class GlobalMean(nn.Module):
    """Mean over time and space: (B, C, T, H, W) -> (B, C, 1, 1, 1), for any T, H and W.

    A mean, because CUDA has no deterministic backward for average pooling.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the mean over the last three axes, kept with size 1."""
        return features.mean((2, 3, 4), keepdim=True)


def mend(module: nn.Module) -> nn.Module:
    """Repairs a PyTorchVideo network in place and returns it.

    - NumPy integers among strides and sizes become ints, Swish becomes nn.SiLU: without this
      export and tracing fail.
    - Head pools of a fixed size become a global mean, and no softmax follows: the output is
      (B, num_classes) logits in train and eval, for every clip length and crop. At the size the
      network was built for the numbers stay what they were. At a larger size the original slides
      its pool over the feature map, takes the softmax at each place and averages those.

    None of the parts exchanged holds weights, so the state_dict keys stay the same.

    Args:
        module: A whole network (or part of one) built by PyTorchVideo, on any device.
    """
    for part in list(module.modules()):
        for name in _SIZES:
            if hasattr(part, name):
                setattr(part, name, _plain(getattr(part, name)))
        for name, child in list(part.named_children()):
            if isinstance(child, Swish):
                setattr(part, name, nn.SiLU())
        if isinstance(part, (ResNetBasicHead, VisionTransformerBasicHead)):
            part.activation = None
        if isinstance(part, ResNetBasicHead):
            _pool_globally(part, ["pool"])
            part.output_pool = GlobalMean()
        elif isinstance(part, ProjectedPool):
            _pool_globally(part, ["pool"])
        elif isinstance(part, PoolConcatPathway) and part.pool is not None:
            _pool_globally(part.pool, [name for name, _ in part.pool.named_children()])
    return module


def _pool_globally(owner: nn.Module, names: Iterable[str]) -> None:
    for name in names:
        if isinstance(getattr(owner, name), (nn.AvgPool3d, nn.AdaptiveAvgPool3d)):
            setattr(owner, name, GlobalMean())


def _plain(size: Any) -> Any:
    """Returns a size with int in place of every NumPy integer; anything else as it is."""
    if isinstance(size, np.integer):
        return int(size)
    if isinstance(size, (tuple, list)):
        return tuple(_plain(item) for item in size)
    return size
