"""C2D, a ResNet over frames, on PyTorchVideo's definitions."""

from torch import nn

from vidtrain.models.arguments import rate
from vidtrain.models.mend import mend
from vidtrain.models.pytorchvideo import hub


def c2d(num_classes: int, *, dropout: float = 0.5) -> nn.Module:
    """Builds C2D-R50, a 2-D ResNet over frames pooled once in time; clips of any size.

    Args:
        num_classes: Number of logits.
        dropout: Rate before the classifier.

    Raises:
        UsageError: A dropout outside [0, 1).

    Source: Wang et al., Non-local Neural Networks, CVPR 2018, §4; PySlowFast C2D_8x8_R50.
    """
    return mend(hub.c2d_r50(model_num_class=num_classes, dropout_rate=rate("dropout", dropout)))
