"""I3D on a ResNet, on PyTorchVideo's definitions."""

from torch import nn

from vidtrain.models.arguments import rate
from vidtrain.models.mend import mend
from vidtrain.models.pytorchvideo import hub


def i3d(num_classes: int, *, dropout: float = 0.5) -> nn.Module:
    """Builds I3D-R50, a ResNet inflated to 3-D; clips of any size.

    Args:
        num_classes: Number of logits.
        dropout: Rate before the classifier.

    Raises:
        UsageError: A dropout outside [0, 1).

    Source: Carreira and Zisserman, CVPR 2017, inflated as in Wang et al., CVPR 2018, §4;
    PySlowFast I3D_8x8_R50.
    """
    return mend(hub.i3d_r50(model_num_class=num_classes, dropout_rate=rate("dropout", dropout)))
