"""A finished (or interrupted) run, opened again: the network, its labels, its validation split."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vidtrain import build, checkpoint
from vidtrain.config import RunConfig
from vidtrain.distributed import World
from vidtrain.errors import InputError


@dataclass(frozen=True)
class Finished:
    """What a later stage needs of a run.

    Attributes:
        folder: Run folder.
        checkpoint: File that the weights come from.
        step: Optimizer steps that the weights have had.
        model: The network in eval mode, on its device: the averaged weights if the run has them.
        class_names: Names by label, as the run was trained.
        record: Fingerprints of the splits that the run was trained with.
    """

    folder: Path
    checkpoint: Path
    step: int
    model: nn.Module
    class_names: tuple[str, ...]
    record: dict[str, Any]


def open_run(config: RunConfig, world: World) -> Finished:
    """Builds the run's network and loads the weights asked for.

    Raises:
        InputError: No such checkpoint, a damaged one, or one that does not fit the network.
    """
    folder = Path(config.run)
    named = config.checkpoint in ("best", "last")
    path = folder / "checkpoints" / f"{config.checkpoint}.pt" if named else Path(config.checkpoint)
    state = checkpoint.load(path, "cpu")
    names = tuple(state["class_names"])
    model = build.model(config.model, num_classes=len(names), seed=0)
    weights = state["average"] or state["model"]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(
            f"{path} does not fit model={config.model.name}: {str(error).splitlines()[1].strip()}; "
            "leave the run's model as it is"
        ) from error
    return Finished(
        folder=folder,
        checkpoint=path,
        step=state["step"],
        model=model.to(world.device).eval().requires_grad_(False),
        class_names=names,
        record=state["data"],
    )
