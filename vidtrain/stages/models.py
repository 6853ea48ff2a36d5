"""List the models: what they take, how big and how good they are, and which weights there are."""

import dataclasses
import fnmatch
import functools
import json
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf.errors import OmegaConfBaseException
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import nn
from yaml import YAMLError

from vidtrain import survey
from vidtrain.composing import to_objects
from vidtrain.config import ModelsConfig
from vidtrain.config_model import ModelConfig
from vidtrain.errors import InputError, UsageError, did_you_mean
from vidtrain.models import counting
from vidtrain.models.weights.fetching import cached
from vidtrain.targets import component

NUM_CLASSES = 400  # of Kinetics, for models of which nothing is published
FEW = 4  # models that are not worth a further process
NUMBERS = ("Mparams", "GFLOPs", "top-1", "top-5")
# What a narrow terminal leaves out, the first first.
LEFT_OUT = ("source", "licence", "top-5", "family", "views", "weights")
LEGEND = """clip: frames x rate @ training/evaluation crop; GFLOPs: multiply-adds of one view
weights: yes = model.weights=published downloads them; cached = they are here
one in detail: vidtrain models NAME --detail; use it: vidtrain train model=NAME"""


def models(config: ModelsConfig) -> None:
    """Prints a table, a page for each, or JSON, of the models whose names match.

    YAML files of users are listed with the others. Parameters and cost are counted.

    Raises:
        UsageError: No model matches.
        InputError: A YAML file, or what it names, does not work; the others have been printed.
    """
    rows = list(_rows(_matching(config.pattern, exact=config.detail), detail=config.detail))
    broken = [f"{row['file']}: {row['error']}" for row in rows if "error" in row]
    rows_right = [row for row in rows if "error" not in row]
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 1000  # a file has room, and is searched by line
    if config.json:
        print(json.dumps(rows, indent=2))
    elif config.detail:
        for row in rows_right:
            _print_page(console, row)
    elif rows_right:
        _print_table(console, rows_right)
    if broken:
        told = "".join(f"\n  {line}" for line in broken)
        raise InputError(f"{len(broken)} of {len(rows)} models do not work:{told}")


def _matching(pattern: str, *, exact: bool) -> list[str]:
    """Returns the names that a pattern matches; with `exact`, a whole name means that model."""
    loader = GlobalHydra.instance().config_loader()
    names = loader.get_group_options("model", results_filter=ObjectType.CONFIG)
    if exact and pattern in names:
        return [pattern]
    glob = pattern if set("*?[") & set(pattern) else f"*{pattern}*"
    matching = fnmatch.filter(names, glob)
    if not matching:
        hint = did_you_mean(pattern, names) or f"there are {', '.join(names)}"
        raise UsageError(f"no model matches {pattern!r}; {hint}")
    return matching


def _rows(names: Sequence[str], *, detail: bool) -> Iterator[dict[str, Any]]:
    """Yields what is told of each model, in order."""
    read = functools.partial(_row, detail=detail)
    workers = min(survey.num_processes(None), len(names) // FEW)
    if workers < 2 or "fork" not in multiprocessing.get_all_start_methods():
        with survey.counting("models", len(names), "models") as advance:
            for name in names:
                yield read(name)
                advance(1)
        return
    # Forked, since they need Hydra as it is here; and before the progress starts a thread.
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("fork"), initializer=_begin_process
    ) as pool:
        rows = pool.map(read, names)
        with survey.counting("models", len(names), "models") as advance:
            for row in rows:
                yield row
                advance(1)


def _begin_process() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that shows the table answers Ctrl-C


def _row(name: str, *, detail: bool) -> dict[str, Any]:
    """Returns what is told of one model as plain values, or why it does not work as `error`."""
    file = _file(name)
    try:
        cfg = hydra.compose("train", overrides=[f"model={name}", "run_dir=-"])
        found: ModelConfig = to_objects(cfg).model
        num_classes = found.published[0].num_classes if found.published else NUM_CLASSES
        network = _network(found, num_classes)
        published = [
            {**dataclasses.asdict(entry), "cached": _cached(entry.url)} for entry in found.published
        ]
    except Exception as error:  # whatever one file does, the others are listed
        return {"name": name, "file": str(file), "error": _reason(error)}
    first = file.read_text("utf-8").splitlines()[0] if file.is_file() else ""
    row = {
        "name": name,
        "family": found.family,
        "about": first.lstrip("# ") if first.startswith("#") else "",
        "file": str(file),
        "build": found.build,
        "input": dataclasses.asdict(found.input),
        "num_classes": num_classes,
        "params_M": sum(parameter.numel() for parameter in network.parameters()) / 1e6,
        "gflops": None,
        "published": published,
    }
    clip = {"num_frames": found.input.num_frames, "crop_size": found.input.eval_crop_size}
    try:
        row["gflops"] = counting.count(network, **clip).gmacs
        if detail:
            row["layers"] = [dataclasses.asdict(part) for part in counting.layers(network, **clip)]
    except Exception as error:  # a user's network may do what has no meaning without values
        row["not_counted"] = f"{type(error).__name__}: {error}"
    return row


def _reason(error: BaseException) -> str:
    """Returns what went wrong first, without the words that Hydra puts around it."""
    said = (InputError, OmegaConfBaseException, YAMLError)
    while not isinstance(error, said) and (inner := error.__cause__ or error.__context__):
        error = inner
    lines = [line.strip() for line in str(error).strip().splitlines() or [type(error).__name__]]
    kept = lines if isinstance(error, said) else lines[:1]
    return ", ".join(line for line in kept if not line.startswith(("object_type", "reference_")))


def _network(config: ModelConfig, num_classes: int) -> nn.Module:
    try:
        with torch.device("meta"):  # no memory, no time; but not every network can be built so
            return component(config.build, "model.build", num_classes=num_classes)
    except (RuntimeError, NotImplementedError):
        return component(config.build, "model.build", num_classes=num_classes)


def _cached(url: str | None) -> str | None:
    path = cached(url) if url else None
    return str(path) if path else None


def _file(name: str) -> Path:
    """Returns the YAML file of a model: the first on Hydra's search path."""
    found = Path("model", f"{name}.yaml")
    for place in GlobalHydra.instance().config_loader().get_search_path().get_path():
        folder = Path(str(place.path).removeprefix("file://"))
        if (folder / found).is_file():
            return folder / found
    return found


def _print_table(console: Console, rows: Sequence[dict[str, Any]]) -> None:
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
    if not entry.get("url"):
        return "-"
    return "cached" if entry["cached"] else "yes"


def _clip(inputs: dict[str, Any]) -> str:
    crops = dict.fromkeys((inputs["crop_size"], inputs["eval_crop_size"]))
    return f"{inputs['num_frames']} x {inputs['sampling_rate']} @ {'/'.join(map(str, crops))}"


def _number(value: float | None, missing: str = "?") -> str:
    if value is None:
        return missing
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}"


def _print_page(console: Console, row: dict[str, Any]) -> None:
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
            "sha256": entry["sha256"] or ("none is published" if entry["url"] else ""),
            "classes": str(entry["num_classes"]),
            "licence": entry["licence"] or "not stated",
            "source": entry["source"],
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
