"""The rows of a metrics.jsonl as one table, and the best figures among them."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

KINDS = ("train", "val", "val_raw")
COUNTS = ("num_videos", "num_views", "correct", "mAP_classes", "unlabelled")  # not better or worse
LOWER_IS_BETTER = ("loss",)


def as_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Returns a line for each step and a column for each figure, such as val/top1.

    Args:
        rows: With kind, step, epoch and numbers; other kinds than train, val and val_raw are left
            out. Of two rows of a kind and step the later counts.
    """
    table: dict[int, dict[str, Any]] = {}
    columns: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for row in rows:
        kind = row["kind"]
        if kind not in columns:
            continue
        line = table.setdefault(row["step"], {"step": row["step"], "epoch": row["epoch"]})
        for name, value in row.items():
            if name in ("kind", "step", "epoch"):
                continue
            line[f"{kind}/{name}"] = value
            if f"{kind}/{name}" not in columns[kind]:
                columns[kind].append(f"{kind}/{name}")
    text = io.StringIO()
    names = ["step", "epoch", *(name for kind in KINDS for name in columns[kind])]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table[step] for step in sorted(table))
    return text.getvalue()


def figure_names(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the figures of validations, in the order of their rows."""
    names: dict[str, None] = {}
    for row in rows:
        if row["kind"] == "val":
            names |= {
                name: None
                for name, value in row.items()
                if name not in ("step", "epoch", *COUNTS) and isinstance(value, int | float)
            }
    return list(names)


def best(rows: Sequence[Mapping[str, Any]], name: str) -> Mapping[str, Any] | None:
    """Returns the validation with the best value of a figure, the first of equal ones."""
    found = [row for row in rows if row["kind"] == "val" and row.get(name) is not None]
    sign = 1 if name in LOWER_IS_BETTER else -1
    return min(found, key=lambda row: sign * row[name], default=None)


def best_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the best and the last value of each figure of the validations of a run.

    Returns:
        best/NAME and last/NAME, each figure judged by itself: lowest for loss, highest for others.
    """
    found: dict[str, float] = {}
    for name in figure_names(rows):
        row = best(rows, name)
        assert row is not None
        last = [other[name] for other in rows
                if other["kind"] == "val" and other.get(name) is not None][-1]  # fmt: skip
        found |= {f"best/{name}": float(row[name]), f"last/{name}": float(last)}
    return found
