"""CSN, on PyTorchVideo's definitions."""

from torch import nn

from vidtrain.models.arguments import rate
from vidtrain.models.mend import mend
from vidtrain.models.pytorchvideo import hub


def csn(num_classes: int, *, dropout: float = 0.5) -> nn.Module:
    """Builds ir-CSN-101, with depthwise 3-D convolutions; clips of any size.

    Args:
        num_classes: Number of logits.
        dropout: Rate before the classifier.

    Raises:
        UsageError: A dropout outside [0, 1).

    Source: Tran et al., ICCV 2019, §3; PySlowFast CSN_32x2_R101.
    """
    return mend(hub.csn_r101(model_num_class=num_classes, dropout_rate=rate("dropout", dropout)))
