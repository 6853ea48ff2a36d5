"""Where figures, pictures and texts go besides the run folder: TensorBoard, W&B, MLflow.

Each is opened by process 0 alone. The two services keep the id of their run in the run folder, so
that a resumed training goes on in the same one.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from vidtrain.config.train import LogConfig
from vidtrain.errors import UsageError, did_you_mean
from vidtrain.records.services import MLflow, Opening, WeightsAndBiases, plain

# Settings that are compared between runs; the others say where things are, or how fast.
COMPARED = (
    "seed", "data.name", "data.class_balance", "data.views_per_decode", "model.name",
    "model.weights", "model.input.", "clip_sampler.train.", "finetune.", "task.", "teacher.name",
    "multigrid.", "augment.", "mix.", "optimizer.", "schedule.", "average.", "precision.",
    "train.epochs", "train.batch_size", "train.clip_grad", "train.no_decay",
    "train.precise_bn", "train.sync_bn", "train.patience",
)  # fmt: skip


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
        # The settings of a run that is killed are known too; which figures there are is said at
        # the end, since TensorBoard takes the first word on that.
        _, settings, _ = hparams(compared(self.settings), {})
        self.board._get_file_writer().add_summary(settings)
        self.board.flush()

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
        """See Sink; the figures stand beside the settings."""
        if figures:  # the same run as the curves, which SummaryWriter.add_hparams would not give
            names, _, end = hparams(compared(self.settings), dict(figures))
            for part in (names, end):
                self.board._get_file_writer().add_summary(part)
            self.numbers(figures, self.step)
        self.board.close()


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
        if name in EXTRAS and not installed(name):
            raise UsageError(
                f"log.to={name} needs the package {name}, which is not installed: "
                f"pip install 'vidtrain[{name}]'"
            )
    if config.worst < 0:
        raise UsageError(f"log.worst={config.worst} must be 0 or more")


def installed(name: str) -> bool:
    """Returns whether a package is there; a plain folder of its name, such as wandb/, is none."""
    found = find_spec(name)
    return found is not None and found.origin is not None


def compared(settings: dict[str, Any]) -> dict[str, bool | int | float | str]:
    """Returns those settings by dotted key that decide what is learned."""
    return {key: value for key, value in plain(settings).items() if key.startswith(COMPARED)}
