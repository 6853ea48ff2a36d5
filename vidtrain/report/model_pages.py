"""The table of models, and the page of one, for a terminal."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

NUMBERS = ("Mparams", "GFLOPs", "top-1", "top-5")
# What a narrow terminal leaves out, the first first.
LEFT_OUT = ("source", "licence", "top-5", "family", "views", "weights")
LEGEND = """clip: frames x rate @ training/evaluation crop; GFLOPs: multiply-adds of one view
weights: the value of model.weights that takes them; * they are on this machine
one in detail: vidtrain models NAME --detail; use it: vidtrain train model=NAME"""


def print_table(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Prints one line for each published result, with as many columns as there is room for.

    Args:
        console: Where to.
        rows: What the stage `models` tells of each model.
    """
    cells = [line for row in rows for line in _lines(row)]
    columns = list(cells[0])
    widths = {name: max(len(name), *(len(line[name]) for line in cells)) + 2 for name in columns}
    left_out: list[str] = []
    for name in LEFT_OUT:
        if sum(widths[kept] for kept in columns) > console.width:
            columns.remove(name)
            left_out.append(name)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=True)
    for line in cells:
        table.add_row(*(escape(line[name]) for name in columns))
    console.print(table)
    console.print(f"\n{LEGEND}", style="dim")
    if left_out:
        console.print(f"a wider terminal also shows: {', '.join(left_out)} (all: --json)",
                      style="dim")  # fmt: skip
    for row in rows:
        if "not_counted" in row:
            console.print(f"{row['name']}: the cost is not counted, {row['not_counted']}",
                          markup=False)  # fmt: skip


def _lines(row: dict[str, Any]) -> list[dict[str, str]]:
    """Returns a model's lines of the table: one for each published result, at least one."""
    first = {
        "model": row["name"],
        "family": row["family"],
        "clip": _clip(row["input"]),
        "Mparams": f"{row['params_M']:.2f}",
        "GFLOPs": _number(row["gflops"]),
    }
    lines = []
    for index, entry in enumerate(row["published"] or [{}]):
        lines.append({
            **(dict.fromkeys(first, "") if index else first),
            "data set": entry.get("dataset") or "",
            "top-1": _number(entry.get("top1"), ""),
            "top-5": _number(entry.get("top5"), ""),
            "views": entry.get("views") or "",
            "weights": _state(entry),
            "licence": (entry.get("licence") or "") if entry.get("url") else "",
            "source": entry.get("source") or "",
        })  # fmt: skip
    return lines


def _state(entry: dict[str, Any]) -> str:
    spec = entry.get("weights")
    return f"{spec}{' *' if entry['cached'] else ''}" if spec else "-"


def _clip(inputs: dict[str, Any]) -> str:
    crops = dict.fromkeys((inputs["crop_size"], inputs["eval_crop_size"]))
    return f"{inputs['num_frames']} x {inputs['sampling_rate']} @ {'/'.join(map(str, crops))}"


def _number(value: float | None, missing: str = "?") -> str:
    if value is None:
        return missing
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}"


def print_page(console: Console, row: dict[str, Any]) -> None:
    """Prints what is told of one model: input, published results and their files, layers.

    Args:
        console: Where to.
        row: What the stage `models` tells of it, with its layers.
    """
    inputs = row["input"]
    console.print(f"[bold]{escape(row['name'])}[/]  {escape(row['about'])}")
    facts = {
        "family": row["family"],
        "size": f"{row['params_M']:.2f} M parameters with {row['num_classes']} classes, "
        f"{_number(row['gflops'])} GFLOPs (multiply-adds) per view at the evaluation crop",
        "built by": " ".join(f"{key}={value}" if key != "_target_" else str(value)
                             for key, value in row["build"].items()),
        **{name: str(value) for name, value in inputs.items() if value is not None},
        "file": row["file"],
    }  # fmt: skip
    _print_facts(console, facts)
    for entry in row["published"]:
        console.print(f"\n[bold]published: {escape(entry['dataset'])}[/]")
        state = f"cached at {entry['cached']}" if entry["cached"] else "not on this machine"
        accuracy = f"top-1 {_number(entry['top1'])}, top-5 {_number(entry['top5'])}"
        _print_facts(console, {
            "accuracy": f"{accuracy}, {entry['views'] or 'unknown'} views (clips x crops)",
            "weights": f"{entry['url']} ({state})" if entry["url"] else "no file is published",
            "taken with": f"model.weights={entry['weights']}" if entry["url"] else "",
            "sha256": entry["sha256"] or ("none is published" if entry["url"] else ""),
            "classes": str(entry["num_classes"]),
            "licence": entry["licence"] or "not stated",
            "source": entry["source"],
            "note": entry["note"] or "",
        })  # fmt: skip
    console.print()
    if "not_counted" in row:
        console.print(f"the cost is not counted, {row['not_counted']}", markup=False)
        return
    _print_layers(console, row["layers"])


def _print_layers(console: Console, parts: Sequence[dict[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for name in ("layer", "kind", "output"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "GFLOPs", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    above: list[str] = []  # names of the parts that the present one lies in
    for part in parts:
        above = above[: part["depth"]]
        name = part["name"].removeprefix(f"{above[-1]}." if above else "")
        above.append(part["name"])
        shapes = " + ".join("x".join(map(str, shape)) or "1" for shape in part["output"])
        table.add_row("  " * part["depth"] + name, part["kind"], shapes, f"{part['parameters']:,}",
                      f"{part['gmacs']:.3f}", f"{part['share']:.1%}")  # fmt: skip
    console.print(table)
    console.print("[dim]output: one clip, without the axis of the batch[/]\n")


def _print_facts(console: Console, facts: dict[str, str]) -> None:
    for name, value in facts.items():
        if value:
            console.print(f"  {name:16} {value}", markup=False)
