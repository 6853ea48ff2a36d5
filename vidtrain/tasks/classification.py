"""Single-label classification: targets, loss, and the figures of an evaluation."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


def soft_targets(labels: torch.Tensor, num_classes: int, smoothing: float) -> torch.Tensor:
    """Returns (B, num_classes) float32 targets for (B,) int64 labels; each row sums to 1.

    Source: Szegedy et al., CVPR 2016, section 7 (label smoothing).
    """
    one_hot = functional.one_hot(labels, num_classes).float()
    return one_hot * (1.0 - smoothing) + smoothing / num_classes


def loss(model: nn.Module, clips: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the mean cross-entropy of a batch, a float32 scalar.

    Args:
        model: Network that returns logits (B, classes).
        clips: (B, 3, T, H, W) float.
        targets: (B, classes) float, rows sum to 1.
    """
    log_probabilities = functional.log_softmax(model(clips).float(), dim=1)
    return -(targets * log_probabilities).sum(dim=1).mean()


@dataclass(frozen=True)
class Scores:
    """One video's result.

    Attributes:
        id: Name of the video.
        label: True class.
        views: (V, classes) float32 logits, one row per view.
    """

    id: str
    label: int
    views: np.ndarray

    @property
    def probabilities(self) -> np.ndarray:
        """(classes,) float64: softmax of each view, averaged over the views in their order."""
        logits = self.views.astype(np.float64)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (exponents / exponents.sum(axis=1, keepdims=True)).mean(axis=0)


def figures(scores: list[Scores], class_names: tuple[str, ...]) -> dict[str, Any]:
    """Returns the figures of a finished evaluation, as plain JSON values.

    Args:
        scores: Every video exactly once.
        class_names: Names by label.

    Returns:
        num_videos, num_views, top1 and top5 (shares in [0, 1]; top5 is None for fewer than six
        classes), correct (count), loss (mean negative log probability), mean_class_accuracy,
        per_class ({name: {"accuracy": share or None, "videos": n}}) and confusion (rows: truth,
        columns: prediction).
    """
    count = len(class_names)
    confusion = np.zeros((count, count), dtype=np.int64)
    loss_sum, in_top5 = 0.0, 0
    for score in scores:
        probabilities = score.probabilities
        # Stable order: of equal probabilities the lower class wins, on every machine.
        ranked = np.argsort(-probabilities, kind="stable")
        confusion[score.label, ranked[0]] += 1
        in_top5 += int(score.label in ranked[:5])
        loss_sum -= float(np.log(max(probabilities[score.label], 1e-30)))
    videos = confusion.sum(axis=1)
    correct = int(np.trace(confusion))
    shares = {
        name: float(confusion[i, i] / videos[i]) if videos[i] else None
        for i, name in enumerate(class_names)
    }
    known = [share for share in shares.values() if share is not None]
    return {
        "num_videos": len(scores),
        "num_views": sum(len(score.views) for score in scores),
        "top1": correct / len(scores),
        "top5": in_top5 / len(scores) if count > 5 else None,
        "correct": correct,
        "loss": loss_sum / len(scores),
        "mean_class_accuracy": sum(known) / len(known),
        "per_class": {
            name: {"accuracy": share, "videos": int(videos[i])}
            for i, (name, share) in enumerate(shares.items())
        },
        "confusion": confusion.tolist(),
    }


def summary(found: dict[str, Any]) -> str:
    """Returns one line for a person from `figures`."""
    top5 = "" if found["top5"] is None else f"  top-5 {found['top5']:.4f}"
    return (
        f"val top-1 {found['top1']:.4f} ({found['correct']} of {found['num_videos']}){top5}  "
        f"mean class {found['mean_class_accuracy']:.4f}  loss {found['loss']:.4f}"
    )


def describe(target: torch.Tensor, class_names: tuple[str, ...]) -> str:
    """Returns a soft target (classes,) in words, such as `left 0.70 + up 0.30`."""
    shares, labels = target.sort(descending=True)
    if shares[1] <= 0.5 / len(class_names):
        return class_names[int(labels[0])]
    pairs = zip(shares[:2].tolist(), labels[:2].tolist(), strict=True)
    return " + ".join(f"{class_names[label]} {share:.2f}" for share, label in pairs)
