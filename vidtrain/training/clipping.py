"""Gradient clipping: by the norm of all, or unit by unit."""

from collections.abc import Collection, Iterable

import torch
from timm.utils.agc import adaptive_clip_grad
from torch import nn
from torch.distributed.tensor import DTensor

from vidtrain.errors import UsageError


def clip_gradients(
    parameters: Iterable[nn.Parameter],
    *,
    norm: float | None = None,
    agc: float | None = None,
    unclipped: Collection[nn.Parameter] = (),
) -> torch.Tensor:
    """Clips gradients in place, in one of two ways or not at all.

    Args:
        parameters: What is trained; those without a gradient are left out.
        norm: Largest norm of all gradients together; above, all are scaled down by one factor.
        agc: Largest norm of a unit's gradient over the norm of its weights (0.001 at least); a unit
            is what leads to one output channel, or a whole vector.
        unclipped: Parameters that `agc` leaves alone; the classifier's, in its source.

    Returns:
        L2 norm of all gradients before clipping: scalar on their device. It is inf or NaN if a
        gradient is, and what is left of the gradients is of no use then.

    Raises:
        UsageError: Both ways at once.

    Source: Pascanu et al., ICML 2013, algorithm 1 (norm); Brock et al., High-Performance
    Large-Scale Image Recognition Without Normalization, ICML 2021, eq. 3 (adaptive).
    """
    if norm is not None and agc is not None:
        raise UsageError(
            f"train.clip_grad_norm={norm} and train.clip_grad_agc={agc} are two ways to clip; "
            "set one of them to null"
        )
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    total = nn.utils.get_total_norm(
        [parameter.grad for parameter in trained if parameter.grad is not None]
    )
    if isinstance(total, DTensor):
        total = total.full_tensor()
    if norm is not None:
        nn.utils.clip_grads_with_norm_(trained, norm, total)
    if agc is not None:
        left_out = {id(parameter) for parameter in unclipped}
        adaptive_clip_grad([p for p in trained if id(p) not in left_out], clip_factor=agc, eps=1e-3)
    return total
