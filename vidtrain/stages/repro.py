"""Is a run reproducible: run its first steps again, or explain the first difference of two."""

import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vidtrain.command.run_folders import here_are
from vidtrain.config.repro import ReproConfig
from vidtrain.errors import InputError, UsageError
from vidtrain.records.runlog import console
from vidtrain.running.again import again, steps_to_compare
from vidtrain.running.comparing import (
    Difference,
    Run,
    comparable,
    explanations,
    first_difference,
    read_run,
)

MAX_LINES = 12  # of a section of the table


def repro(config: ReproConfig) -> None:
    """Prints what differs between a run and its repetition, or between two runs.

    Raises:
        UsageError: Not one or two folders, or a value out of range.
        InputError: The two are different; or a folder is not a run, or cannot be run again.
    """
    _check(config)
    one = read_run(config.folders[0])
    if len(config.folders) == 2:
        two = read_run(config.folders[1])
        rows, left_out = comparable(one, two)
        if left_out:
            console.print(left_out)
        report(one, two, *rows, tolerance=config.tolerance)
        return
    steps = steps_to_compare(one, config.steps)
    if config.steps not in (None, steps):
        console.print(f"steps={config.steps}: the run can be compared at step {steps}")
    with _folder(config.keep) as folder:
        console.print(f"training {one.folder} again in a fresh process, up to step {steps}")
        again(one, Path(folder), steps=steps)
        two = read_run(str(Path(folder) / "run"))
        rows = [_until(steps, run.rows) for run in (one, two)]
        report(one, two, *rows, tolerance=config.tolerance)


def _check(config: ReproConfig) -> None:
    if len(config.folders) not in (1, 2):
        raise UsageError(f"vidtrain repro takes one run folder, or two to compare{here_are()}")
    if config.steps is not None and config.steps < 1:
        raise UsageError(f"steps={config.steps} must be at least 1")
    if not 0 <= config.tolerance < 1:
        raise UsageError(f"tolerance={config.tolerance} must be from 0 to below 1")
    if len(config.folders) == 2 and (config.steps is not None or config.keep is not None):
        raise UsageError("steps= and keep= are for one run folder; two are compared as they are")


def _folder(keep: str | None) -> AbstractContextManager[str]:
    if keep is None:
        return tempfile.TemporaryDirectory(prefix="vidtrain-repro-", ignore_cleanup_errors=True)
    folder = Path(keep).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise UsageError(f"keep={keep} must be a new or an empty folder")
    except OSError as error:
        raise InputError(f"keep={keep} cannot be made: {error.strerror}") from error
    return nullcontext(str(folder))


def _until(steps: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows up to a step; validations of that step itself come after what ends the repetition."""
    return [
        row
        for row in rows
        if row["step"] < steps or (row["step"] == steps and row["kind"] in ("train", "weights"))
    ]


def report(
    one: Run, two: Run, first: Iterable[dict[str, Any]], second: Iterable[dict[str, Any]],
    *, tolerance: float,
) -> None:  # fmt: skip
    """Prints the table and the verdict.

    Raises:
        InputError: The rows differ; the message says where, and the likeliest cause.
    """
    first = list(first)
    sections = explanations(one, two)
    found = first_difference(first, second, tolerance=tolerance)
    table = Table("", f"{one.folder} -> {two.folder}", show_lines=True)
    for section, lines in sections.items():
        shown = [*lines[:MAX_LINES], f"and {len(lines) - MAX_LINES} more"][: len(lines)]
        table.add_row(section, "\n".join(shown) or "same")
    table.add_row("figures", str(found) if found else "same")
    Console(highlight=False, markup=False).print(table)
    if found:
        raise InputError(_verdict(one, two, found, sections))
    steps, weights = _summary(first)
    if not steps:
        raise InputError(f"{one.folder} has no figures to compare: train longer")
    what = "every bit" if not tolerance else f"within {tolerance:g}"
    print(f"equal, {what}: {len(first)} rows up to step {steps}"
          + (f", weights {weights[:12]}" if weights and not tolerance else ""))  # fmt: skip


def _summary(rows: list[dict[str, Any]]) -> tuple[int, str]:
    digests = [str(row.get("sha256", "")) for row in rows if row["kind"] == "weights"]
    return max((row["step"] for row in rows), default=0), digests[-1] if digests else ""


def _verdict(one: Run, two: Run, found: Difference, sections: dict[str, list[str]]) -> str:
    causes = [f"{name}: {lines[0]}" for name, lines in sections.items() if lines]
    because = (
        f"the first thing that differs besides is {causes[0]}"
        if causes
        else "nothing else that is recorded differs, so something is not deterministic: see "
        "repro=strict"
    )
    return f"{one.folder} and {two.folder} differ at {found}; {because}"
