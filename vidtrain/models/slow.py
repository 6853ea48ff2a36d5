"""Slow, the slow pathway of SlowFast alone, on PyTorchVideo's definitions."""

from torch import nn

from vidtrain.models.arguments import rate
from vidtrain.models.mend import mend
from vidtrain.models.pytorchvideo import hub


def slow(num_classes: int, *, dropout: float = 0.5) -> nn.Module:
    """Builds Slow-R50, the slow pathway alone; clips of any size.

    Args:
        num_classes: Number of logits.
        dropout: Rate before the classifier.

    Raises:
        UsageError: A dropout outside [0, 1).

    Source: Feichtenhofer et al., ICCV 2019, §3.1; PySlowFast SLOW_8x8_R50,
    SLOW_4x16_R50: one network, published for clips of two lengths.
    """
    return mend(hub.slow_r50(model_num_class=num_classes, dropout_rate=rate("dropout", dropout)))
