"""I3D on Inception v1 and Inception v3."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn
from torch.nn import functional as F

from vidtrain.models.arguments import rate
from vidtrain.models.mend import EndsHalved, GlobalMean

# Layer -> channels of its branches: 1x1; 1x1, 3x3; 1x1, 3x3 (once 5x5); 1x1 after the pool.
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "MaxPool3d_4a_3x3": (),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "MaxPool3d_5a_2x2": (),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}

# Branches of timm's blocks, each the names of its layers; a tuple of names is a fork.
_BRANCHES: dict[str, tuple[tuple[Any, ...], ...]] = {
    "InceptionA": (
        ("branch1x1",),
        ("branch5x5_1", "branch5x5_2"),
        ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
        ("average", "branch_pool"),
    ),
    "InceptionB": (
        ("branch3x3",),
        ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"),
        ("maximum",),
    ),
    "InceptionC": (
        ("branch1x1",),
        ("branch7x7_1", "branch7x7_2", "branch7x7_3"),
        tuple(f"branch7x7dbl_{number}" for number in range(1, 6)),
        ("average", "branch_pool"),
    ),
    "InceptionD": (
        ("branch3x3_1", "branch3x3_2"),
        tuple(f"branch7x7x3_{number}" for number in range(1, 5)),
        ("maximum",),
    ),
    "InceptionE": (
        ("branch1x1",),
        ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b")),
        ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b")),
        ("average", "branch_pool"),
    ),
}


class SamePad(nn.Module):
    """Zeros around time, height and width, so that a layer of that stride covers every place.

    As in TensorFlow: of an odd number the larger part goes behind. Where a max pool follows a ReLU,
    zeros are as good as nothing.

    Args:
        kernel: Sizes of the following layer's kernel.
        stride: Its strides, none larger than the kernel.
    """

    def __init__(self, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.kernel = kernel
        self.stride = stride

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, T, H, W) to the same with larger T, H, W."""
        padding: list[int] = []
        for axis in (2, 1, 0):
            size, stride = features.shape[2 + axis], self.stride[axis]
            total = (size + stride - 1) // stride * stride - stride + self.kernel[axis] - size
            padding += [total // 2, total - total // 2]
        return F.pad(features, padding)


class Average(nn.Module):
    """Mean of 3x3x3 places, with zeros around the map that count.

    Over height and width first and then over time, because CUDA has no deterministic backward for
    average pooling in 3-D.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, T, H, W) to the same shape."""
        maps = F.avg_pool2d(features.flatten(1, 2), 3, stride=1, padding=1)
        padded = F.pad(maps.reshape(features.shape), (0, 0, 0, 0, 1, 1))
        return (padded[:, :, :-2] + padded[:, :, 1:-1] + padded[:, :, 2:]) / 3


class Branches(nn.Module):
    """Layers side by side and one behind the other, their outputs joined along channels.

    Args:
        layers: The layers by name.
        branches: For each branch the names of its layers in order; a tuple of names is a fork.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], branches: tuple[tuple[Any, ...], ...]
    ) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.branches = branches

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, T, H, W) to (B, sum of the branches' channels, T', H', W')."""
        joined = []
        for branch in self.branches:
            outputs = [features]
            for names in branch:
                fork = (names,) if isinstance(names, str) else names
                outputs = [self.get_submodule(name)(outputs[0]) for name in fork]
            joined += outputs
        return torch.cat(joined, dim=1)


def i3d_inceptionv1(num_classes: int, *, dropout: float = 0.5) -> nn.Module:
    """Builds the first I3D, on Inception v1, for clips of any size.

    Of the last layer's T / 8 steps the first and the last count half in the mean over time: the
    original slides a window of two steps over them and averages the windows' logits.

    Args:
        num_classes: Number of logits.
        dropout: Rate before the classifier.

    Raises:
        UsageError: A dropout outside [0, 1).

    Source: Carreira and Zisserman, CVPR 2017, §2.4 and figure 3; layer names, batch normalisation
    and padding as in piergiaj/pytorch-i3d, which converted the published weights.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        Conv3d_1a_7x7=_unit(3, 64, 7, stride=2),
        MaxPool3d_2a_3x3=_pool((1, 3, 3), (1, 2, 2)),
        Conv3d_2b_1x1=_unit(64, 64, 1),
        Conv3d_2c_3x3=_unit(64, 192, 3),
        MaxPool3d_3a_3x3=_pool((1, 3, 3), (1, 2, 2)),
    )
    channels = 192
    for name, widths in _MIXED.items():
        if widths:
            layers[name] = _mixed(channels, widths)
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        else:
            size = 3 if name.endswith("3x3") else 2
            layers[name] = _pool((size, size, size), (2, 2, 2))
    layers["mean"] = EndsHalved()
    layers["dropout"] = nn.Dropout(rate("dropout", dropout))
    layers["logits"] = nn.Sequential(
        OrderedDict(conv3d=nn.Conv3d(channels, num_classes, 1), flatten=nn.Flatten())
    )
    return nn.Sequential(layers)


def i3d_inceptionv3(num_classes: int, *, dropout: float = 0.5) -> nn.Module:
    """Builds I3D on Inception v3, every kernel as long as it is high or wide; any clip size.

    Layers are named as in timm's inception_v3, whose weights inflate into it key by key.

    Args:
        num_classes: Number of logits.
        dropout: Rate before the classifier.

    Raises:
        UsageError: A dropout outside [0, 1).

    Source: Szegedy et al., CVPR 2016, §6, inflated as in GluonCV's i3d_inceptionv3_kinetics400.
    """
    with torch.device("meta"):
        flat = timm.create_model("inception_v3", pretrained=False, num_classes=0)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for name, layer in flat.named_children():
        if name == "global_pool":
            break
        kind = type(layer).__name__
        if kind in _BRANCHES:
            parts: dict[str, nn.Module] = {
                key: _inflate(part) for key, part in layer.named_children()
            }
            parts["average"] = Average()
            parts["maximum"] = nn.MaxPool3d(3, stride=2, padding=(1, 0, 0))
            layers[name] = Branches(parts, _BRANCHES[kind])
        elif isinstance(layer, nn.MaxPool2d):
            layers[name] = nn.MaxPool3d(3, stride=(1, 2, 2), padding=(1, 0, 0))
        else:
            layers[name] = _inflate(layer)
    layers["mean"] = GlobalMean()
    layers["flatten"] = nn.Flatten()
    layers["dropout"] = nn.Dropout(rate("dropout", dropout))
    fc = layers["fc"] = nn.Linear(2048, num_classes)
    nn.init.normal_(fc.weight, std=0.01)
    nn.init.zeros_(fc.bias)
    return nn.Sequential(layers)


def _unit(inputs: int, outputs: int, size: int, *, stride: int = 1) -> nn.Sequential:
    """Convolution, batch normalisation and ReLU that divide the size by the stride, rounded up."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if stride > 1:
        layers["pad"] = SamePad((size,) * 3, (stride,) * 3)
    padding = 0 if stride > 1 else size // 2
    layers["conv3d"] = nn.Conv3d(inputs, outputs, size, stride=stride, padding=padding, bias=False)
    layers["bn"] = nn.BatchNorm3d(outputs, eps=1e-3, momentum=0.01)
    layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def _pool(kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> nn.Sequential:
    return nn.Sequential(SamePad(kernel, stride), nn.MaxPool3d(kernel, stride=stride))


def _mixed(channels: int, widths: tuple[int, ...]) -> Branches:
    layers = {
        "b0": _unit(channels, widths[0], 1),
        "b1a": _unit(channels, widths[1], 1),
        "b1b": _unit(widths[1], widths[2], 3),
        "b2a": _unit(channels, widths[3], 1),
        "b2b": _unit(widths[3], widths[4], 3),
        "b3a": nn.MaxPool3d(3, stride=1, padding=1),
        "b3b": _unit(channels, widths[5], 1),
    }
    return Branches(layers, (("b0",), ("b1a", "b1b"), ("b2a", "b2b"), ("b3a", "b3b")))


def _inflate(flat: Any) -> nn.Sequential:
    """Convolution, batch normalisation and ReLU in 3-D, after timm's layer in 2-D."""
    conv = flat.conv
    length = max(conv.kernel_size)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv3d(
                conv.in_channels,
                conv.out_channels,
                (length, *conv.kernel_size),
                stride=(conv.stride[0], *conv.stride),
                padding=(length // 2, *conv.padding),
                bias=False,
            ),
            bn=nn.BatchNorm3d(conv.out_channels, eps=flat.bn.eps),
            relu=nn.ReLU(),
        )
    )
