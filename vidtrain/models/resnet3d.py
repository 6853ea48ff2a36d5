"""The video ResNets of 18 layers (R3D, MC3, R(2+1)D), on torchvision's definitions."""

from torch import nn
from torchvision.models import video

from vidtrain.models.arguments import choose
from vidtrain.models.mend import GlobalMean


def resnet3d(num_classes: int, *, version: str) -> nn.Module:
    """Builds R3D-18, MC3-18 or R(2+1)D-18; clips of any size.

    The state_dict keys are those of torchvision's network, whose pool of an adaptive size becomes
    a global mean. There is no dropout.

    Args:
        num_classes: Number of logits.
        version: r3d_18 (3-D convolutions), mc3_18 (3-D in the first stage, 2-D behind it) or
            r2plus1d_18 (spatial, then temporal convolutions).

    Raises:
        UsageError: Another version.

    Source: Tran et al., CVPR 2018, §3; torchvision.models.video.resnet.
    """
    versions = {
        "r3d_18": video.r3d_18,
        "mc3_18": video.mc3_18,
        "r2plus1d_18": video.r2plus1d_18,
    }
    net: nn.Module = choose("version", version, versions)(num_classes=num_classes)
    net.avgpool = GlobalMean()
    return net
