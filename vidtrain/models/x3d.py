"""X3D, on PyTorchVideo's definitions."""

from torch import nn

from vidtrain.models.arguments import choose, rate
from vidtrain.models.mend import mend
from vidtrain.models.pytorchvideo import hub


def x3d(num_classes: int, *, version: str, dropout: float = 0.5) -> nn.Module:
    """Builds X3D; clips of any size.

    XS, S and M are one network, published for different clips; L is deeper.

    Args:
        num_classes: Number of logits.
        version: xs, s, m or l.
        dropout: Rate before the classifier.

    Raises:
        UsageError: Another version, or a dropout outside [0, 1).

    Source: Feichtenhofer, CVPR 2020, §3; PySlowFast X3D_XS, X3D_S, X3D_M, X3D_L.
    """
    versions = {"xs": hub.x3d_xs, "s": hub.x3d_s, "m": hub.x3d_m, "l": hub.x3d_l}
    build = choose("version", version, versions)
    return mend(build(model_num_class=num_classes, dropout_rate=rate("dropout", dropout)))
