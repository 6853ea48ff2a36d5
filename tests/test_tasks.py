"""Losses, targets and figures of classification: by hand, and against torch and timm."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from timm.loss import BinaryCrossEntropy
from torch import nn
from torch.nn import functional

from vidtrain.errors import UsageError
from vidtrain.targets import component
from vidtrain.tasks import losses
from vidtrain.tasks.classification import Classification, describe, soft_targets
from vidtrain.tasks.scores import Scores

CPU = torch.device("cpu")
LOGITS = torch.tensor([[1.0, 2.0, 0.5, -1.0], [0.3, -0.2, 4.0, 0.0]])
LABELS = torch.tensor([1, 3])


def made(**settings: Any) -> Classification:
    """The task as a config makes it."""
    node = {"_target_": "vidtrain.tasks.classification.Classification", **settings}
    return component(node, "task", num_classes=4, class_counts=(6, 3, 1, 0))


def loss_of(task: Any) -> float:
    targets = task.targets([(1,), (3,)], CPU)
    return float(task.loss(nn.Identity(), LOGITS, targets))


def test_label_smoothing_and_loss() -> None:
    targets = made(label_smoothing=0.1).targets([(1,)], CPU)
    assert torch.allclose(targets, torch.tensor([[0.025, 0.925, 0.025, 0.025]]))
    reference = functional.cross_entropy(LOGITS, LABELS, label_smoothing=0.1)
    assert loss_of(made(label_smoothing=0.1)) == pytest.approx(reference.item(), rel=1e-6)


def test_weights_are_torchs_and_balanced_is_scikit_learns() -> None:
    weights = torch.tensor([0.5, 2.0, 1.0, 3.0])
    targets = soft_targets(LABELS, 4, 0.1)
    reference = functional.cross_entropy(LOGITS, targets, weight=weights)
    found = loss_of(made(label_smoothing=0.1, class_weights=weights.tolist()))
    assert found == pytest.approx(reference.item(), rel=1e-6)
    # compute_class_weight("balanced", y=[0] * 6 + [1] * 3 + [2]) of scikit-learn 1.9
    balanced = losses.class_weights("balanced", (6, 3, 1), CPU)
    assert balanced is not None
    assert balanced.tolist() == pytest.approx([0.55555556, 1.11111111, 3.33333333])
    gentle = losses.class_weights("sqrt", (9, 4, 0), CPU)
    assert gentle is not None  # 9/3 + 4/2 = 5 for 13 videos: the mean over these is 1
    assert gentle.tolist() == pytest.approx([13 / 5 / 3, 13 / 5 / 2, 0.0])


def test_where_each_class_is_asked_for_the_mean_weight_of_a_class_is_1() -> None:
    even = losses.class_weights("balanced", (100, 4, 0), CPU, binary=True)
    assert even is not None  # 1/100 and 1/4 have the mean 0.13
    assert even.tolist() == pytest.approx([0.01 / 0.13, 0.25 / 0.13, 1.0])
    task = made(criterion="bce", class_weights="balanced")  # of 6, 3, 1 and no videos
    bare = made(criterion="bce")
    still = torch.zeros_like(LOGITS)  # each class's loss is log 2, and so is their mean
    targets = soft_targets(LABELS, 4, 0.0)
    found = [each.loss(nn.Identity(), still, targets).item() for each in (task, bare)]
    assert found[0] == pytest.approx(found[1])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_bce_is_timms(smoothing: float) -> None:
    reference = BinaryCrossEntropy(smoothing=smoothing)(LOGITS, LABELS)
    found = loss_of(made(criterion="bce", label_smoothing=smoothing))
    assert found == pytest.approx(reference.item(), rel=1e-6)


def test_bce_with_a_threshold_is_timms_on_mixed_targets() -> None:
    mixed = torch.tensor([[0.15, 0.85, 0.0, 0.0], [0.0, 0.0, 0.4, 0.6]])
    weights = [1.0, 2.0, 3.0, 4.0]
    task = made(criterion="bce", threshold=0.2, class_weights=weights)
    reference = BinaryCrossEntropy(target_threshold=0.2, weight=torch.tensor(weights))
    found = task.loss(nn.Identity(), LOGITS, mixed)
    assert found.item() == pytest.approx(reference(LOGITS, mixed).item(), rel=1e-6)


def test_losses_of_half_precision_logits_are_float32() -> None:
    for criterion in ("ce", "bce"):
        task = made(criterion=criterion)
        targets = task.targets([(1,), (3,)], CPU)
        loss = task.loss(nn.Identity(), LOGITS.half(), targets)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(loss_of(task), rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"label_smoothing": 1.0}, r"task.label_smoothing=1.0 must be from 0 to below 1"),
        ({"class_weights": "even"}, r"task.class_weights=even must be balanced, sqrt, null"),
        ({"class_weights": [1.0, 2.0]}, r"has 2 numbers, the data has 4 classes"),
        ({"class_weights": [1.0, -2.0, 1.0, 1.0]}, r"must be >= 0, and not all be 0"),
        ({"criterion": "mse"}, r"task.criterion='mse' must be one of ce, bce"),
        ({"threshold": 0.2}, r"task.threshold=0.2 goes with task.criterion=bce"),
        ({"smoothing": 0.1}, r"task.smoothing is not an argument.*did you mean label_smoothing"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        made(**settings)


def score(name: str, label: int, *views: list[float]) -> Scores:
    return Scores(name, (label,), np.array(views, dtype=np.float32))


def test_figures_by_hand() -> None:
    scores = [
        score("a", 0, [3.0, 0, 0], [3.0, 0, 0]),
        score("b", 0, [0.0, 5, 0], [0.0, 0, 4.9]),  # two views disagree: 1 is a little surer
        score("c", 2, [0.0, 0, 1]),
        score("d", 2, [1.0, 1, 0]),  # a tie goes to the lower class
    ]
    task, names = made(), ("x", "y", "z")
    found = task.figures(scores, names)
    assert found["confusion"] == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert (found["top1"], found["correct"], found["num_views"]) == (0.5, 2, 6)
    assert found["top5"] is None and task.metric == "top1" and "top5" not in task.metrics
    assert found["per_class"]["y"] == {"accuracy": None, "videos": 0}
    assert found["mean_class_accuracy"] == pytest.approx(0.5)
    assert scores[0].probabilities[0] == pytest.approx(math.exp(3) / (math.exp(3) + 2))
    assert found["loss"] == pytest.approx(sum(map(task.video_loss, scores)) / 4)
    assert task.prediction(scores[2], names) == {
        "id": "c", "label": "z", "prediction": "z", "views": 1,
        "top5": {"z": 0.576117, "x": 0.211942, "y": 0.211942},
    }  # fmt: skip
    assert task.summary(found).startswith("val top-1 0.5000 (2 of 4)  mean class 0.5000")


def test_top5_counts_the_five_best_of_many() -> None:
    names = tuple("abcdefgh")
    rising = np.arange(8, dtype=np.float32)[None]
    found = made().figures([Scores("v", (label,), rising) for label in range(8)], names)
    assert found["top5"] == 5 / 8 and found["top1"] == 1 / 8


def test_targets_in_words() -> None:
    names = ("left", "up", "down", "right")
    assert describe(made(label_smoothing=0.1).targets([(1,)], CPU)[0], names) == "up"
    assert describe(torch.tensor([0.7, 0.3, 0.0, 0.0]), names) == "left 0.70 + up 0.30"
