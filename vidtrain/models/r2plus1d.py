"""R(2+1)D, on PyTorchVideo's definitions."""

from torch import nn

from vidtrain.models.arguments import rate
from vidtrain.models.mend import mend
from vidtrain.models.pytorchvideo import create_r2plus1d


def r2plus1d(num_classes: int, *, dropout: float = 0.5) -> nn.Module:
    """Builds R(2+1)D-50, spatial then temporal convolutions; clips of any size.

    Args:
        num_classes: Number of logits.
        dropout: Rate before the classifier.

    Raises:
        UsageError: A dropout outside [0, 1).

    Source: Tran et al., CVPR 2018, §3; PySlowFast R2PLUS1D_16x4_R50.
    """
    # The hub's function fixes the dropout and refuses another.
    return mend(create_r2plus1d(model_num_class=num_classes, dropout_rate=rate("dropout", dropout)))
