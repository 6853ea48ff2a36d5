"""Repairs to PyTorchVideo's networks: exportable, any clip size, logits out, reproducible."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vidtrain.models.pytorchvideo import (
    PoolConcatPathway,
    ProjectedPool,
    ResNetBasicHead,
    Swish,
    VisionTransformerBasicHead,
)

_SIZES = ("stride", "kernel_size", "padding", "dilation")


class GlobalMean(nn.Module):
    """Mean over time and space: (B, C, T, H, W) -> (B, C, 1, 1, 1), for any T, H and W.

    A mean, because CUDA has no deterministic backward for average pooling.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the mean over the last three axes, kept with size 1."""
        return features.mean((2, 3, 4), keepdim=True)


class EndsHalved(nn.Module):
    """Mean of (B, C, T, H, W) over time and space, the first and last frame weighing half.

    torchvision slides an average pool of 2x7x7 over the features and takes the mean behind its
    1x1x1 classifier. That is linear, so it is a weighted mean before the classifier; with 7x7
    features (clips of 224 pixels) it is this one at every length. The 2 frames that a clip of 16
    leaves weigh the same, so only there is it the plain mean. At other crops torchvision refuses
    the clip, or weighs pixels at the border less, which this does not.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the mean, with size 1 for time and space."""
        frame = torch.arange(features.shape[2], device=features.device)
        weights = 1 - 0.5 * ((frame == 0) | (frame == frame[-1])).to(features.dtype)
        weights = (weights / weights.sum()).view(1, 1, -1, 1, 1)
        return (features.mean((3, 4), keepdim=True) * weights).sum(2, keepdim=True)


class FittedMaxPool(nn.Module):
    """Max pool whose kernel shrinks with its input, so that clips of one frame pass through it.

    Args:
        pool: Pool without padding, taken over; elsewhere the results are its own.
    """

    def __init__(self, pool: nn.MaxPool3d) -> None:
        super().__init__()
        self.kernel_size, self.stride = _triple(pool.kernel_size), pool.stride

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, T, H, W) to (B, C, T', H', W'), none of them below 1."""
        kernel = [min(*sizes) for sizes in zip(self.kernel_size, features.shape[2:], strict=True)]
        return functional.max_pool3d(features, kernel, self.stride)


def mend(module: nn.Module) -> nn.Module:
    """Repairs a PyTorchVideo network in place and returns it.

    - NumPy integers among strides and sizes become ints, Swish becomes nn.SiLU: without this
      export and tracing fail.
    - Head pools of a fixed size become a global mean, and no softmax follows: the output is
      (B, num_classes) logits in train and eval, for every clip length and crop. At the size the
      network was built for the numbers stay what they were. At a larger size the original slides
      its pool over the feature map, takes the softmax at each place and averages those.
    - Max pools without padding fit their input: the one of C2D and I3D refuses a single frame.

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
            elif isinstance(child, nn.MaxPool3d) and not any(_triple(child.padding)):
                setattr(part, name, FittedMaxPool(child))
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


def _triple(size: Any) -> tuple[int, ...]:
    return tuple(size) if isinstance(size, (tuple, list)) else (size,) * 3


def _plain(size: Any) -> Any:
    """Returns a size with int in place of every NumPy integer; anything else as it is."""
    if isinstance(size, np.integer):
        return int(size)
    if isinstance(size, (tuple, list)):
        return tuple(_plain(item) for item in size)
    return size
