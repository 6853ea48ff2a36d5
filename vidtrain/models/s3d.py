"""S3D, a separable 3-D Inception network, on torchvision's definition."""

from torch import nn
from torchvision.models import video

from vidtrain.models.arguments import rate
from vidtrain.models.mend import EndsHalved, FittedMaxPool


def s3d(num_classes: int, *, dropout: float = 0.2) -> nn.Module:
    """Builds S3D; clips of any size.

    The state_dict keys are torchvision's, and so are the logits for clips of 224 pixels and
    any length that torchvision takes (14 frames and more). It publishes accuracies at 128 frames.

    Args:
        num_classes: Number of logits.
        dropout: Rate before the classifier.

    Raises:
        UsageError: A dropout outside [0, 1).

    Source: Xie et al., ECCV 2018, §4; torchvision.models.video.s3d.
    """
    net = video.s3d(num_classes=num_classes, dropout=rate("dropout", dropout))
    net.avgpool = EndsHalved()
    net.features[13] = FittedMaxPool(net.features[13])  # the only one without padding
    return net
