"""Which parameters the optimizer sees, and with what weight decay."""

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, *, no_decay_norm_bias: bool) -> list[dict[str, Any]]:
    """Returns optimizer groups; norms and biases go without weight decay if asked.

    Every parameter of one dimension or none is a norm's or a bias. Frozen parameters are left out.

    Args:
        model: The network.
        no_decay_norm_bias: Whether norms and biases get weight decay 0.

    Source: Goyal et al., 2017, section 5.3 (no decay on batch norm); the rule by dimension is the
    one of timm.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not no_decay_norm_bias:
        return [{"params": trainable}]
    decayed = [p for p in trainable if p.ndim > 1]
    plain = [p for p in trainable if p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
