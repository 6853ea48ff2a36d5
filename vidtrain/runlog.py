"""Where a run's results go: rows, curves and pictures in its folder, words on the terminal.

Rank 0 alone writes and speaks; on other ranks every method does nothing.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from vidtrain.errors import InputError

console = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError while writing into one clear sentence."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror or error}; give a folder that can be written "
            "with runs=, or free some space"
        ) from error


def shown_path(path: str) -> Path:
    """Returns a path as a person would type it: relative where it lies below the working folder."""
    absolute = Path(path).resolve()
    below = absolute.is_relative_to(Path.cwd())
    return absolute.relative_to(Path.cwd()) if below else absolute


def write_text(path: Path, text: str) -> None:
    """Writes a small text file atomically."""
    with writing(path):
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(text, "utf-8")
        os.replace(temporary, path)


def write_yaml(path: Path, value: dict[str, Any]) -> None:
    """Writes plain values as YAML, atomically."""
    write_text(path, as_yaml(value))


def as_yaml(value: dict[str, Any]) -> str:
    """Returns plain values as YAML."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True)


def write_json(path: Path, value: Any) -> None:
    """Writes plain values as JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a metrics.jsonl; a last line cut by a kill is left out."""
    rows = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class RunLog:
    """The open log of a training run.

    Attributes:
        folder: The run folder.
        main: Whether this process writes.
    """

    def __init__(self, folder: Path, *, main: bool, start_step: int) -> None:
        """Opens metrics.jsonl and TensorBoard; forgets what came after the step resumed from.

        Raises:
            InputError: The folder cannot be written.
        """
        self.folder, self.main = folder, main
        if not main:
            return
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "metrics.jsonl"
        kept = [row for row in read_rows(self.path) if row["step"] <= start_step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        with writing(self.path):
            self.file: TextIO = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
            self.board = SummaryWriter(folder / "tensorboard", purge_step=start_step + 1)

    def row(self, kind: str, **values: Any) -> None:
        """Adds a row (kind train or val, with step and epoch) to metrics.jsonl and TensorBoard."""
        if not self.main:
            return
        with writing(self.path):
            self.file.write(json.dumps({"kind": kind, **values}) + "\n")
            self.file.flush()
            for name, value in values.items():
                if isinstance(value, int | float) and name not in ("step", "epoch"):
                    self.board.add_scalar(f"{kind}/{name}", value, values["step"])

    def text(self, name: str, text: str) -> None:
        """Adds a text to TensorBoard, as it stands."""
        if self.main:
            self.board.add_text(name, f"```\n{text}\n```")

    def picture(self, name: str, image: Any, step: int) -> None:
        """Adds an (H, W, 3) uint8 picture to TensorBoard."""
        if self.main:
            self.board.add_image(name, image, step, dataformats="HWC")

    def say(self, text: str) -> None:
        """Prints one line for the person at the terminal."""
        if self.main:
            console.print(text, markup=False)

    def close(self) -> None:
        """Flushes and closes the files."""
        if self.main:
            with writing(self.path):
                self.file.close()
                self.board.close()


class Meter:
    """Progress of a training: a bar on a terminal, a line per report elsewhere."""

    def __init__(self, *, total: int, start: int, main: bool) -> None:
        """Starts at a step; nothing is shown on other ranks than 0."""
        self.total, self.step, self.main = total, start, main
        self.first, self.began = start, time.perf_counter()
        self.mark, self.clips, self.waited = self.began, 0, 0.0
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[text]}  ETA"), TimeRemainingColumn(), console=console,
            disable=not (main and sys.stderr.isatty()), transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("train", total=total, completed=start, text="")
        self.bar.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def stepped(self, clips: int) -> None:
        """Counts one optimizer step of so many clips."""
        self.step, self.clips = self.step + 1, self.clips + clips
        self.bar.update(self.task, completed=self.step)

    def speed(self) -> dict[str, float]:
        """Returns clips_per_second and wait_share (of wall time) since the last call."""
        now = time.perf_counter()
        seconds = max(now - self.mark, 1e-9)
        figures = {
            "clips_per_second": round(self.clips / seconds, 2),
            "wait_share": round(min(self.waited / seconds, 1.0), 4),
        }
        self.mark, self.clips, self.waited = now, 0, 0.0
        return figures

    def restart_clock(self) -> None:
        """Leaves out of the speed what just happened, for example a validation."""
        self.mark, self.clips, self.waited = time.perf_counter(), 0, 0.0

    def show(self, row: dict[str, Any]) -> None:
        """Shows a train row: in the bar, or as a line where there is no terminal."""
        text = (
            f"loss {row['loss']:.4f}  lr {row['lr']:.2e}  {row['clips_per_second']:.1f} clips/s  "
            f"data wait {row['wait_share']:.0%}"
        )
        self.bar.update(self.task, text=text)
        if self.main and self.bar.disable:
            console.print(f"step {self.step}/{self.total}  {text}  ETA {self._eta()}", markup=False)

    def _eta(self) -> str:
        taken = (time.perf_counter() - self.began) / max(1, self.step - self.first)
        seconds = int(taken * (self.total - self.step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def close(self) -> None:
        """Takes the bar off the terminal."""
        self.bar.stop()
