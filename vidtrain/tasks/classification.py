"""Single-label classification: targets, loss, and the figures of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from vidtrain.errors import UsageError
from vidtrain.tasks import losses
from vidtrain.tasks.scores import Scores, best_classes

FEWEST_FOR_TOP5 = 6  # classes; of fewer the five best are no choice


def check_smoothing(label_smoothing: float) -> None:
    """Refuses a share that is none.

    Raises:
        UsageError: It is out of range.
    """
    if not 0 <= label_smoothing < 1:
        raise UsageError(f"task.label_smoothing={label_smoothing} must be from 0 to below 1")


def soft_targets(labels: torch.Tensor, num_classes: int, smoothing: float) -> torch.Tensor:
    """Returns (B, num_classes) float32 targets for (B,) int64 labels; each row sums to 1.

    Source: Szegedy et al., CVPR 2016, section 7 (label smoothing).
    """
    one_hot = functional.one_hot(labels, num_classes).float()
    return one_hot * (1.0 - smoothing) + smoothing / num_classes


def video_loss(score: Scores) -> float:
    """Returns the negative log probability of a video's class: how wrong it was taken."""
    return -float(np.log(max(score.probabilities[score.label], 1e-30)))


def metrics(num_classes: int) -> tuple[str, ...]:
    """Returns the names of those figures that are better or worse, by the number of classes."""
    top5 = ("top5",) if num_classes >= FEWEST_FOR_TOP5 else ()
    return ("top1", *top5, "mean_class_accuracy", "loss")


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
        # Stable order: of equal probabilities the lower class wins, on every machine.
        ranked = np.argsort(-score.probabilities, kind="stable")
        confusion[score.label, ranked[0]] += 1
        in_top5 += int(score.label in ranked[:5])
        loss_sum += video_loss(score)
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
        "top5": in_top5 / len(scores) if count >= FEWEST_FOR_TOP5 else None,
        "correct": correct,
        "loss": loss_sum / len(scores),
        "mean_class_accuracy": sum(known) / len(known),
        "per_class": {
            name: {"accuracy": share, "videos": int(videos[i])}
            for i, (name, share) in enumerate(shares.items())
        },
        "confusion": confusion.tolist(),
    }


def prediction(score: Scores, class_names: tuple[str, ...]) -> dict[str, Any]:
    """Returns what is written of one video: id, label, prediction, top5 and views."""
    top = best_classes(score.probabilities, class_names)
    return {
        "id": score.id, "label": class_names[score.label], "prediction": next(iter(top)),
        "top5": top, "views": len(score.views),
    }  # fmt: skip


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
    # What label smoothing gives to all is no second class; of two classes it cannot be told.
    nothing = float(shares[-1]) + 1e-6 if len(class_names) > 2 else 0.25
    if shares[1] <= nothing:
        return class_names[int(labels[0])]
    pairs = zip(shares[:2].tolist(), labels[:2].tolist(), strict=True)
    return " + ".join(f"{class_names[label]} {share:.2f}" for share, label in pairs)


@dataclass(frozen=True)
class Classification:
    """One class for each video.

    Attributes:
        num_classes: Number of classes.
        class_counts: Training videos of each class; None: not known.
        label_smoothing: Share of a target that goes to all classes alike, in [0, 1).
        class_weights: Factor on each class's loss: balanced, sqrt, a number for each, or None; see
            `losses.class_weights`.
        criterion: ce: cross-entropy of the softmax. bce: binary cross-entropy of each class, mean
            over classes.
        threshold: With bce, a soft target above it counts as 1, another as 0; None: as it is.

    Source: Szegedy et al., CVPR 2016, section 7 (label smoothing); Wightman et al., ResNet strikes
    back, 2021, section 3 (bce, threshold 0.2 with mixup).
    """

    metric: ClassVar[str] = "top1"
    multi_label: ClassVar[bool] = False

    video_loss = staticmethod(video_loss)
    figures = staticmethod(figures)
    prediction = staticmethod(prediction)
    summary = staticmethod(summary)
    describe = staticmethod(describe)

    num_classes: int
    class_counts: tuple[int, ...] | None = None
    label_smoothing: float = 0.0
    class_weights: str | list[float] | None = None
    criterion: Literal["ce", "bce"] = "ce"
    threshold: float | None = None

    def __post_init__(self) -> None:
        """Raises UsageError for values out of range."""
        check_smoothing(self.label_smoothing)
        losses.check_weights(self.class_weights, self.num_classes)
        if self.threshold is not None and (self.criterion != "bce" or not 0 <= self.threshold < 1):
            raise UsageError(
                f"task.threshold={self.threshold} goes with task.criterion=bce and lies in [0, 1)"
            )

    @property
    def metrics(self) -> tuple[str, ...]:
        """Figures of a validation that the best may be chosen by."""
        return metrics(self.num_classes)

    def record(self) -> dict[str, Any]:
        """Returns what must be the same when a run goes on, besides config and data."""
        return {}

    def targets(self, labels: Sequence[tuple[int, ...]], device: torch.device) -> torch.Tensor:
        """Returns (B, classes) float32 targets; each row sums to 1."""
        first = torch.tensor([of_video[0] for of_video in labels]).to(device, non_blocking=True)
        return soft_targets(first, self.num_classes, self.label_smoothing)

    def loss(self, network: nn.Module, clips: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss of a batch, a float32 scalar.

        Args:
            network: Returns logits (B, classes).
            clips: (B, 3, T, H, W) float.
            targets: (B, classes) float, rows sum to 1.
        """
        weights = losses.class_weights(
            self.class_weights, self.class_counts, targets.device, binary=self.criterion == "bce"
        )
        if self.criterion == "ce":
            return losses.cross_entropy(network(clips), targets, weights)
        if self.threshold is not None:
            targets = targets.gt(self.threshold).float()
        return losses.binary_cross_entropy(network(clips), targets, weights)
