"""Losses on logits and soft targets, as pure functions; all compute in float32."""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from vidtrain.errors import UsageError


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns the mean cross-entropy of a batch, a float32 scalar.

    Args:
        logits: (B, classes), any float type.
        targets: (B, classes) float, rows sum to 1.
        weights: (classes,) factor on each class's term; the mean is over the batch still.
    """
    log_probabilities = functional.log_softmax(logits.float(), dim=1)
    if weights is not None:
        targets = targets * weights
    return -(targets * log_probabilities).sum(dim=1).mean()


def binary_cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns the mean over batch and classes of each class's own yes-or-no cross-entropy.

    Args:
        logits: (B, classes), any float type.
        targets: (B, classes) float in [0, 1].
        weights: (classes,) factor on each class's term.
    """
    return functional.binary_cross_entropy_with_logits(logits.float(), targets, weights)


def asymmetric(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None,
    *, gamma_neg: float, gamma_pos: float, margin: float,
) -> torch.Tensor:  # fmt: skip
    """Returns the asymmetric loss: summed over classes, averaged over the batch.

    For a soft target it is the mixture of the losses of yes and no.

    Args:
        logits: (B, classes), any float type.
        targets: (B, classes) float in [0, 1].
        weights: (classes,) factor on each class's term.
        gamma_neg: Focusing exponent for classes that are absent; 0, or at least 1.
        gamma_pos: Focusing exponent for classes that are present; 0, or at least 1.
        margin: Probability below which an absent class counts nothing.

    Source: Ridnik et al., ICCV 2021, eqs. 4 to 7; the reduction is that of
    timm.loss.AsymmetricLossMultiLabel.
    """
    logits = logits.float()
    present, absent = torch.sigmoid(logits), torch.sigmoid(-logits)
    shifted = (present - margin).clamp(min=0.0)
    log_absent = torch.log1p(-shifted) if margin else functional.logsigmoid(-logits)
    yes = absent**gamma_pos * functional.logsigmoid(logits)
    no = shifted**gamma_neg * log_absent
    terms = targets * yes + (1.0 - targets) * no
    if weights is not None:
        terms = terms * weights
    return -terms.sum(dim=1).mean()


def distilled(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns T^2 times the divergence of the student's softened classes from the teacher's.

    Args:
        student: (B, classes) logits.
        teacher: (B, classes) logits, without gradient.
        temperature: T, which both logits are divided by. T^2 keeps the gradient's size.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015, section 2.
    """
    divergence = functional.kl_div(
        functional.log_softmax(student.float() / temperature, dim=1),
        functional.log_softmax(teacher.float() / temperature, dim=1),
        reduction="batchmean", log_target=True,
    )  # fmt: skip
    return temperature**2 * divergence


def similarity(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Returns how much the clips of a batch resemble one another otherwise than for the teacher.

    The two networks may differ in width and size: what is compared are (B, B) matrices.

    Args:
        student: (B, ...) features, flattened here.
        teacher: (B, ...) features of the same clips, without gradient.

    Source: Tung and Mori, Similarity-Preserving Knowledge Distillation, ICCV 2019, eqs. 1 to 4.
    """
    with torch.autocast(student.device.type, enabled=False):
        own, theirs = (_similarities(features.float()) for features in (student, teacher))
        return (own - theirs).square().mean()


def _similarities(features: torch.Tensor) -> torch.Tensor:
    flat = features.flatten(start_dim=1)
    return functional.normalize(flat @ flat.T, dim=1)


def check_weights(setting: str | Sequence[float] | None, num_classes: int) -> None:
    """Refuses a task.class_weights that is none.

    Raises:
        UsageError: An unknown word, another number of weights than classes, or a bad weight.
    """
    if isinstance(setting, str):
        if setting not in ("balanced", "sqrt"):
            raise UsageError(
                f"task.class_weights={setting} must be balanced, sqrt, null, or a list of a number "
                "for each class"
            )
    elif setting is not None:
        if len(setting) != num_classes:
            raise UsageError(
                f"task.class_weights has {len(setting)} numbers, the data has {num_classes} classes"
            )
        if not all(math.isfinite(weight) and weight >= 0 for weight in setting) or not any(setting):
            raise UsageError(f"task.class_weights={list(setting)} must be >= 0, and not all be 0")


def class_weights(
    setting: str | Sequence[float] | None, counts: Sequence[int] | None, device: torch.device,
    *, binary: bool = False,
) -> torch.Tensor | None:  # fmt: skip
    """Returns the factor on each class's loss, (classes,) float32, or None.

    Args:
        setting: balanced: as 1 / count; sqrt: as 1 / sqrt(count). Or the factors themselves; or
            None.
        counts: Training videos of each class.
        device: Where the tensor goes.
        binary: The loss asks for each class whether it is there. Every class counts in every video
            then, so the mean over the classes is 1, and one without videos, which is to be learnt
            as absent, has 1. Otherwise the mean over the training labels is 1, and such a class has
            0.

    Source: King and Zeng, Logistic Regression in Rare Events Data, 2001 (balanced, as scikit-learn
    defines it).
    """
    if setting is None:
        return None
    if not isinstance(setting, str):
        return torch.tensor(setting, dtype=torch.float32, device=device)
    assert counts is not None, "the number of videos of each class is not known"
    power = -1.0 if setting == "balanced" else -0.5
    raw = [count**power if count else 0.0 for count in counts]
    if binary:
        mean = sum(raw) / sum(count > 0 for count in counts)
        return torch.tensor([w / mean if w else 1.0 for w in raw], device=device)
    mean = sum(w * count for w, count in zip(raw, counts, strict=True)) / sum(counts)
    return torch.tensor([w / mean for w in raw], dtype=torch.float32, device=device)
