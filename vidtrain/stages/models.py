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
from rich.console import Console
from torch import nn
from yaml import YAMLError

from vidtrain import sizes, survey
from vidtrain.command.composing import to_objects
from vidtrain.config import ModelsConfig
from vidtrain.config.model import ModelConfig
from vidtrain.errors import InputError, UsageError, did_you_mean
from vidtrain.models import counting
from vidtrain.models.weights.fetching import Published, cached, spec_of
from vidtrain.report.model_pages import print_page, print_table
from vidtrain.targets import component

NUM_CLASSES = 400  # of Kinetics, for models of which nothing is published
FEW = 4  # models that are not worth a further process


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
            print_page(console, row)
    elif rows_right:
        print_table(console, rows_right)
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
        counts = _counts(found, num_classes, detail=detail)
        files = [Published(dataset=entry.dataset, url=entry.url) for entry in found.published]
        published = [
            {**dataclasses.asdict(entry), "weights": spec_of(files, index),
             "cached": _cached(entry.url)}
            for index, entry in enumerate(found.published)
        ]  # fmt: skip
    except Exception as error:  # whatever one file does, the others are listed
        return {"name": name, "file": str(file), "error": _reason(error)}
    first = file.read_text("utf-8").splitlines()[0] if file.is_file() else ""
    return {
        "name": name,
        "family": found.family,
        "about": first.lstrip("# ") if first.startswith("#") else "",
        "file": str(file),
        "build": found.build,
        "input": dataclasses.asdict(found.input),
        "num_classes": num_classes,
        **counts,
        "published": published,
    }


def _counts(config: ModelConfig, num_classes: int, *, detail: bool) -> dict[str, Any]:
    """Returns parameters and cost of one view; or, if the cost cannot be counted, why."""
    clip = {"num_frames": config.input.num_frames, "crop_size": config.input.eval_crop_size}
    facts = clip | {"num_classes": num_classes}
    try:
        size = sizes.remembered(
            config.build, facts, lambda: counting.count(_network(config, num_classes), **clip)
        )
        found: dict[str, Any] = {"params_M": size.parameters / 1e6, "gflops": size.gmacs}
        if detail:
            parts = counting.layers(_network(config, num_classes), **clip)
            found["layers"] = [dataclasses.asdict(part) for part in parts]
        return found
    except Exception as error:  # a user's network may do what has no meaning without values
        network = _network(config, num_classes)
        parameters = sum(parameter.numel() for parameter in network.parameters())
        why = f"{type(error).__name__}: {error}"
        return {"params_M": parameters / 1e6, "gflops": None, "not_counted": why}


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
