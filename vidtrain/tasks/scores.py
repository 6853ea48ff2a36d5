"""What an evaluation hands to a task: the logits of each video's views."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Scores:
    """One video's result.

    Attributes:
        id: Name of the video.
        labels: True classes: one, or any number where videos have several.
        views: (V, classes) float32 logits, one row per view.
    """

    id: str
    labels: tuple[int, ...]
    views: np.ndarray

    @property
    def label(self) -> int:
        """The true class, the first of several; -1 for none."""
        return self.labels[0] if self.labels else -1

    @property
    def probabilities(self) -> np.ndarray:
        """(classes,) float64: softmax of each view, averaged over the views in their order."""
        logits = self.views.astype(np.float64)
        exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (exponents / exponents.sum(axis=1, keepdims=True)).mean(axis=0)

    @property
    def chances(self) -> np.ndarray:
        """(V, classes) float64: sigmoid of each logit."""
        return np.exp(-np.logaddexp(0.0, -self.views.astype(np.float64)))


def best_classes(
    probabilities: np.ndarray, class_names: tuple[str, ...], count: int = 5
) -> dict[str, float]:
    """Returns the names of the most probable classes with six digits, the best first.

    Of equal ones the lower class comes first, on every machine.
    """
    order = np.argsort(-probabilities, kind="stable")[:count]
    return {class_names[i]: round(float(probabilities[i]), 6) for i in order}
