"""The picture of a data set: balance of its classes, durations, frame sizes and frame rates."""

import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from vidtrain.report.plots import (
    BLUE,
    MAX_TICK_LABELS,
    ORANGE,
    label_axes,
    new_figure,
    save,
    shorten,
)

COLOURS = {"train": BLUE, "val": ORANGE}
FEW = 10  # videos of a class that are too few to learn or to measure from
MAX_BARS = 12  # different frame rates; above, a histogram
MAX_SIZES = 4  # frame sizes that are named in the picture
MIN_SLOTS = 4  # classes that there is room for at least, so that bars do not become walls
LINE = 150  # characters of the names below the bars that fit beside each other
MIN_WRAP = 12  # characters; names are wrapped to no less
UNEVEN = 50  # largest over smallest value, above which an axis is logarithmic


@dataclass(frozen=True)
class SplitFigures:
    """What is drawn of a split with N readable videos in F readable files.

    Attributes:
        per_class: Videos of each class, int (C,).
        seconds: Durations of the videos, float (M,), M <= N: those whose rate is known.
        frames: Numbers of frames of the videos, int (N,).
        sizes: Width and height of the files, pixels, int (F, 2).
        fps: Frames per second of the files, float (K,), K <= F: those whose rate is known.
        key_distance: Most frames from one keyframe to the next, of the files, int (K,).
    """

    per_class: np.ndarray
    seconds: np.ndarray
    frames: np.ndarray
    sizes: np.ndarray
    fps: np.ndarray
    key_distance: np.ndarray


def spread(values: np.ndarray) -> dict[str, float] | None:
    """Returns smallest, 5 %, median, 95 % and largest value; None of nothing."""
    if not len(values):
        return None
    found = np.percentile(values, (0, 5, 50, 95, 100)).tolist()
    return dict(zip(("min", "p5", "median", "p95", "max"), found, strict=True))


def balance(per_class: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Returns how many videos the classes have, and which have none or few.

    Args:
        per_class: Videos of each class, int (C,).
        names: C names.
    """
    there = per_class[per_class > 0]
    return {
        "videos_per_class": dict(zip(names, per_class.tolist(), strict=True)),
        "balance": {
            "min": int(per_class.min()), "median": float(np.median(per_class)),
            "max": int(per_class.max()),
            "largest_to_smallest": float(there.max() / there.min()) if len(there) else None,
        },
        "classes_without_videos": [n for n, c in zip(names, per_class, strict=True) if c == 0],
        "classes_with_few_videos": [
            n for n, c in zip(names, per_class, strict=True) if 0 < c < FEW
        ],
    }  # fmt: skip


def plot_data(
    splits: Mapping[str, SplitFigures], class_names: Sequence[str], title: str, path: Path
) -> None:
    """Draws the picture of a data set.

    Args:
        splits: Figures by split, train or val; at least one.
        class_names: C names, indexed by label.
        title: Of the picture.
        path: Picture to write.

    Raises:
        InputError: It cannot be written.
    """
    figure = new_figure(13, 9)
    figure.suptitle(title.replace("$", r"\$"))
    rows: Any = [["classes"] * 3, ["durations", "sizes", "rates"]]
    axes = figure.subplot_mosaic(rows, height_ratios=[1.15, 1])
    _classes(axes["classes"], splits, class_names)
    _durations(axes["durations"], splits)
    _sizes(axes["sizes"], splits)
    _rates(axes["rates"], splits)
    save(figure, path)


def _classes(axes: Axes, splits: Mapping[str, SplitFigures], class_names: Sequence[str]) -> None:
    """Bars of the classes, largest first; an outline where there are too many for bars."""
    first = next(iter(splits.values()))
    order = np.argsort(-first.per_class, kind="stable")
    count = len(order)
    for number, (name, figures) in enumerate(splits.items()):
        heights = figures.per_class[order]
        text = f"{name} ({int(heights.sum())})"
        if count <= MAX_TICK_LABELS:
            width = 0.8 / len(splits)
            bars = axes.bar(np.arange(count) + (number - (len(splits) - 1) / 2) * width, heights,
                            width, color=COLOURS[name], label=text)  # fmt: skip
            if count * len(splits) <= MAX_TICK_LABELS:
                axes.bar_label(bars, fontsize=8)
        else:
            axes.stairs(heights, np.arange(count + 1) - 0.5, color=COLOURS[name], label=text,
                        fill=number == 0, alpha=0.5 if number == 0 else 1)  # fmt: skip
    highest = max(int(figures.per_class.max(initial=0)) for figures in splits.values())
    lowest = min((int(f.per_class[f.per_class > 0].min(initial=highest))
                  for f in splits.values()), default=1)  # fmt: skip
    log = highest > UNEVEN * max(1, lowest)
    if log:
        axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, max(1, highest) * (5 if log else 1.3))
    if count <= MAX_TICK_LABELS:
        middle, half = (count - 1) / 2, max(count, MIN_SLOTS) / 2
        axes.set_xlim(middle - half, middle + half)
        fits = round(LINE / max(count, MIN_SLOTS))  # characters below a bar
        names = [shorten(class_names[label]) for label in order]
        slant: dict[str, Any] = {}
        if fits < min(MIN_WRAP, max(map(len, names))):
            slant = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        else:
            names = [textwrap.fill(name, fits) for name in names]
        axes.set_xticks(range(count), names, **slant)
    else:
        axes.set_xlim(-0.5, count - 0.5)
    rank = "" if count <= MAX_TICK_LABELS else "class, by number of videos"
    label_axes(axes, f"Videos of the {count} classes", rank, "videos")
    axes.grid(visible=False, axis="x")


def _durations(axes: Axes, splits: Mapping[str, SplitFigures]) -> None:
    """Histograms; of frames where the rate is known of no video."""
    in_seconds = any(len(figures.seconds) for figures in splits.values())
    values = {name: f.seconds if in_seconds else f.frames for name, f in splits.items()}
    unit = "seconds" if in_seconds else "frames"
    _histogram(axes, values, "Duration", f"duration ({unit})", "videos")


def _histogram(axes: Axes, values: Mapping[str, np.ndarray], title: str, x: str, of: str) -> None:
    """Shares of each split over bins that all splits have in common."""
    together = np.concatenate(list(values.values()))
    together = together[together > 0]
    label_axes(axes, title, x, f"share of the split's {of} (%)")
    if not len(together):
        _say_empty(axes)
        return
    low, high = together.min(), together.max()
    if high > UNEVEN * low:
        axes.set_xscale("log")
        edges = np.geomspace(low, high, 41)
    elif high > low:
        edges = np.linspace(low, high, 41)
    else:
        edges = low * np.array([0.8, 0.95, 1.05, 1.2])
    edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    for name, found in values.items():
        if len(found):
            weights = np.full(len(found), 100 / len(found))
            look: dict[str, Any] = {"bins": edges.tolist(), "weights": weights}
            axes.hist(found, **look, color=COLOURS[name], alpha=0.3)
            axes.hist(found, **look, color=COLOURS[name], histtype="step", linewidth=1.5,
                      label=f"{name} (median {np.median(found):.3g})")  # fmt: skip
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])  # room for the legend
    axes.legend()


def _sizes(axes: Axes, splits: Mapping[str, SplitFigures]) -> None:
    """A disc for each frame size, by its share of all files; the most frequent ones are named."""
    counts = Counter(tuple(size) for f in splits.values() for size in f.sizes.tolist())
    total = counts.total()
    label_axes(axes, "Frame size", "width (pixels)", "height (pixels)")
    if not total:
        _say_empty(axes)
        return
    for name, figures in splits.items():
        own = Counter(tuple(size) for size in figures.sizes.tolist())
        if own:
            widths, heights = np.array(list(own)).T
            areas = 15 + 500 * np.array(list(own.values())) / own.total()
            axes.scatter(widths, heights, areas, color=COLOURS[name], alpha=0.45, linewidth=0,
                         label=name)  # fmt: skip
    most = counts.most_common(MAX_SIZES)
    text = "\n".join(f"{w} x {h}: {100 * n / total:.3g} %" for (w, h), n in most)
    if len(counts) > MAX_SIZES:
        text += f"\nand {len(counts) - MAX_SIZES} more sizes"
    axes.text(0.97, 0.03, text, transform=axes.transAxes, ha="right", va="bottom", fontsize=9,
              bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "0.8"})  # fmt: skip
    widest, highest = (max(size[side] for size in counts) for side in (0, 1))
    axes.set(xlim=(0, 1.25 * widest), ylim=(0, 1.35 * highest))
    legend = axes.legend(loc="upper left", markerscale=1)
    for handle in legend.legend_handles:
        handle.set_sizes([60])  # type: ignore[union-attr]


def _rates(axes: Axes, splits: Mapping[str, SplitFigures]) -> None:
    """Bars of the frame rates; a histogram where there are too many."""
    rounded = {name: np.round(f.fps, 2) for name, f in splits.items()}
    different = np.unique(np.concatenate(list(rounded.values())))
    if len(different) > MAX_BARS:
        _histogram(axes, rounded, "Frame rate", "frames per second", "files")
        return
    label_axes(axes, "Frame rate", "frames per second", "share of the split's files (%)")
    if not len(different):
        _say_empty(axes)
        return
    width = 0.8 / len(splits)
    for number, (name, found) in enumerate(rounded.items()):
        shares = [100 * np.mean(found == rate) if len(found) else 0 for rate in different]
        places = np.arange(len(different)) + (number - (len(splits) - 1) / 2) * width
        axes.bar(places, shares, width, color=COLOURS[name], label=name)
    slant: dict[str, Any] = {"rotation": 45} if len(different) > 6 else {}
    axes.set_xticks(range(len(different)), [f"{rate:g}" for rate in different], **slant)
    axes.set(xlim=(-1, len(different)), ylim=(0, 1.25 * axes.get_ylim()[1]))
    axes.grid(visible=False, axis="x")
    axes.legend()


def _say_empty(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    axes.text(0.5, 0.5, "not known", ha="center", va="center", transform=axes.transAxes)
