"""Curves of several runs side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from vidtrain.report.plots import (
    cut_middle,
    from_zero,
    label_axes,
    literal,
    new_figure,
    save,
    series,
)

# Okabe and Ito's palette without yellow, which is hard to see on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", ":", "-.")
MOST_NAMED = 14  # runs in the legend
MAX_RUN_NAME = 44  # characters; both ends stay: those of a sweep differ at the end
THIN = 0.8  # width of lines that stand back
SHARES = {"top1": "top-1 accuracy (%)", "top5": "top-5 accuracy (%)", "mAP": "mAP (%)",
          "mean_class_accuracy": "mean class accuracy (%)"}  # fmt: skip

Rows = Sequence[Mapping[str, Any]]


def plot_runs(
    runs: Mapping[str, Rows], path: Path, *, metric: str, x: str = "step", smoothing: float = 0.0,
    log: bool = False,
) -> None:  # fmt: skip
    """Draws loss, validation loss, a metric, learning rate and gradient norm of several runs.

    Where a run has averaged weights, its plain ones are drawn thin beside them.

    Args:
        runs: Rows of each metrics.jsonl by the run's name.
        path: Picture to write.
        metric: Name of a figure of the validations.
        x: step or epoch.
        smoothing: Share of the curve so far in each value of training loss and gradient norm, in
            [0, 1); the curves as they are stay visible behind.
        log: Logarithmic axes for losses, learning rate and gradient norm.
    """
    figure = new_figure(15, 8)
    (loss, val_loss, score), (rate, norm, names) = figure.subplots(2, 3)
    handles: list[Line2D] = []
    for number, (name, rows) in enumerate(runs.items()):
        colour = COLOURS[number % len(COLOURS)]
        style = STYLES[number // len(COLOURS) % len(STYLES)]
        look: dict[str, Any] = {"color": colour, "linestyle": style}
        handles.append(
            Line2D([], [], **look, linewidth=2, label=literal(cut_middle(name, MAX_RUN_NAME)))
        )
        train = [row for row in rows if row["kind"] == "train"]
        _smooth(loss, *series(train, x, "loss"), smoothing, look)
        _smooth(norm, *series(train, x, "grad_norm"), smoothing, look)
        _curve(rate, *series(train, x, "lr"), look)
        for kind, width in (("val_raw", THIN), ("val", 1.6)):
            val = [row for row in rows if row["kind"] == kind]
            _curve(val_loss, *series(val, x, "loss"), look, width)
            steps, values = series(val, x, metric)
            _curve(score, steps, values * (100 if metric in SHARES else 1), look, width)
    last = max((row[x] for rows in runs.values() for row in rows), default=1)
    for axes, title, unit in (
        (loss, "Training loss", "loss"), (val_loss, "Validation loss", "loss"),
        (score, f"Validation {metric}", SHARES.get(metric, metric)),
        (rate, "Learning rate", "learning rate"), (norm, "Gradient norm", "norm before clipping"),
    ):  # fmt: skip
        _finish(axes, log=log and axes is not score)
        from_zero(axes, last, whole=x == "step")
        label_axes(axes, literal(title), x, literal(unit))
    names.set_axis_off()
    more = len(handles) - MOST_NAMED
    title = "runs" + (f" ({more} more are drawn)" if more > 0 else "")
    notes = ["faint: each row, not smoothed"] if smoothing else []
    if any(row["kind"] == "val_raw" for rows in runs.values() for row in rows):
        notes.append("thin, or a ring: plain weights, beside the averaged ones")
    names.text(0, 0, "\n".join(notes), transform=names.transAxes, fontsize=9, va="bottom")
    names.legend(handles=handles[:MOST_NAMED], loc="upper left", title=title, frameon=False,
                 alignment="left", borderaxespad=0, fontsize=9)  # fmt: skip
    save(figure, path)


def smoothed(values: np.ndarray, share: float) -> np.ndarray:
    """Returns an exponential moving average without the bias of its start; gaps stay gaps.

    Args:
        values: (N,) float; what is not finite is passed over.
        share: Of the average so far in each value, in [0, 1).

    Source: TensorBoard, `vz_line_chart2/line-chart.ts`, resmoothDataset.
    """
    found, total, weight = np.full(len(values), np.nan), 0.0, 0.0
    for index in np.flatnonzero(np.isfinite(values)):
        total = total * share + (1.0 - share) * values[index]
        weight = weight * share + (1.0 - share)
        found[index] = total / weight
    return found


def _smooth(axes: Axes, x: np.ndarray, y: np.ndarray, share: float, look: dict[str, Any]) -> None:
    if share == 0:
        _curve(axes, x, y, look)
        return
    axes.plot(x, y, color=look["color"], linewidth=THIN, alpha=0.25)
    _curve(axes, x, smoothed(y, share), look)


def _curve(
    axes: Axes, x: np.ndarray, y: np.ndarray, look: dict[str, Any], width: float = 1.6
) -> None:
    point: dict[str, Any] = {}
    if len(x) == 1:  # there is no line to see; plain weights are a ring around the averaged ones
        point = {"marker": "o", "markersize": 4 if width > THIN else 9}
        point |= {} if width > THIN else {"markerfacecolor": "none"}
    axes.plot(x, y, linewidth=width, **point, **look)


def _finish(axes: Axes, *, log: bool) -> None:
    """Sets the scale, and says where there is nothing to see."""
    values = [line.get_ydata() for line in axes.lines]
    if not sum(len(np.asarray(each)) for each in values):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no values yet", ha="center", va="center", transform=axes.transAxes)
    elif log:
        axes.set_yscale("log")
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_major_formatter(plain)
        low, high = axes.get_ylim()
        if low > 0 and high / low < 10:  # no power of ten may lie between
            axes.yaxis.set_minor_formatter(plain)
        else:
            axes.yaxis.set_minor_formatter(NullFormatter())
