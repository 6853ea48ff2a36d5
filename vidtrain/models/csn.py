"""Channel-separated networks (CSN), on PyTorchVideo's definitions."""

from typing import Any

from torch import nn

from vidtrain.models.arguments import choose, rate
from vidtrain.models.mend import mend
from vidtrain.models.pytorchvideo import create_bottleneck_block, create_csn


def csn(
    num_classes: int, *, depth: int = 101, interaction: str = "reduced", dropout: float = 0.5
) -> nn.Module:
    """Builds ir-CSN or ip-CSN, with depthwise 3-D convolutions; clips of any size.

    Args:
        num_classes: Number of logits.
        depth: Layers of the ResNet: 50, 101 or 152.
        interaction: Interaction of channels in front of a depthwise 3x3x3 convolution: reduced
            (ir-CSN, none) or preserved (ip-CSN, a 1x1x1 convolution and its norm).
        dropout: Rate before the classifier.

    Raises:
        UsageError: Another depth or interaction, or a dropout outside [0, 1).

    Source: Tran et al., ICCV 2019, §3; PySlowFast CSN_32x2_R101. MMAction2 has the norm behind
    the 1x1x1 convolution, and no activation: its parameter counts of ip-CSN include it.
    """
    bottlenecks: dict[str, Any] = {
        "reduced": create_bottleneck_block,
        "preserved": _preserved_block,
    }
    return mend(
        create_csn(
            model_depth=choose("depth", depth, {50: 50, 101: 101, 152: 152}),
            model_num_class=num_classes,
            dropout_rate=rate("dropout", dropout),
            stem_pool=nn.MaxPool3d,
            bottleneck=choose("interaction", interaction, bottlenecks),
        )
    )


def _preserved_block(**sizes: Any) -> nn.Module:
    return create_bottleneck_block(**{**sizes, "conv_b": _preserved})


def _preserved(in_channels: int, out_channels: int, **depthwise: Any) -> nn.Module:
    """Returns a 1x1x1 convolution, its norm and the depthwise convolution asked for."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, kernel_size=1, bias=False),
        nn.BatchNorm3d(out_channels),
        nn.Conv3d(out_channels, out_channels, **depthwise),
    )
