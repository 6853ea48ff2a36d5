"""A small C3D: enough to learn motion from scratch on a CPU in minutes."""

from torch import nn


def c3d(*, num_classes: int, width: int = 16, dropout: float = 0.0) -> nn.Module:
    """Returns four 3x3x3 convolutions with batch norm, a global pool and a linear layer.

    C3D's idea at a hundredth of its cost: channels double per layer from `width`, space is halved
    three times and time once. Takes any clip of 2 frames and 8 pixels or more.

    Args:
        num_classes: Size of the output.
        width: Channels of the first layer.
        dropout: Dropout before the linear layer, in [0, 1).

    Returns:
        A network that maps (B, 3, T, H, W) float32 to (B, num_classes) logits.

    Source: Tran et al., Learning spatiotemporal features with 3D convolutional networks, ICCV
    2015, section 3 (homogeneous 3x3x3 kernels); batch norm instead of pre-training.
    """
    channels = [3, width, 2 * width, 4 * width, 8 * width]
    strides = [(1, 2, 2), (1, 2, 2), (2, 2, 2), (1, 1, 1)]
    layers: list[nn.Module] = []
    for wide_in, wide_out, stride in zip(channels, channels[1:], strides, strict=False):
        layers += [
            nn.Conv3d(wide_in, wide_out, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm3d(wide_out),
            nn.ReLU(inplace=True),
        ]
    head = [nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, *head, nn.Linear(channels[-1], num_classes))
