"""What a sweep leaves behind: a record in each run's folder, and a table that compares the runs.

The table is made from the run folders alone, so that it does not matter in which process, on which
machine, or at which start of an interrupted sweep a run was trained. No torch here.
"""

import csv
import io
import json
import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

RECORD, CSV, MARKDOWN = "sweep.json", "sweep.csv", "sweep.md"
STOPPING = ".stopping"  # in the sweep's folder: when the start began that is to end
# What a run returns to the sweeper, from another process, when a signal stopped it.
INTERRUPTED = "interrupted"


@dataclass
class Record:
    """What sweep.json in a run's folder says.

    Attributes:
        swept: The settings that tell this run from others of the sweep, as they were given.
        number: Position in the sweep.
        began: When this start of the sweep began, in seconds since 1970; the same for all its runs.
        metric: Figure that runs are compared by; None: the run does not validate.
        state: done, interrupted, failed or running, which is also what a kill leaves.
        error: Why it failed, or was interrupted.
        seconds: Time taken by all starts that ended, waiting in a queue left out.
        host: Machine that it runs on.
        pid: Process that it runs in.
    """

    swept: dict[str, str]
    number: int
    began: float
    metric: str | None = None
    state: str = "running"
    error: str | None = None
    seconds: float = 0.0
    host: str = field(default_factory=platform.node)
    pid: int = field(default_factory=os.getpid)


@dataclass
class Row:
    """One run of the table.

    Attributes:
        folder: Its run folder, relative to the sweep's.
        record: Its sweep.json.
        best: Best value of the metric; None: there was no validation yet.
        last: Its value at the last validation.
        step: Optimizer steps taken.
    """

    folder: str
    record: Record
    best: float | None = None
    last: float | None = None
    step: int = 0


@dataclass
class Running:
    """An open record of a run: written when it starts and when it ends.

    Attributes:
        folder: Run folder.
        record: What is written.
    """

    folder: Path
    record: Record
    clock: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        earlier = read_record(self.folder)
        self.record.seconds = earlier.seconds if earlier else 0.0
        self.write()

    def end(self, state: str, error: str | None = None) -> None:
        """Notes how the run ended."""
        self.record.state, self.record.error = state, error
        self.record.seconds = round(self.record.seconds + time.perf_counter() - self.clock, 1)
        self.write()

    def write(self) -> None:
        """Writes the record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / RECORD, json.dumps(asdict(self.record), indent=2) + "\n")


def read_record(folder: Path) -> Record | None:
    """Returns the record in a run's folder, or None where there is none that can be read."""
    try:
        return Record(**json.loads((folder / RECORD).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def rows(sweep: Path) -> list[Row]:
    """Returns the runs below a sweep's folder: the best first, then unfinished and failed ones.

    Runs that are judged by different figures are not ranked against each other.
    """
    found = []
    for file in sorted(sweep.rglob(RECORD)):
        record = read_record(file.parent)
        if record is not None:
            found.append(_row(file.parent, sweep, record))
    return sorted(found, key=_order)


def write_table(sweep: Path, found: Sequence[Row]) -> None:
    """Writes sweep.csv and sweep.md."""
    head, cells = _cells(found)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([head, *cells])
    _replace(sweep / CSV, text.getvalue())
    _replace(sweep / MARKDOWN, _markdown(found))


def shown(found: Sequence[Row]) -> str:
    """Returns the table for a terminal, one sentence for each run that failed below it."""
    head, cells = _cells(found, short=True)
    head, cells = head[:-1], [line[:-1] for line in cells]
    widths = [max(map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *cells)
    ]
    return "\n".join([*lines, *_sentences(found)])


def _row(folder: Path, sweep: Path, record: Record) -> Row:
    row = Row(str(folder.relative_to(sweep)), record)
    values = []
    for line in _metrics(folder):
        row.step = max(row.step, int(line.get("step", 0)))
        value = line.get(str(record.metric)) if line.get("kind") == "val" else None
        if isinstance(value, int | float) and math.isfinite(value):
            values.append(float(value))
    if values:
        row.best = min(values) if record.metric == "loss" else max(values)
        row.last = values[-1]
    return row


def _metrics(folder: Path) -> list[dict[str, Any]]:
    try:
        lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:  # cut by a kill
            break
    return found


def _order(row: Row) -> tuple[Any, ...]:
    failed = row.record.state == "failed"
    best = math.inf if row.best is None else row.best
    if row.record.metric != "loss" and row.best is not None:
        best = -row.best
    return failed, str(row.record.metric), best, row.record.number, row.folder


def _cells(found: Sequence[Row], *, short: bool = False) -> tuple[list[str], list[list[str]]]:
    """Returns header and lines of the table; short: figures rounded for reading."""
    keys = sorted({key for row in found for key in row.record.swept})
    metrics = {row.record.metric for row in found if row.record.metric}
    several, what = len(metrics) > 1, f" {metrics.pop()}" if len(metrics) == 1 else ""
    head = [*keys, *["by"] * several, f"best{what}", f"last{what}", "steps", "seconds", "state",
            "run", "error"]  # fmt: skip

    def figure(value: float | None) -> str:
        return "" if value is None else f"{value:.4f}" if short else repr(value)

    def setting(text: str) -> str:
        try:
            return f"{float(text):.4g}" if short and len(text) > 8 else text
        except ValueError:
            return text

    cells = []
    for row in found:
        record = row.record
        swept = [setting(record.swept.get(key, "")) for key in keys]
        state = "not finished" if record.state == "running" else record.state
        cells.append(
            [*swept, *[record.metric or ""] * several, figure(row.best), figure(row.last),
             str(row.step), f"{record.seconds:.1f}", state, row.folder, record.error or ""]
        )  # fmt: skip
    return head, cells


def _markdown(found: Sequence[Row]) -> str:
    head, cells = _cells(found, short=True)

    def line(texts: Sequence[str]) -> str:
        return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"

    table = [line(head[:-1]), "|" + "---|" * (len(head) - 1), *(line(c[:-1]) for c in cells)]
    told = _sentences(found)
    return "\n".join([*table, "", *(f"- {text}" for text in told), *[""] * bool(told)])


def _sentences(found: Sequence[Row]) -> list[str]:
    told = []
    for row in found:
        if row.record.error:
            settings = (
                ", ".join(f"{k}={v}" for k, v in sorted(row.record.swept.items())) or row.folder
            )
            told.append(f"{settings} {row.record.state}: {' '.join(row.record.error.split())}")
    return told


def _replace(path: Path, text: str) -> None:
    """Writes a file in one move; several processes may do so at once."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)
