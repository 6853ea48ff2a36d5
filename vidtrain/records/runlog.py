"""Where a run's results go: rows, curves and pictures in its folder, words on the terminal.

Rank 0 alone writes and speaks; on other ranks every method does nothing.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
import yaml
from torch import nn

from vidtrain.checkpoints.checkpoint import digest
from vidtrain.config.train import LogConfig
from vidtrain.errors import InputError, Interrupted
from vidtrain.parallel.shards import is_sharded
from vidtrain.records import sinks
from vidtrain.report.clip_pictures import plot_filmstrips, worst_errors
from vidtrain.report.figures import as_csv, best_figures
from vidtrain.report.plots import plot_confusion, read_picture
from vidtrain.report.terminal import Meter as Meter
from vidtrain.report.terminal import console


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


def read_json(path: Path) -> Any:
    """Reads a small JSON file of a run folder.

    Raises:
        InputError: It is missing or damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); put it back, or start a new run with name="
        ) from error


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Returns the rows of a metrics.jsonl; a last line cut by a kill is left out."""
    rows = []
    with writing(path):
        text = path.read_text("utf-8") if path.exists() else ""
    for line in text.splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def warn(text: str) -> None:
    """Prints a line that a person has to know of."""
    console.print(text, markup=False)


def finite(value: torch.Tensor) -> float | None:
    """Returns a scalar as a float, or None where JSON has no number for it."""
    return float(value) if value.isfinite() else None


class RunLog:
    """The open log of a training run.

    Attributes:
        folder: The run folder.
        main: Whether this process writes.
        step: Step that rows belong to, see `at`.
        epoch: Epoch that rows belong to.
    """

    def __init__(
        self, folder: Path, config: LogConfig, *, main: bool, start_step: int,
        again: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Makes a log that is still closed.

        Args:
            folder: The run folder.
            config: Where to log to.
            main: Whether this process writes.
            start_step: Step that the training goes on from.
            again: Kinds of rows of that step that will be written again.
        """
        self.folder, self.main, self.step, self.epoch = folder, main, start_step, 0.0
        self.config, self.sinks, self.again = config, list[sinks.Sink](), again
        self.files: dict[str, TextIO] = {}

    def open(self, settings: dict[str, Any]) -> None:
        """Opens the files and `config.to`; forgets what came after the step resumed from.

        Args:
            settings: All of the training's, for what shows them beside its figures.

        Raises:
            UsageError: A place to log to is unknown, not installed, or lets nobody in.
            InputError: The folder cannot be written.
        """
        if not self.main:
            return
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        # Steps are counted from 0 where they are left out, and when taken elsewhere.
        for name, after in (("metrics", 1), ("speed", 1), ("nonfinite", 0)):
            path = self.folder / f"{name}.jsonl"
            kept = [
                row
                for row in read_rows(path)
                if row["step"] < self.step + after
                and not (row["step"] == self.step and row.get("kind") in self.again)
            ]
            if kept or name != "nonfinite":
                write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
        self.sinks = self._opened(settings)

    def at(self, step: int, epoch: float) -> None:
        """Sets the step and the epoch of the rows that follow."""
        self.step, self.epoch = step, epoch

    def row(self, kind: str, **values: Any) -> None:
        """Adds a row to metrics.jsonl and its numbers to the curves.

        Nothing in it may depend on time or machine: equal runs have equal files.

        Args:
            kind: train, val (the weights that later stages use), val_raw or weights.
            values: Plain values.
        """
        self._write("metrics", {"kind": kind, "step": self.step, "epoch": self.epoch, **values})
        self.scalars({f"{kind}/{name}": value for name, value in values.items()})

    def speed(self, **values: float) -> None:
        """Adds a row to speed.jsonl and the curves."""
        self._write("speed", {"step": self.step, **values})
        self.scalars({f"speed/{name}": value for name, value in values.items()})

    def weights(self, model: nn.Module) -> None:
        """Adds a row with the digest of a network's weights, by which runs are compared."""
        if self.main or is_sharded(model):  # all give their parts
            sha256 = digest(model.state_dict())
            self._write("metrics", {"kind": "weights", "step": self.step, "epoch": self.epoch,
                                    "sha256": sha256})  # fmt: skip

    def left_out(self, facts: dict[str, Any]) -> None:
        """Adds a row to nonfinite.jsonl, and says so."""
        self._write("nonfinite", facts)
        self.say(
            f"step {facts['step']} is left out: loss {facts['loss']}, gradient norm "
            f"{facts['grad_norm']}; its videos are in {self.folder / 'nonfinite.jsonl'}"
        )

    def scalars(self, values: dict[str, Any]) -> None:
        """Adds numbers to the curves alone."""
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        for sink in self.sinks if numbers else []:
            sink.numbers(numbers, self.step)

    def best(
        self, scores: list[Any], found: dict[str, Any], class_names: Sequence[str], *,
        task: Any = None, views: Any = None,
    ) -> None:  # fmt: skip
        """Shows the best validation so far: confusion matrix, and clips of the worst errors.

        Args:
            scores: Results of all videos.
            found: Figures of the validation.
            class_names: By label.
            task: Says how wrong each was, and in words what it was taken for.
            views: Evaluation views that clips are read from; None: no clips.
        """
        if not self.main:
            return
        if "confusion" in found:
            path = self.folder / "confusion_matrix.png"
            plot_confusion(np.array(found["confusion"]), class_names, path)
            self.picture("confusion_matrix", read_picture(path), self.step)
        if views is None or not self.config.worst:
            return
        errors = worst_errors(
            scores, task.video_loss, lambda score: task.prediction(score, class_names),
            self.config.worst,
        )  # fmt: skip
        if errors:
            number = {video.id: index for index, video in enumerate(views.videos.videos)}
            clips = [views.first_clip(number[name])[0].numpy() for name, _ in errors]
            texts, path = [text for _, text in errors], self.folder / "worst_errors.png"
            plot_filmstrips(clips, texts, path)
            self.picture("worst_errors", read_picture(path), self.step, "\n".join(texts))

    def text(self, name: str, text: str) -> None:
        """Adds a text to the places that show texts, as it stands."""
        for sink in self.sinks:
            sink.text(name, text, self.step)

    def picture(self, name: str, image: Any, step: int, caption: str = "") -> None:
        """Adds an (H, W, 3) uint8 picture to the places that show pictures."""
        for sink in self.sinks:
            sink.picture(name, image, step, caption)

    def say(self, text: str) -> None:
        """Prints one line for the person at the terminal."""
        if self.main:
            console.print(text, markup=False)

    def close(self) -> None:
        """Closes the files and the places; an exception that is under way is their exit code."""
        if not self.main:
            return
        failure = sys.exc_info()[1]
        known = failure.code if isinstance(failure, Interrupted) else 1
        code = known if failure is not None else 0
        with writing(self.folder):
            for file in self.files.values():
                file.close()
            rows = self.table()
            for sink in self.sinks:
                sink.close(best_figures(rows), code)

    def _opened(self, settings: dict[str, Any]) -> list[sinks.Sink]:
        """Opens the places, and keeps the names that this run has there."""
        path = self.folder / "tracking.json"
        known = read_json(path) if path.exists() else {}
        found: list[sinks.Sink] = []
        with writing(self.folder):
            for name in dict.fromkeys(self.config.to):
                opening = sinks.Opening(self.folder, settings, self.step, known.get(name), self.say)
                found.append(sinks.PLACES[name](opening))
                if found[-1].id is not None and found[-1].id != known.get(name):
                    known[name] = found[-1].id
                    write_json(path, known)
        return found

    def table(self) -> list[dict[str, Any]]:
        """Writes metrics.csv anew, and returns the rows it is made of."""
        rows = read_rows(self.folder / "metrics.jsonl") if self.main else []
        if rows:
            write_text(self.folder / "metrics.csv", as_csv(rows))
        return rows

    def _write(self, name: str, row: dict[str, Any]) -> None:
        if not self.main:
            return
        path = self.folder / f"{name}.jsonl"
        with writing(path):
            if name not in self.files:
                self.files[name] = open(path, "a", encoding="utf-8")  # noqa: SIM115
            self.files[name].write(json.dumps(row) + "\n")
            self.files[name].flush()
