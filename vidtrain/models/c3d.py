"""A small C3D: enough to learn motion from scratch on a CPU in minutes."""

from typing import Literal

import torch
from torch import nn


class Differences(nn.Module):
    """What changes from frame to frame: (B, C, T, H, W) -> (B, C, T - 1, H, W)."""

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Returns each frame but the first, less the one before it."""
        return video[:, :, 1:] - video[:, :, :-1]


class MeanAndMax(nn.Module):
    """Mean over time and space, plus the strongest place of the mean over time.

    Something small that moves counts as much in a large frame as in a small one.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, T, H, W) to (B, C)."""
        places = features.mean(2)
        return places.mean((2, 3)) + places.amax((2, 3))


def c3d(
    *, num_classes: int, width: int = 16, dropout: float = 0.0, differences: bool = False,
    pool: Literal["mean", "mean_max"] = "mean",
) -> nn.Module:  # fmt: skip
    """Returns four 3x3x3 convolutions with batch norm, a global pool and a linear layer.

    C3D's idea at a hundredth of its cost: channels double per layer from `width`, space is halved
    three times and time once. Takes any clip of 2 frames (3 with `differences`) and 8 pixels or
    more.

    Args:
        num_classes: Size of the output.
        width: Channels of the first layer.
        dropout: Dropout before the linear layer, in [0, 1).
        differences: See the differences of neighbouring frames in place of the frames, so that
            what does not move is not there.
        pool: mean over time and space; mean_max: plus the strongest place.

    Returns:
        A network that maps (B, 3, T, H, W) float32 to (B, num_classes) logits.

    Source: Tran et al., Learning spatiotemporal features with 3D convolutional networks, ICCV
    2015, section 3 (homogeneous 3x3x3 kernels); batch norm instead of pre-training; differences
    after Wang et al., Temporal Segment Networks, ECCV 2016, section 3.2 (RGB difference).
    """
    channels = [3, width, 2 * width, 4 * width, 8 * width]
    strides = [(1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 1, 1)]
    layers: list[nn.Module] = [Differences()] if differences else []
    for wide_in, wide_out, stride in zip(channels, channels[1:], strides, strict=False):
        layers += [
            nn.Conv3d(wide_in, wide_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm3d(wide_out),
            nn.ReLU(inplace=True),
        ]
    pooling = MeanAndMax() if pool == "mean_max" else nn.AdaptiveAvgPool3d(1)
    head = [pooling, nn.Flatten(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, *head, nn.Linear(channels[-1], num_classes))
