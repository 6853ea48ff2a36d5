"""Two runs side by side: what they were made of, and where their figures part."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vidtrain.checkpoints.checkpoint import config_differences, flat
from vidtrain.command.run_folders import here_are
from vidtrain.errors import InputError
from vidtrain.records.runlog import read_rows
from vidtrain.running.resuming import FREE_TO_CHANGE

# Sections in the order in which they explain a difference, with the keys of run.json they are from.
RECORDED = {
    "data": ("data",),
    "code": ("vidtrain", "code"),
    "versions": ("python", "packages", "libraries", "decoder", "cuda"),
    "machine": ("world_size", "device", "gpu", "gpu_capability", "threads", "cpu", "cpu_flags",
                "cpu_kernels", "cores", "platform", "deterministic", "environment"),
}  # fmt: skip
# Not about the run: where a cache lies, how many cores stand idle.
WITHOUT_EFFECT = ("cores", "environment.VIDTRAIN_CACHE", "environment.CUDA_VISIBLE_DEVICES")
# Settings that decide at which steps there are rows of a kind.
ROWS_OF = {
    "train.log_every_steps": ("train", "weights"),
    "validate.every": ("val", "val_raw", "weights"),
    "save.every": ("weights",),
    "save.metric": ("weights",),
    "train.max_steps": ("val", "val_raw", "weights"),
}
DEPENDS_ON_TIME = {"clips_per_second", "wait_share"}  # in rows that older versions wrote


@dataclass(frozen=True)
class Run:
    """What a run folder says of a training.

    Attributes:
        folder: The run folder.
        config: config.yaml.
        record: run.json.
        rows: metrics.jsonl.
    """

    folder: Path
    config: dict[str, Any]
    record: dict[str, Any]
    rows: list[dict[str, Any]]


@dataclass(frozen=True)
class Difference:
    """The first figure in which two runs differ.

    Attributes:
        step: Optimizer step.
        kind: Of the row: train, val, val_raw or weights.
        key: Name of the figure; empty where a whole row is missing.
        values: What the two runs have.
    """

    step: int
    kind: str
    key: str
    values: tuple[Any, Any]

    def __str__(self) -> str:
        """Says it in one phrase."""
        one, two = self.values
        if not self.key:
            which = "the first has none" if one is None else "the second has none"
            return f"step {self.step}: only one run has a row of kind {self.kind}, {which}"
        if self.kind == "weights":
            return f"step {self.step}: weights {str(one)[:12]} and {str(two)[:12]}"
        by = ""
        if _is_number(one) and _is_number(two):
            share = abs(one - two) / max(abs(one), abs(two))
            by = f", by {abs(one - two):.3g} or {share:.3g} of the larger"
        return f"step {self.step}: {self.kind} {self.key} {one!r} and {two!r}{by}"


def read_run(folder: str) -> Run:
    """Reads the small files of a run folder; nothing in it is executed.

    Raises:
        InputError: It is not a run folder, or a file is damaged.
    """
    path = Path(folder)
    found: list[Any] = []
    for name, parse in (("config.yaml", yaml.safe_load), ("run.json", json.loads)):
        file = path / name
        try:
            found.append(parse(file.read_text("utf-8")))
        except FileNotFoundError:
            raise InputError(
                f"{folder} is not a run folder: there is no {file}{here_are(folder)}"
            ) from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise InputError(f"{file} cannot be read: {error}") from error
        if not isinstance(found[-1], dict):
            raise InputError(f"{file} is damaged: it holds no settings by name")
    rows = read_rows(path / "metrics.jsonl")
    if not all(
        isinstance(row, dict)
        and isinstance(row.get("kind"), str)
        and isinstance(row.get("step"), int)
        for row in rows
    ):
        raise InputError(f"{path / 'metrics.jsonl'} is damaged: a row has no kind or no step")
    return Run(path, found[0], found[1], rows)


def explanations(one: Run, two: Run) -> dict[str, list[str]]:
    """Returns what differs between two runs, `key: first -> second`, by section.

    The sections are in the order in which they explain a difference of the figures. Settings that
    a resumed run may change are left out, since they do not change the weights.
    """
    found = {"config": config_differences(one.config, two.config, ignore=FREE_TO_CHANGE)}
    for section, keys in RECORDED.items():
        known = [key for key in keys if key in one.record and key in two.record]
        first, second = ({key: run.record[key] for key in known} for run in (one, two))
        found[section] = config_differences(first, second, ignore=WITHOUT_EFFECT)
        unknown = [key for key in keys if (key in one.record) != (key in two.record)]
        if unknown:
            found[section].append(f"only one run.json holds {', '.join(unknown)}")
    return found


def comparable(one: Run, two: Run) -> tuple[list[list[dict[str, Any]]], str]:
    """Returns the rows of two runs, and why some are left out that only one of them can have.

    Rows are at other steps where `ROWS_OF` differs. Then those that one run has by itself say
    nothing, up to where the shorter one ends.
    """
    first, second = flat(one.config), flat(two.config)
    differing = {key: kinds for key, kinds in ROWS_OF.items() if first.get(key) != second.get(key)}
    kinds = {kind for each in differing.values() for kind in each}
    keys = [{(row["step"], row["kind"]) for row in run.rows} for run in (one, two)]
    last = min(max((step for step, _ in found), default=0) for found in keys)
    kept = [
        [row for row in run.rows
         if row["kind"] not in kinds or row["step"] > last or (row["step"], row["kind"]) in other]
        for run, other in zip((one, two), keys[::-1], strict=True)
    ]  # fmt: skip
    count = sum(len(run.rows) - len(rows) for run, rows in zip((one, two), kept, strict=True))
    differ = f"{' and '.join(differing)} differ{'s' * (len(differing) == 1)}"
    return kept, f"{count} rows that only one run has are left out: {differ}" if count else ""


def first_difference(
    one: Iterable[dict[str, Any]], two: Iterable[dict[str, Any]], *, tolerance: float = 0.0
) -> Difference | None:
    """Returns the first figure in which two lists of rows differ, or None.

    Args:
        one: Rows of a metrics.jsonl.
        two: Those of the other run.
        tolerance: Largest difference, relative to the larger figure, that counts as none; above 0
            rows of kind weights are left out.
    """
    first, second = ({(row["step"], row["kind"]): row for row in rows} for rows in (one, two))
    order = {key: place for place, key in enumerate([*first, *second])}
    for key in sorted(order, key=lambda key: (key[0], order[key])):
        step, kind = key
        if kind == "weights" and tolerance:
            continue
        if key not in first or key not in second:
            there = ("a row", None) if key in first else (None, "a row")
            return Difference(step, kind, "", there)
        for name in dict.fromkeys([*first[key], *second[key]]):
            if name in DEPENDS_ON_TIME:
                continue
            values = (first[key].get(name), second[key].get(name))
            if not _same(*values, tolerance):
                return Difference(step, kind, name, values)
    return None


def _same(one: Any, two: Any, tolerance: float) -> bool:
    if tolerance and _is_number(one) and _is_number(two):
        return abs(one - two) <= tolerance * max(abs(one), abs(two))
    return one == two


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
