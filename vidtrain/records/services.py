"""The two services that a training is logged to where they are installed: W&B and MLflow."""

import fcntl
import html
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from vidtrain.checkpoints.checkpoint import flat
from vidtrain.errors import InputError, UsageError

MOST_PARAMS = 100  # of one request to MLflow
MOST_CHARACTERS = 500  # of a parameter, what every MLflow server takes
SQLITE = "sqlite:///"


@dataclass(frozen=True)
class Opening:
    """What a place to log to is opened with.

    Attributes:
        folder: Run folder.
        settings: The training's settings, nested plain values.
        start_step: Step that the training goes on from.
        known: Id of the run there, from an earlier start of this training; None: a new one.
        say: Prints a line for the person at the terminal.
    """

    folder: Path
    settings: dict[str, Any]
    start_step: int
    known: str | None
    say: Callable[[str], None]


class WeightsAndBiases:
    """A run of Weights & Biases, with its files in wandb/; WANDB_MODE=offline sends nothing."""

    def __init__(self, opening: Opening) -> None:
        wandb = import_module("wandb")
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "vidtrain"), dir=opening.folder,
                name=name_of(opening), id=opening.known, resume="allow",
                config=opening.settings, allow_val_change=True,
            )  # fmt: skip
        except (wandb.errors.Error, TimeoutError) as error:
            raise UsageError(
                f"log.to=wandb: Weights & Biases says: {first_line(error)}; run `wandb login`, or "
                "set WANDB_MODE=offline to send nothing"
            ) from error
        self.id: str | None = self.run.id
        self.image, self.page = wandb.Image, wandb.Html

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """See Sink."""
        self.run.log(dict(values), step=step)

    def picture(self, name: str, image: np.ndarray, step: int, caption: str) -> None:
        """See Sink."""
        self.run.log({name: self.image(image, caption=caption or None)}, step=step)

    def text(self, name: str, text: str, step: int) -> None:
        """See Sink."""
        self.run.log({name: self.page(f"<pre>{html.escape(text)}</pre>")}, step=step)

    def close(self, figures: Mapping[str, float], code: int) -> None:
        """See Sink."""
        self.run.summary.update(dict(figures))
        self.run.finish(exit_code=code)


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI or at MLflow's own default."""

    def __init__(self, opening: Opening) -> None:
        self.mlflow, self.say, self.told = import_module("mlflow"), opening.say, False
        with _one_at_a_time(self.mlflow.get_tracking_uri()):
            self.client = self.mlflow.MlflowClient()  # makes the tables of a new database
        self.id: str | None = None
        try:
            self.id = self._open(opening)
        except self.mlflow.exceptions.MlflowException as error:
            known = f" (its run {opening.known} is named in tracking.json)" if opening.known else ""
            raise InputError(
                f"log.to=mlflow: MLflow at {address(self.mlflow.get_tracking_uri())}{known} says: "
                f"{first_line(error)}; set MLFLOW_TRACKING_URI to where the run is to be logged"
            ) from error

    def _open(self, opening: Opening) -> str:
        client, entities = self.client, self.mlflow.entities
        if opening.known is None:
            run = client.create_run(self._experiment(), run_name=name_of(opening))
        else:
            run = client.get_run(opening.known)
            client.update_run(opening.known, status="RUNNING")
        params = [  # those of the first start stay: MLflow lets none be changed
            entities.Param(key, str(value)[:MOST_CHARACTERS])
            for key, value in plain(opening.settings).items()
            if key not in run.data.params
        ]
        for first in range(0, len(params), MOST_PARAMS):
            client.log_batch(run.info.run_id, params=params[first : first + MOST_PARAMS])
        return run.info.run_id

    def _experiment(self) -> str:
        """Returns the id of the experiment; runs that begin together make it once."""
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vidtrain")
        there = self.client.get_experiment_by_name(name)
        if there is None:
            try:
                return self.client.create_experiment(name)
            except self.mlflow.exceptions.MlflowException:
                there = self.client.get_experiment_by_name(name)  # another was faster
                if there is None:
                    raise
        return there.experiment_id

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        """A training is not ended by a server that is away: that is said once."""
        try:
            yield
        except Exception as error:
            if not self.told:
                self.say(f"log.to=mlflow: some figures are lost: {first_line(error)}")
            self.told = True

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """See Sink; sent in the background."""
        now = int(time.time() * 1000)
        metrics = [
            self.mlflow.entities.Metric(name, value, now, step) for name, value in values.items()
        ]
        with self._going_on():
            self.client.log_batch(self.id, metrics=metrics, synchronous=False)

    def picture(self, name: str, image: np.ndarray, step: int, caption: str) -> None:
        """See Sink."""
        with self._going_on():
            self.client.log_image(self.id, image, key=name, step=step)
        if caption:
            self.text(name, caption, step)

    def text(self, name: str, text: str, step: int) -> None:
        """See Sink; the newest is kept."""
        with self._going_on():
            self.client.log_text(self.id, text, f"{name}.txt")

    def close(self, figures: Mapping[str, float], code: int) -> None:
        """See Sink."""
        with self._going_on():
            self.mlflow.flush_async_logging()
            for name, value in figures.items():
                self.client.log_metric(self.id, name, value)
            status = {0: "FINISHED", 75: "KILLED"}.get(code, "FAILED")
            self.client.set_terminated(self.id, status)


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Lets runs that begin together open a database file of MLflow one after the other.

    MLflow makes the tables of a new one without a lock, and the second to try fails.
    """
    path = os.path.abspath(uri.removeprefix(SQLITE).partition("?")[0])
    if not uri.startswith(SQLITE) or not os.access(os.path.dirname(path), os.W_OK):
        yield
        return
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def name_of(opening: Opening) -> str:
    """Returns the name of a run: that of its folder; in a sweep after the name of the sweep's."""
    folder, runs = opening.folder.resolve(), Path(opening.settings.get("runs", "runs")).resolve()
    return str(folder.relative_to(runs)) if runs in folder.parents else folder.name


def plain(settings: dict[str, Any]) -> dict[str, bool | int | float | str]:
    """Returns nested settings by dotted key; lists as text, and nothing for None."""
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in flat(settings).items()
        if value is not None
    }


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def address(uri: str) -> str:
    """Returns an address without the name and password that may stand in it."""
    scheme, found, rest = uri.partition("://")
    return f"{scheme}{found}{rest.rpartition('@')[2]}"
