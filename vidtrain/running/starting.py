"""The weights that a network starts from: fetched, read, loaded, and told of."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn

from vidtrain import distributed
from vidtrain.checkpoints.checkpoint import AVERAGE, MANIFEST, MODEL
from vidtrain.config.model import ModelConfig
from vidtrain.distributed import World
from vidtrain.errors import InputError, UsageError
from vidtrain.models.weights.fetching import FORMS, Fetched, Published, fetch
from vidtrain.models.weights.loading import LoadReport, load_weights
from vidtrain.models.weights.reading import read_weights
from vidtrain.records import runlog


@dataclass(frozen=True)
class Started:
    """What a network started from.

    Attributes:
        sha256: Digest of the file.
        report: What of it the network took.
        note: What has to be set for the published figure to come out, or None.
    """

    sha256: str
    report: LoadReport
    note: str | None

    def lines(self) -> list[str]:
        """Returns what is told of it, as lines for a person."""
        return [*self.report.lines(), *([f"  note: {self.note}"] if self.note else [])]

    def record(self) -> dict[str, Any]:
        """Returns the facts for run.json."""
        return {"sha256": self.sha256, **dataclasses.asdict(self.report)}


def start_from(
    config: ModelConfig, network: nn.Module, world: World, *, keep_head: bool = False
) -> Started | None:
    """Loads model.weights into a network, in place, on every process.

    Args:
        config: The model; without `weights` nothing is done.
        network: The network, on the CPU.
        world: Rank 0 fetches first, so that processes of one machine find its file.
        keep_head: The classes of the weights are wanted too, as in evaluation.

    Raises:
        UsageError: No such published weights, or a value that is none of the forms.
        InputError: The file cannot be had, is damaged or hostile, or is of another network.
    """
    if config.weights is None:
        return None
    weights = config.weights
    if not weights.strip():
        raise UsageError(f"model.weights is empty; give {FORMS}, or null")
    published = [
        Published(dataset=entry.dataset, url=entry.url, sha256=entry.sha256)
        for entry in config.published
    ]

    path = own_weights(weights)

    def get() -> Fetched:
        return fetch(
            str(path or weights), published=published, say=_say if world.is_main else _nothing
        )

    first = distributed.together(get, world)
    found = first if world.is_main else get()
    state = read_weights(found.path)
    _check_builder(found, str(config.build["_target_"]))
    report = load_weights(network, state, origin=found.origin, keep_head=keep_head)
    note = next((entry.note for entry in config.published if entry.url == found.origin), None)
    return Started(sha256=found.sha256, report=report, note=note)


def own_weights(text: str) -> Path | None:
    """Returns the file of weights in a run folder or a checkpoint's folder, or None for others."""
    for folder in (Path(text), Path(text) / "checkpoints" / "best"):
        if (folder / MANIFEST).is_file():
            averaged = folder / AVERAGE
            return averaged if averaged.is_file() else folder / MODEL
    return None


def _check_builder(found: Fetched, target: str) -> None:
    """Refuses a checkpoint of ours from another builder, where names alone would not tell.

    TSN and TSM, for one, have the same tensors and compute something else with them.
    """
    try:
        with safe_open(found.path, "pt") as file:
            made_by = json.loads(file.metadata()["vidtrain"])["_target_"]
    except Exception:  # a file of somebody else, which has been read by its own means
        return
    if made_by != target:
        raise InputError(
            f"{found.origin} was trained with {made_by}, and this model is built by {target}; "
            "choose the model that it was made with"
        )


def _nothing(text: str) -> None:
    """Says nothing: rank 0 has said it."""


def _say(text: str) -> None:
    runlog.console.print(text, markup=False, highlight=False)
