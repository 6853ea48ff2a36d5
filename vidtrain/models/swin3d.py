"""Video Swin, on torchvision's definitions."""

from torch import nn
from torchvision.models.video import SwinTransformer3d

from vidtrain.models.arguments import choose, rate
from vidtrain.models.mend import GlobalMean

# Channels and heads of the first stage, blocks of the third.
_VERSIONS = {"t": (96, 3, 6), "s": (96, 3, 18), "b": (128, 4, 18)}


def swin3d(
    num_classes: int, *, version: str = "t", dropout: float = 0.5, drop_path: float = 0.1
) -> nn.Module:
    """Builds Video Swin; clips of any size, whose feature maps it pads to whole windows.

    Args:
        num_classes: Number of logits.
        version: t, s or b.
        dropout: Rate before the classifier.
        drop_path: Rate at which the last block is skipped; grows linearly from 0 at the first.

    Returns:
        torchvision's network, with a mean that has a deterministic backward in place of its pool.

    Raises:
        UsageError: Another version, or a rate outside [0, 1).

    Source: Liu et al., CVPR 2022, §3; MMAction2 swin-*-p244-w877.
    """
    width, heads, depth = choose("version", version, _VERSIONS)
    # torchvision's functions of these names do not let the drop path rate be set.
    net = SwinTransformer3d(
        patch_size=[2, 4, 4],
        embed_dim=width,
        depths=[2, 2, depth, 2],
        num_heads=[heads, 2 * heads, 4 * heads, 8 * heads],
        window_size=[8, 7, 7],
        stochastic_depth_prob=rate("drop_path", drop_path),
        num_classes=num_classes,
    )
    net.avgpool = nn.Sequential(GlobalMean(), nn.Dropout(rate("dropout", dropout)))
    return net
