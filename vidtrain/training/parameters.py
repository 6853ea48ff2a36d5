"""Which parameters the optimizer sees, at what rate, and with what weight decay."""

import math
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from vidtrain.errors import UsageError

# Tokens, position embeddings and tables of relative positions, by the last part of their names in
# PyTorchVideo, torchvision, timm and Transformers.
_EMBEDDING = re.compile(
    r"(cls|class|mask|query|dist|reg)_tokens?|(pos|position|time|temporal)_embed"
    r"|(spatial|temporal)_pos|rel_pos|relative_position"
)


def parameter_groups(
    model: nn.Module, *, no_decay_norm_bias: bool, lr_scales: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Returns optimizer groups; norms, biases and embeddings go without weight decay if asked.

    Every parameter of one dimension or none is a norm's or a bias. Embeddings are class and query
    tokens, position embeddings and tables of relative positions, known by their names, and what the
    network's own `no_weight_decay()` names. Frozen parameters are left out.

    Args:
        model: The network.
        no_decay_norm_bias: Whether norms, biases and embeddings get weight decay 0.
        lr_scales: Factor on the learning rate by parameter name, 1 for those that are not there.

    Returns:
        Groups, each with its factor as `lr_scale`; the highest factor first.

    Source: Goyal et al., 2017, section 5.3 (no decay on batch norm); the rule by dimension and
    `no_weight_decay()` are timm's; embeddings as in VideoMAE's fine-tuning and in Video Swin.
    """
    scales = lr_scales or {}
    named = _no_weight_decay(model)
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = no_decay_norm_bias and (
                parameter.ndim <= 1
                or _EMBEDDING.search(name.rpartition(".")[2]) is not None
                or any(fnmatchcase(name, pattern) for pattern in named)
            )
            found.setdefault((-scales.get(name, 1.0), plain), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for scale, plain in sorted(found):
        groups.append({"params": found[scale, plain], "lr_scale": -scale})
        if plain:
            groups[-1]["weight_decay"] = 0.0
    return groups


def lr_factor(rule: str, batch_size: int, lr_batch: int | None) -> float:
    """Returns the factor on a learning rate that was found for another batch size.

    Args:
        rule: linear, for SGD; or sqrt, for Adam and its like.
        batch_size: Clips of a step.
        lr_batch: Clips of a step that the rate is meant for; None: those that it has.

    Raises:
        UsageError: Unknown rule, or one that has nothing to go by.

    Source: Goyal et al., 2017, section 2.1 (linear); Krizhevsky, One weird trick, 2014, section 5,
    and Malladi et al., On the SDEs and Scaling Rules for Adaptive Gradient Algorithms, NeurIPS
    2022 (square root).
    """
    if rule not in ("linear", "sqrt"):
        raise UsageError(f"train.lr_rule={rule!r} is unknown; use linear or sqrt")
    if rule == "sqrt" and lr_batch is None:
        raise UsageError(
            "train.lr_rule=sqrt changes nothing without train.lr_batch, the clips of a step that "
            "optimizer.lr is meant for"
        )
    ratio = 1.0 if lr_batch is None else batch_size / lr_batch
    return math.sqrt(ratio) if rule == "sqrt" else ratio


def _no_weight_decay(model: nn.Module) -> list[str]:
    """Returns the names or patterns that a network in the way of timm exempts itself."""
    own = getattr(model, "no_weight_decay", None)
    if own is None:
        return []
    try:
        return list(own())
    except AttributeError:  # timm's Hiera with separate embeddings of space and time
        return []
