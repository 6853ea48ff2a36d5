"""The weights that a network starts from: fetched, read, loaded, and told of."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from torch import nn

from vidtrain import distributed, runlog
from vidtrain.config_model import ModelConfig
from vidtrain.distributed import World
from vidtrain.errors import UsageError
from vidtrain.models.weights.fetching import FORMS, Published, fetch
from vidtrain.models.weights.loading import LoadReport, load_weights
from vidtrain.models.weights.reading import read_weights


@dataclass(frozen=True)
class Started:
    """What a network started from.

    Attributes:
        weights: The value of model.weights.
        sha256: Digest of the file.
        report: What of it the network took.
    """

    weights: str
    sha256: str
    report: LoadReport

    def record(self) -> dict[str, Any]:
        """Returns the facts for run.json."""
        return {
            "weights": self.weights,
            "sha256": self.sha256,
            **dataclasses.asdict(self.report),
        }


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
        Published(dataset=entry.dataset, url=entry.url, sha256=entry.sha256,
                  num_classes=entry.num_classes)
        for entry in config.published
    ]  # fmt: skip

    def get() -> Any:
        return fetch(weights, published=published, say=_say)

    distributed.together(get, world)
    found = get()
    state = read_weights(found.path)
    report = load_weights(network, state, origin=found.origin, keep_head=keep_head)
    return Started(weights=weights, sha256=found.sha256, report=report)


def _say(text: str) -> None:
    runlog.console.print(text, markup=False, highlight=False)
