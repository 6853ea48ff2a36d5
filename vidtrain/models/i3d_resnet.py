"""I3D ResNets as GluonCV has them: inflated in every second block, with or without non-local."""

import torch
from torch import nn
from torch.nn import functional as F

from vidtrain.models.arguments import choose, rate
from vidtrain.models.mend import FittedMaxPool

# Blocks of each stage that end in a non-local block, by their number and the depth of the ResNet.
_NON_LOCAL: dict[int, dict[int, dict[int, range]]] = {
    0: {50: {}, 101: {}},
    5: {50: {1: range(1, 4, 2), 2: range(1, 6, 2)}, 101: {1: range(1, 4, 2), 2: range(6, 23, 7)}},
    10: {50: {1: range(4), 2: range(6)}, 101: {1: range(4), 2: range(2, 23, 4)}},
}


class NonLocal(nn.Module):
    """Attention among all places of a feature map, added to it: embedded Gaussian.

    Args:
        channels: Channels of the feature map; queries, keys and values have half as many.

    Source: Wang et al., Non-local Neural Networks, CVPR 2018, §3; scores divided by the square
    root of the width, as in GluonCV.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = nn.Conv3d(channels, channels // 2, kernel_size=1)
        self.phi = nn.Conv3d(channels, channels // 2, kernel_size=1)
        self.g = nn.Conv3d(channels, channels // 2, kernel_size=1)
        self.W = nn.Conv3d(channels // 2, channels, kernel_size=1)
        self.bn = nn.BatchNorm3d(channels)
        nn.init.normal_(self.g.weight, std=0.01)
        nn.init.zeros_(self.bn.weight)  # the block starts as the identity

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps (B, C, T, H, W) to the same shape."""
        query, key, value = (
            part(features).flatten(2).transpose(1, 2).unsqueeze(1)  # as one head
            for part in (self.theta, self.phi, self.g)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).squeeze(1).transpose(1, 2)
        shape = mixed.shape[:2] + features.shape[2:]
        return self.bn(self.W(mixed.reshape(shape))) + features


class Bottleneck(nn.Module):
    """Residual block 1x1x1 or 3x1x1, 1x3x3, 1x1x1.

    Args:
        inplanes: Channels of the input.
        planes: Channels within; the output has four times as many.
        stride: Stride of height and width.
        inflated: Whether the first convolution spans three frames.
        non_local: Whether a non-local block follows.
    """

    def __init__(
        self, inplanes: int, planes: int, *, stride: int, inflated: bool, non_local: bool
    ) -> None:
        super().__init__()
        span = 3 if inflated else 1
        self.conv1 = _conv(inplanes, planes, (span, 1, 1))
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = _conv(planes, planes, (1, 3, 3), stride=(1, stride, stride))
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3 = _conv(planes, planes * 4, (1, 1, 1))
        self.bn3 = nn.BatchNorm3d(planes * 4)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if inplanes != planes * 4:
            self.downsample = nn.Sequential(
                _conv(inplanes, planes * 4, (1, 1, 1), stride=(1, stride, stride)),
                nn.BatchNorm3d(planes * 4),
            )
        self.nonlocal_block = NonLocal(planes * 4) if non_local else None

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Maps (B, inplanes, T, H, W) to (B, 4 * planes, T, H / stride, W / stride)."""
        residual = self.relu(self.bn1(self.conv1(features)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        if self.downsample is not None:
            features = self.downsample(features)
        features = self.relu(residual + features)
        return features if self.nonlocal_block is None else self.nonlocal_block(features)


class I3DResNet(nn.Module):
    """Stem, four stages and a classifier; time is halved in the stem, after it and after stage 1.

    Args:
        stages: The four stages.
        num_classes: Number of logits.
        dropout: Rate before the classifier.
    """

    def __init__(self, stages: list[nn.Sequential], *, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.first_stage = nn.Sequential(
            _conv(3, 64, (5, 7, 7), stride=(2, 2, 2)),
            nn.BatchNorm3d(64),
            nn.ReLU(),
            nn.MaxPool3d(kernel_size=(1, 3, 3), stride=(2, 2, 2), padding=(0, 1, 1)),
        )
        self.pool2 = FittedMaxPool(nn.MaxPool3d(kernel_size=(2, 1, 1), stride=(2, 1, 1)))
        self.res_layers = nn.Sequential(*stages)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(2048, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Maps (B, 3, T, H, W) to (B, num_classes) logits."""
        features = self.first_stage(video)
        for number, stage in enumerate(self.res_layers):
            features = stage(features)
            if number == 0:
                features = self.pool2(features)
        return self.fc(self.dropout(features.mean((2, 3, 4))))


def i3d_resnet(
    num_classes: int, *, depth: int = 50, non_local: int = 0, dropout: float = 0.5
) -> nn.Module:
    """Builds GluonCV's I3D ResNet for clips of any size.

    It differs from `i3d.i3d`, which is PySlowFast's: time is halved three times, and only every
    second block spans frames.

    Args:
        num_classes: Number of logits.
        depth: Layers of the ResNet, 50 or 101.
        non_local: Number of non-local blocks in the second and third stage: 0, 5 or 10.
        dropout: Rate before the classifier.

    Raises:
        UsageError: Another depth or number, or a dropout outside [0, 1).

    Source: Carreira and Zisserman, CVPR 2017; Wang et al., CVPR 2018, §4; GluonCV
    i3d_resnet50_v1_kinetics400, i3d_nl5_resnet50_v1_kinetics400 and the like.
    """
    counts = choose("depth", depth, {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)})
    attentive = choose("non_local", non_local, _NON_LOCAL)[depth]
    stages = []
    inplanes = 64
    for number, count in enumerate(counts):
        blocks: list[nn.Module] = []
        for index in range(count):
            blocks.append(
                Bottleneck(
                    inplanes,
                    64 << number,
                    stride=2 if number and not index else 1,
                    inflated=number == 0 or index % 2 == (number == 3),
                    non_local=index in attentive.get(number, ()),
                )
            )
            inplanes = 256 << number
        stages.append(nn.Sequential(*blocks))
    return I3DResNet(stages, num_classes=num_classes, dropout=rate("dropout", dropout))


def _conv(
    inplanes: int,
    planes: int,
    kernel: tuple[int, int, int],
    *,
    stride: tuple[int, int, int] = (1, 1, 1),
) -> nn.Conv3d:
    """A convolution without bias that keeps the size, but for its stride."""
    padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return nn.Conv3d(inplanes, planes, kernel, stride=stride, padding=padding, bias=False)
