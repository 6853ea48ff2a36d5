"""Curves of several runs in one picture, and a table of their best figures."""

import glob
import os
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vidtrain.command.run_folders import here_are, runs_in
from vidtrain.config.plot import PlotConfig
from vidtrain.errors import InputError, UsageError, did_you_mean
from vidtrain.records.runlog import read_rows, shown_path, warn
from vidtrain.report.figures import best, figure_names
from vidtrain.report.run_plots import plot_runs

USUAL = ("top1", "mAP")  # the metric to compare by, where none is named


def plot(config: PlotConfig) -> None:
    """Writes the picture and prints the table.

    Raises:
        UsageError: No folder is named, or a value is out of range.
        InputError: A folder holds no run, there is nothing to draw yet, or the picture cannot be
            written.
    """
    _check(config)
    runs = {name: read_rows(folder / "metrics.jsonl") for name, folder in
            named(found_runs(config.folders)).items()}  # fmt: skip
    for name in [name for name, rows in runs.items() if not rows]:
        warn(f"{name} has no figures yet")
        del runs[name]
    if not runs:
        raise InputError("no run has figures yet: the first come at train.log_every_steps")
    metric = _metric(config, runs)
    output = Path(config.output)
    plot_runs(runs, output, metric=metric, x=config.x, smoothing=config.smoothing, log=config.log)
    Console(width=1000, highlight=False).print(table(runs, metric))  # names are not broken
    print(f"written to {shown_path(str(output))}")


def found_runs(words: list[str]) -> list[Path]:
    """Returns the run folders that words name, each once, in their order.

    Args:
        words: A run folder, a folder of runs (a sweep), or a shell-style pattern. What a pattern
            finds and is no run is left out.

    Raises:
        InputError: A word names no run.
    """
    found: dict[Path, None] = {}
    for word in words:
        pattern = not os.path.exists(word) and glob.has_magic(word)
        places = sorted(glob.glob(os.path.expanduser(word))) if pattern else [word]
        runs = [run for place in places for run in runs_in(Path(place).expanduser())]
        if not runs:
            if not pattern and not Path(word).expanduser().is_dir():
                raise InputError(f"there is no folder {word}{here_are(word)}")
            where = "no folder of a run matches" if pattern else "no run in"
            raise InputError(f"{where} {word}: a run folder holds a metrics.jsonl{here_are(word)}")
        found |= dict.fromkeys(runs)
    return list(found)


def named(folders: list[Path]) -> dict[str, Path]:
    """Returns the folders by the part of their path that tells them apart."""
    whole = [folder.resolve() for folder in folders]
    if len(whole) == 1:
        return {whole[0].name: folders[0]}
    common = Path(os.path.commonpath(whole))
    names = [path.relative_to(common) for path in whole]
    return {
        path.name if name == Path() else str(name): folder
        for name, path, folder in zip(names, whole, folders, strict=True)
    }


def table(runs: dict[str, list[dict[str, Any]]], metric: str) -> Table:
    """Returns how far each run is, and its best and last validation."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("run")
    for column in ("step", "epoch", "train loss", f"best {metric}", "at step", f"last {metric}",
                   "lowest val loss"):  # fmt: skip
        shown.add_column(column, justify="right")
    for name, rows in runs.items():
        losses = [row["loss"] for row in rows if row["kind"] == "train"]
        values = [row[metric] for row in rows if row["kind"] == "val" and _is_number(row, metric)]
        top, lowest = best(rows, metric), best(rows, "loss")
        shown.add_row(
            name, str(rows[-1]["step"]), f"{rows[-1]['epoch']:.4g}",
            _digits(losses[-1] if losses else None), _digits(top[metric] if top else None),
            str(top["step"]) if top else "-", _digits(values[-1] if values else None),
            _digits(lowest["loss"] if lowest else None),
        )  # fmt: skip
    return shown


def _is_number(row: dict[str, Any], name: str) -> bool:
    return isinstance(row.get(name), int | float)


def _digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _metric(config: PlotConfig, runs: dict[str, list[dict[str, Any]]]) -> str:
    names = dict.fromkeys(name for rows in runs.values() for name in figure_names(rows))
    if config.metric is None:
        usual = [name for name in USUAL if name in names]
        return usual[0] if usual else next(iter(names), USUAL[0])
    if names and config.metric not in names:
        hint = did_you_mean(config.metric, names) or f"it is one of {', '.join(names)}"
        raise UsageError(f"metric={config.metric} is no figure of these runs; {hint}")
    return config.metric


def _check(config: PlotConfig) -> None:
    if not config.folders:
        raise UsageError(f"vidtrain plot takes run folders{here_are()}")
    if config.x not in ("step", "epoch"):
        raise UsageError(f"x={config.x} must be step or epoch")
    if not 0 <= config.smoothing < 1:
        raise UsageError(f"smoothing={config.smoothing} must be from 0 to below 1")
    if Path(config.output).suffix.lower() != ".png":
        raise UsageError(f"output={config.output} must end in .png")
