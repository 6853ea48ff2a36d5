"""Multi-label classification: any number of classes for each video, measured by mAP."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from vidtrain.errors import InputError, UsageError
from vidtrain.tasks import losses
from vidtrain.tasks.classification import check_smoothing
from vidtrain.tasks.scores import Scores, best_classes

MOST_NAMED = 4  # classes of a target that are told of


@dataclass(frozen=True)
class Multilabel:
    """Any number of classes for each video, or none.

    Attributes:
        num_classes: Number of classes.
        class_counts: Training videos of each class; None: not known.
        label_smoothing: Share of a target that is neither yes nor no, in [0, 1).
        class_weights: Factor on each class's loss: balanced, sqrt, a number for each, or None; see
            `losses.class_weights`.
        criterion: bce: binary cross-entropy, mean over classes. asymmetric: `losses.asymmetric`,
            summed over classes.
        gamma_neg: asymmetric: focusing exponent for absent classes; 0, or at least 1.
        gamma_pos: asymmetric: focusing exponent for present classes; 0, or at least 1.
        margin: asymmetric: probability below which an absent class counts nothing, in [0, 1).
        views: How the views of a video are put together: mean of their probabilities, or max.

    Source: Ridnik et al., Asymmetric Loss for Multi-Label Classification, ICCV 2021; max is
    DATA.ENSEMBLE_METHOD of PySlowFast's Charades configs.
    """

    metric: ClassVar[str] = "mAP"
    metrics: ClassVar[tuple[str, ...]] = ("mAP", "loss")
    multi_label: ClassVar[bool] = True

    num_classes: int
    class_counts: tuple[int, ...] | None = None
    label_smoothing: float = 0.0
    class_weights: str | list[float] | None = None
    criterion: Literal["bce", "asymmetric"] = "bce"
    gamma_neg: float = 4.0
    gamma_pos: float = 0.0
    margin: float = 0.05
    views: Literal["mean", "max"] = "mean"

    def __post_init__(self) -> None:
        """Raises UsageError for values out of range, or that the criterion does not use."""
        check_smoothing(self.label_smoothing)
        losses.check_weights(self.class_weights, self.num_classes)
        for name in ("gamma_neg", "gamma_pos"):
            value = getattr(self, name)
            if value != 0 and not value >= 1:  # the gradient is infinite where it should be 0
                raise UsageError(f"task.{name}={value} must be 0, or at least 1")
        if not 0 <= self.margin < 1:
            raise UsageError(f"task.margin={self.margin} must be from 0 to below 1")
        for name in ("gamma_neg", "gamma_pos", "margin"):
            value = getattr(self, name)
            if self.criterion == "bce" and value != getattr(type(self), name):
                raise UsageError(
                    f"task.{name}={value} is of task.criterion=asymmetric, and it is bce"
                )

    def record(self) -> dict[str, Any]:
        """Returns what must be the same when a run goes on, besides config and data."""
        return {}

    def targets(self, labels: Sequence[tuple[int, ...]], device: torch.device) -> torch.Tensor:
        """Returns (B, classes) float32 targets: 1 - s/2 for each of a video's classes, else s/2.

        s is `label_smoothing`, as `smooth_dense` in timm.loss.BinaryCrossEntropy.
        """
        hot = torch.zeros(len(labels), self.num_classes)
        for row, of_video in zip(hot, labels, strict=True):
            row[list(of_video)] = 1.0
        hot = hot * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        return hot.to(device, non_blocking=True)

    def loss(self, network: nn.Module, clips: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Returns the mean loss of a batch, a float32 scalar.

        Args:
            network: Returns logits (B, classes).
            clips: (B, 3, T, H, W) float.
            targets: (B, classes) float in [0, 1].
        """
        weights = losses.class_weights(
            self.class_weights, self.class_counts, targets.device, binary=True
        )
        if self.criterion == "bce":
            return losses.binary_cross_entropy(network(clips), targets, weights)
        return losses.asymmetric(
            network(clips), targets, weights,
            gamma_neg=self.gamma_neg, gamma_pos=self.gamma_pos, margin=self.margin,
        )  # fmt: skip

    def probabilities(self, score: Scores) -> np.ndarray:
        """Returns (classes,) float64: each class's own probability, over all views."""
        chances = score.chances
        return chances.mean(axis=0) if self.views == "mean" else chances.max(axis=0)

    def video_loss(self, score: Scores) -> float:
        """Returns the mean over classes of -log of what the truth was given: how wrong it was."""
        chances = self.probabilities(score)
        right = np.where(_multi_hot(score, len(chances)), chances, 1.0 - chances)
        return -float(np.log(np.maximum(right, 1e-30)).mean())

    def figures(self, scores: list[Scores], class_names: tuple[str, ...]) -> dict[str, Any]:
        """Returns the figures of a finished evaluation, as plain JSON values.

        Args:
            scores: Every video exactly once.
            class_names: Names by label.

        Returns:
            num_videos, num_views, mAP (mean of the average precisions of all classes that have a
            video), mAP_classes (how many those are), unlabelled (videos without a class, which
            count as negatives of all), loss (mean of `video_loss`) and per_class ({name:
            {"average_precision": share or None, "videos": n}}).

        Raises:
            InputError: No video has a class.

        Source: as `get_map` of PySlowFast's slowfast/utils/meters.py: classes without a video are
        left out, the rest is scikit-learn's average_precision_score.
        """
        truth = np.array([_multi_hot(score, len(class_names)) for score in scores])
        chances = np.array([self.probabilities(score) for score in scores])
        videos = truth.sum(axis=0)
        per_class: dict[str, dict[str, Any]] = {
            name: {
                "average_precision": average_precision(chances[:, i], truth[:, i]),
                "videos": int(videos[i]),
            }
            for i, name in enumerate(class_names)
        }
        found = (row["average_precision"] for row in per_class.values())
        known = [precision for precision in found if precision is not None]
        if not known:
            raise InputError(
                f"none of the {len(scores)} videos has a class, so there is no mAP; check data.val "
                "and the annotations"
            )
        return {
            "num_videos": len(scores),
            "num_views": sum(len(score.views) for score in scores),
            "mAP": float(np.mean(known)),
            "mAP_classes": len(known),
            "unlabelled": int((truth.sum(axis=1) == 0).sum()),
            "loss": sum(map(self.video_loss, scores)) / len(scores),
            "per_class": per_class,
        }

    def prediction(self, score: Scores, class_names: tuple[str, ...]) -> dict[str, Any]:
        """Returns what is written of one video, as plain JSON values."""
        return {
            "id": score.id, "labels": [class_names[label] for label in score.labels],
            "top5": best_classes(self.probabilities(score), class_names),
            "scores": [round(float(chance), 9) for chance in self.probabilities(score)],
            "views": len(score.views),
        }  # fmt: skip

    def summary(self, found: dict[str, Any]) -> str:
        """Returns one line for a person from `figures`."""
        classes, unlabelled = len(found["per_class"]), found["unlabelled"]
        missing = classes - found["mAP_classes"]
        words = f"val mAP {found['mAP']:.4f} over {found['mAP_classes']} classes"
        words += f" ({missing} more have no video)" * bool(missing)
        words += f"  {found['num_videos']} videos"
        words += f", {unlabelled} without a class" * bool(unlabelled)
        return f"{words}  loss {found['loss']:.4f}"

    def describe(self, target: torch.Tensor, class_names: tuple[str, ...]) -> str:
        """Returns a target (classes,) in words, such as `sit + run 0.30`."""
        no = 0.5 * self.label_smoothing
        shares, labels = target.sort(descending=True, stable=True)
        words = [
            class_names[label] + f" {share:.2f}" * (share < 1.0 - no - 1e-6)
            for share, label in zip(shares.tolist(), labels.tolist(), strict=True)
            if share > no + 1e-6
        ]
        more = f" + {len(words) - MOST_NAMED} more" * (len(words) > MOST_NAMED)
        return " + ".join(words[:MOST_NAMED]) + more or "no class"


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Returns the area below the steps of precision over recall, or None without a positive.

    Nothing is interpolated, and equal scores are one step, so their order does not matter.

    Args:
        scores: (N,) float, higher means surer.
        positive: (N,) bool.

    Source: scikit-learn's average_precision_score.
    """
    if not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(positive[order])
    ends = np.flatnonzero(np.append(np.diff(ranked) != 0, True))
    precision = hits[ends] / (ends + 1)
    return float((precision * np.diff(hits[ends], prepend=0)).sum() / hits[-1])


def _multi_hot(score: Scores, num_classes: int) -> np.ndarray:
    hot = np.zeros(num_classes, dtype=bool)
    hot[list(score.labels)] = True
    return hot
