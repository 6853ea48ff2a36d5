"""Pictures of a run: training curves, confusion matrix, the clips a model is trained on.

All use Matplotlib's Figure directly (no pyplot, so no global state and no display) and colours
that stay apart for colour-blind readers. All are PNG files.
"""

import os
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from PIL import Image

from vidtrain.errors import InputError

BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"  # Okabe and Ito's palette
DPI = 120
MAX_CELL_COUNTS = 20  # classes; above, numbers in the cells are too small to read
MAX_TICK_LABELS = 40  # classes; above, the axes show class indices
MAX_FRAMES = 8  # columns of a clip grid
MAX_NAME = 28  # characters of a class name
MAX_LABEL = 54  # characters of one beside a clip, on several lines


def plot_curves(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws loss and learning rate per step, validation accuracy and loss per epoch.

    Args:
        metrics: Rows of metrics.jsonl. Train rows hold kind="train", step, loss, lr; val rows hold
            kind="val", epoch, loss, and top1 and top5 as shares in [0, 1] or None; or mAP.
        path: Picture to write.
    """
    train = [row for row in metrics if row["kind"] == "train"]
    val = [row for row in metrics if row["kind"] == "val"]
    figure = new_figure(11, 7)
    (loss, accuracy), (rate, val_loss) = figure.subplots(2, 2)

    steps, losses = series(train, "step", "loss")
    smooth = _running_mean(losses)
    _line(loss, steps, losses, BLUE, "each row" if smooth is not None else "")
    if smooth is not None:
        loss.lines[0].set(alpha=0.3, linewidth=1)
        _line(loss, steps, smooth, BLUE, "running mean")
    label_axes(loss, "Training loss", "step", "loss (nats)")

    _line(rate, *series(train, "step", "lr"), BLUE)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    label_axes(rate, "Learning rate", "step", "learning rate")

    several = any("mAP" in row for row in val)
    epochs, first = series(val, "epoch", "mAP" if several else "top1")
    best = f"{'mAP' if several else 'top-1'} (best {100 * first.max():.1f} %)" if len(first) else ""
    _line(accuracy, epochs, 100 * first, BLUE, best)
    epochs, top5 = series(val, "epoch", "top5")
    if len(top5):
        _line(accuracy, epochs, 100 * top5, ORANGE, "top-5", linestyle="--")
    accuracy.set_ylim(0, 102)
    title = ("Validation mAP", "mAP (%)") if several else ("Validation accuracy", "accuracy (%)")
    label_axes(accuracy, title[0], "epoch", title[1])

    _line(val_loss, *series(val, "epoch", "loss"), GREEN)
    label_axes(val_loss, "Validation loss", "epoch", "loss (nats)")
    for axes, x in ((loss, "step"), (rate, "step"), (accuracy, "epoch"), (val_loss, "epoch")):
        from_zero(axes, max((row[x] for row in metrics), default=1), whole=x == "step")
    save(figure, path)


def plot_confusion(matrix: np.ndarray, class_names: Sequence[str], path: Path) -> None:
    """Draws a confusion matrix, each row coloured by its shares.

    Up to 20 classes the cells show counts, up to 40 the axes show names. Rows of classes without
    videos are grey.

    Args:
        matrix: (C, C) int, rows the true class, columns the predicted one.
        class_names: C names, indexed by label.
        path: Picture to write.
    """
    matrix = np.asarray(matrix)
    count, total = len(class_names), int(matrix.sum())
    if matrix.shape != (count, count):
        raise ValueError(f"matrix is {matrix.shape} for {count} class names")
    rows = matrix.sum(1, keepdims=True)
    shares = np.divide(100 * matrix, rows, out=np.full(matrix.shape, np.nan), where=rows > 0)

    side = float(np.clip(3.5 + 0.4 * count, 5, 12))
    figure = new_figure(side + 1, side)
    axes = figure.subplots()
    axes.set_facecolor("0.85")
    # With many classes a cell is a few pixels wide: a square-root scale keeps rare errors visible.
    scale = PowerNorm(1 if count <= MAX_TICK_LABELS else 0.5, vmin=0, vmax=100)
    image = axes.imshow(shares, cmap="Blues", norm=scale, interpolation="nearest")
    figure.colorbar(image, ax=axes, label="share of the true class (%)", shrink=0.8)
    if count <= MAX_TICK_LABELS:
        names = [shorten(name) for name in class_names]
        fits = count * max(map(len, names)) <= 40
        slant: dict[str, Any] = (
            {} if fits else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        )
        axes.set_xticks(range(count), names, **slant)
        axes.set_yticks(range(count), names)
    if count <= MAX_CELL_COUNTS:
        for (row, column), number in np.ndenumerate(matrix):
            dark = shares[row, column] > 60
            axes.text(column, row, f"{number}", ha="center", va="center", fontsize=9,
                      color="white" if dark else "black")  # fmt: skip
    unit = "" if count <= MAX_TICK_LABELS else " (class index)"
    top1 = f"top-1 {100 * np.trace(matrix) / total:.1f} % of {total} videos" if total else "empty"
    label_axes(axes, f"Confusion matrix: {top1}", f"predicted class{unit}", f"true class{unit}")
    axes.grid(visible=False)
    save(figure, path)


def plot_clip_grid(clips: np.ndarray, labels: Sequence[str], path: Path) -> None:
    """Draws one row per clip, with up to 8 frames spread evenly over it.

    Args:
        clips: (B, T, H, W, 3) uint8 RGB.
        labels: B texts, one beside each row.
        path: Picture to write.
    """
    num_clips, num_frames, height, width = clips.shape[:4]
    if len(labels) != num_clips:
        raise ValueError(f"{num_clips} clips but {len(labels)} labels")
    shown = np.unique(np.linspace(0, num_frames - 1, MAX_FRAMES).round().astype(int))
    tile = 1.4  # inches
    texts = [literal(broken_label(label)) for label in labels]
    margin = 0.5 + 0.09 * max(len(line) for text in texts for line in text.split("\n"))
    figure = new_figure(
        max(4, tile * len(shown) + margin), (tile + 0.1) * num_clips * height / width + 1
    )
    grid = figure.subplots(num_clips, len(shown), squeeze=False)
    for axes_row, clip, text in zip(grid, clips, texts, strict=True):
        for axes, frame in zip(axes_row, shown, strict=True):
            axes.imshow(clip[frame])
            axes.set(xticks=[], yticks=[])
        axes_row[0].set_ylabel(text, rotation=0, ha="right", va="center")
    for axes, frame in zip(grid[0], shown, strict=True):
        axes.set_title(f"frame {frame}", fontsize=9)
    figure.suptitle(f"{num_frames}-frame clips, {width} x {height} pixels")
    save(figure, path)


def read_picture(path: Path) -> np.ndarray:
    """Returns a picture as (H, W, 3) uint8."""
    return np.asarray(Image.open(path).convert("RGB"))


def save(figure: Figure, path: Path) -> None:
    """Writes the PNG whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, format="png")
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; free some space or give another "
            "folder"
        ) from error


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    return Figure(figsize=(width, height), dpi=DPI, layout=layout)


def series(rows: Sequence[Mapping[str, Any]], x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns two float columns of the rows that have both."""
    pairs = [(row[x], row[y]) for row in rows if row.get(y) is not None]
    columns = np.array(pairs, dtype=float).reshape(-1, 2)
    return columns[:, 0], columns[:, 1]


def _running_mean(values: np.ndarray) -> np.ndarray | None:
    """Mean over a window of a 25th of the finite values around each; None for short series."""
    width = len(values) // 25
    if width < 3:
        return None
    window, finite = np.ones(width), np.isfinite(values)
    sums = np.convolve(np.where(finite, values, 0), window, mode="same")
    counts = np.convolve(finite, window, mode="same")
    return np.divide(sums, counts, out=np.full(len(values), np.nan), where=counts > 0)


def _line(
    axes: Axes, x: np.ndarray, y: np.ndarray, color: str, label: str = "", linestyle: str = "-"
) -> None:
    marker = "o" if len(x) <= MAX_TICK_LABELS else None  # a single point has no line to see
    axes.plot(x, y, linestyle, color=color, marker=marker, markersize=4, label=label)
    if not len(x):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no values yet", ha="center", va="center", transform=axes.transAxes)


def from_zero(axes: Axes, last: float, *, whole: bool) -> None:
    """Shows steps or epochs from 0 to the last one, however few values there are.

    Args:
        axes: A chart with its curves.
        last: The last step or epoch of all charts.
        whole: Whether there is nothing between two whole numbers.
    """
    if any(len(np.asarray(line.get_xdata())) for line in axes.lines):
        axes.set_xlim(-0.03 * last, 1.03 * last)
        axes.xaxis.set_major_locator(
            MaxNLocator(integer=whole or last >= 2, min_n_ticks=1, steps=[1, 2, 5, 10])
        )


def label_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Names a chart and its axes, and draws a faint grid."""
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(visible=True, alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend()


def shorten(name: str) -> str:
    """Returns a name that fits beside a chart, taken literally by the plotting library."""
    return literal(name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…")


def cut_middle(text: str, most: int) -> str:
    """Returns a text of at most so many characters; of a longer one both ends."""
    if len(text) <= most:
        return text
    end = (most - 1) // 2
    return f"{text[: most - 1 - end]}…{text[len(text) - end :]}"


def broken_label(label: str) -> str:
    """Breaks a label, such as `left 0.70 + up 0.30`, into short lines: a class begins a new one."""
    found = []
    for number, part in enumerate(label.split(" + ")):
        words = cut_middle(part, MAX_LABEL).replace("_", "_ ").split(" ")
        text = " ".join(cut_middle(word, MAX_NAME) for word in ["+"] * (number > 0) + words)
        found += textwrap.wrap(text, MAX_NAME, break_on_hyphens=False)
    return "\n".join(line.replace("_ ", "_") for line in found)


def literal(text: str) -> str:
    """Keeps Matplotlib from reading dollars as the start of a formula."""
    return text.replace("$", r"\$")
