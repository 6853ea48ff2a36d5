"""The videos that a model is most wrong about, as strips of frames."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidtrain.report.plots import cut_middle, literal, new_figure, save

MAX_FRAMES = 6  # of a strip
MAX_LINE = 90  # characters above a strip
MAX_GUESSES = 3  # of a video that may have several classes
GAP = "   "  # between what a line says
TILE = 1.5  # height of a frame, inches


def worst_errors(
    scores: Iterable[Any], loss: Callable[[Any], float], describe: Callable[[Any], dict[str, Any]],
    count: int,
) -> list[tuple[str, str]]:  # fmt: skip
    """Returns the ids of the videos that were most confidently wrong, each with a line of text.

    Args:
        scores: Results of a validation, each with an id.
        loss: How wrong a video was taken.
        describe: The prediction of a video in words, as a task gives it: label and prediction, or
            labels where there may be several; and top5, probabilities by name. A video whose
            prediction is its label is no error.
        count: Most of them.
    """
    ranked = sorted(((loss(score), score.id, score) for score in scores),
                    key=lambda entry: (-entry[0], entry[1]))  # fmt: skip
    found: list[tuple[str, str]] = []
    for lost, name, score in ranked:
        if len(found) >= count:
            break
        row = describe(score)
        several = "labels" in row
        if not several and row["label"] == row["prediction"]:
            continue
        truth = (", ".join(row["labels"]) or "no class") if several else row["label"]
        guesses = list(row["top5"].items())[: MAX_GUESSES if several else 1]
        guessed = ", ".join(f"{label} {share:.2f}" for label, share in guesses)
        found.append(
            (name, GAP.join((f"{name}\ntrue {truth}", f"predicted {guessed}", f"loss {lost:.2f}")))
        )
    return found


def plot_filmstrips(clips: Sequence[np.ndarray], texts: Sequence[str], path: Path) -> None:
    """Draws one strip per clip, of up to 6 frames spread evenly over it, with a text above.

    Args:
        clips: (T, H, W, 3) uint8 RGB each.
        texts: One for each clip.
        path: Picture to write.
    """
    if len(texts) != len(clips) or not len(clips):
        raise ValueError(f"{len(clips)} clips but {len(texts)} texts")
    strips = []
    for clip in clips:
        shown = np.unique(np.linspace(0, len(clip) - 1, MAX_FRAMES).round().astype(int))
        gap = np.full((clip.shape[1], max(1, clip.shape[2] // 40), 3), 255, np.uint8)
        frames = [part for index in shown for part in (gap, clip[index])]
        strips.append(np.concatenate(frames[1:], axis=1))
    titles = ["\n".join(part for line in text.split("\n") for part in _fitted(line))
              for text in texts]  # fmt: skip
    lines = sum(title.count("\n") + 1 for title in titles)
    width = max(TILE * strip.shape[1] / strip.shape[0] for strip in strips)
    figure = new_figure(max(6.5, width + 0.3), (TILE + 0.15) * len(strips) + 0.2 * lines + 0.2)
    grid = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    for axes, strip, title in zip(grid, strips, titles, strict=True):
        axes.imshow(strip)
        axes.set_anchor("W")
        axes.set_axis_off()
        axes.set_title(literal(title), fontsize=9, loc="left")
    save(figure, path)


def _fitted(line: str) -> list[str]:
    """Breaks a line where three spaces part what it says; of what is too long both ends stay."""
    found = [""]
    for part in line.split(GAP):
        joined = f"{found[-1]}{GAP}{part}" if found[-1] else part
        if len(joined) <= MAX_LINE:
            found[-1] = joined
        else:
            found.append(cut_middle(part, MAX_LINE))
    return [line for line in found if line]
