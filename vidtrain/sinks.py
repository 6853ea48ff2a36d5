"""Where figures, pictures and texts go besides the run folder: TensorBoard, W&B, MLflow.

Each is opened by process 0 alone. The two services keep the id of their run in the run folder, so
that a resumed training goes on in the same one.
"""

import html
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from vidtrain.checkpoint import flat
from vidtrain.config_train import LogConfig
from vidtrain.errors import InputError, UsageError, did_you_mean

# Settings that are compared between runs; the others say where things are, or how fast.
COMPARED = (
    "seed", "data.name", "data.class_balance", "data.views_per_decode", "model.name",
    "model.weights", "model.input.", "clip_sampler.train.", "finetune.", "task.", "teacher.name",
    "multigrid.", "augment.", "mix.", "optimizer.", "schedule.", "average.", "precision.",
    "train.epochs", "train.batch_size", "train.clip_grad", "train.no_decay",
    "train.precise_bn", "train.sync_bn", "train.patience",
)  # fmt: skip
MOST_PARAMS = 100  # of one request to MLflow
MOST_CHARACTERS = 500  # of a parameter, what every MLflow server takes


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


class Sink(Protocol):
    """A place to log to; `id` names the run there, None where it needs no name."""

    id: str | None

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """Adds a number to each named curve."""

    def picture(self, name: str, image: np.ndarray, step: int, caption: str) -> None:
        """Adds an (H, W, 3) uint8 picture."""

    def text(self, name: str, text: str, step: int) -> None:
        """Adds a text, as it stands."""

    def close(self, figures: Mapping[str, float], code: int) -> None:
        """Adds the figures that the run is judged by, and its exit code; ends it."""


class TensorBoard:
    """Event files in tensorboard/; what came after the step resumed from is hidden."""

    def __init__(self, opening: Opening) -> None:
        self.id: str | None = None
        self.settings, self.step = opening.settings, opening.start_step
        self.board = SummaryWriter(
            opening.folder / "tensorboard", purge_step=opening.start_step + 1
        )

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        """See Sink."""
        self.step = step
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def picture(self, name: str, image: np.ndarray, step: int, caption: str) -> None:
        """See Sink."""
        self.board.add_image(name, image, step, dataformats="HWC")
        if caption:
            self.text(name, caption, step)

    def text(self, name: str, text: str, step: int) -> None:
        """See Sink."""
        self.board.add_text(name, f"```\n{text}\n```", step)

    def close(self, figures: Mapping[str, float], code: int) -> None:
        """See Sink; the settings are written now, since they belong to these figures."""
        if figures:  # the same run as the curves, which SummaryWriter.add_hparams would not give
            for part in hparams(compared(self.settings), dict(figures)):
                self.board._get_file_writer().add_summary(part)
            self.numbers(figures, self.step)
        self.board.close()


class WeightsAndBiases:
    """A run of Weights & Biases, with its files in wandb/; WANDB_MODE=offline sends nothing."""

    def __init__(self, opening: Opening) -> None:
        wandb = import_module("wandb")
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "vidtrain"), dir=opening.folder,
                name=opening.folder.resolve().name, id=opening.known, resume="allow",
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
        self.client = self.mlflow.MlflowClient()
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
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "vidtrain")
            there = client.get_experiment_by_name(name)
            group = there.experiment_id if there else client.create_experiment(name)
            run = client.create_run(group, run_name=opening.folder.resolve().name)
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


PLACES: dict[str, type] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
EXTRAS: tuple[str, ...] = ("wandb", "mlflow")


def check(config: LogConfig) -> None:
    """Refuses places that are not known or not installed.

    Raises:
        UsageError: A name or a number is wrong, or a package is missing.
    """
    for name in config.to:
        if name not in PLACES:
            hint = did_you_mean(name, PLACES) or f"it is one of {', '.join(PLACES)}"
            raise UsageError(f"log.to={name} is not a place to log to; {hint}")
        if name in EXTRAS and find_spec(name) is None:
            raise UsageError(
                f"log.to={name} needs the package {name}, which is not installed: "
                f"pip install 'vidtrain[{name}]'"
            )
    if config.worst < 0:
        raise UsageError(f"log.worst={config.worst} must be 0 or more")


def plain(settings: dict[str, Any]) -> dict[str, bool | int | float | str]:
    """Returns nested settings by dotted key; lists as text, and nothing for None."""
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in flat(settings).items()
        if value is not None
    }


def compared(settings: dict[str, Any]) -> dict[str, bool | int | float | str]:
    """Returns those settings by dotted key that decide what is learned."""
    return {key: value for key, value in plain(settings).items() if key.startswith(COMPARED)}


def first_line(error: BaseException) -> str:
    """Returns the first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def address(uri: str) -> str:
    """Returns an address without the name and password that may stand in it."""
    scheme, found, rest = uri.partition("://")
    return f"{scheme}{found}{rest.rpartition('@')[2]}"
