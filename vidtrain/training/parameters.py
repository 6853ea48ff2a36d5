"""Which parameters the optimizer sees, at what rate, and with what weight decay."""

from collections.abc import Mapping
from typing import Any

from torch import nn


def parameter_groups(
    model: nn.Module, *, no_decay_norm_bias: bool, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Returns optimizer groups; norms and biases go without weight decay if asked.

    Every parameter of one dimension or none is a norm's or a bias. Frozen parameters are left out.

    Args:
        model: The network.
        no_decay_norm_bias: Whether norms and biases get weight decay 0.
        lr_scales: Factor on the learning rate by parameter name, 1 for those that are not there.

    Returns:
        Groups, each with its factor as `lr_scale`; the highest factor first.

    Source: Goyal et al., 2017, section 5.3 (no decay on batch norm); the rule by dimension is the
    one of timm.
    """
    scales = lr_scales or {}
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = no_decay_norm_bias and parameter.ndim <= 1
            found.setdefault((-scales.get(name, 1.0), plain), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for scale, plain in sorted(found):
        groups.append({"params": found[scale, plain], "lr_scale": -scale})
        if plain:
            groups[-1]["weight_decay"] = 0.0
    return groups
