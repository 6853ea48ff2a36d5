"""A finished (or interrupted) run, opened again: the network, its labels, its validation split."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vidtrain import build, build_data, distributed
from vidtrain.checkpoints import checkpoint
from vidtrain.config import ExportConfig, RunConfig
from vidtrain.config.model import ModelConfig
from vidtrain.distributed import World
from vidtrain.errors import InputError, UsageError
from vidtrain.records import runlog
from vidtrain.running.starting import Started, start_from


@dataclass(frozen=True)
class Finished:
    """What a later stage needs of a run.

    Attributes:
        folder: Run folder.
        checkpoint: Checkpoint that the weights come from, or their address.
        step: Optimizer steps that the weights have had.
        model: The network in eval mode, on its device: the averaged weights if the run has them.
        class_names: Names by label, as the run was trained.
        started: Weights that were taken as they are, without a run.
    """

    folder: Path
    checkpoint: str
    step: int
    model: nn.Module
    class_names: tuple[str, ...]
    started: Started | None = None


def open_run(config: RunConfig, world: World) -> Finished:
    """Builds the network and loads the weights asked for: a run's, or model.weights.

    Raises:
        InputError: No such checkpoint, a damaged one, or one that does not fit the network.
    """
    found = _from_weights(config, world) if config.checkpoint == "weights" else _from_run(config)
    found.model.to(world.device).eval().requires_grad_(False)
    if not isinstance(config, ExportConfig):  # a file is written from the plain network
        build.fast(config.model, found.model)
    return found


def checkpoint_folder(run: Path, name: str) -> Path:
    """Returns the folder of a checkpoint: best, last, or a path."""
    if name not in ("best", "last"):
        return Path(name)
    return run / "checkpoints" / name


def read_network(path: Path, config: ModelConfig) -> tuple[nn.Module, dict[str, Any]]:
    """Builds the network of a checkpoint, on the CPU, with its averaged weights if it has them.

    Args:
        path: The checkpoint's folder.
        config: The model.

    Returns:
        The network, and the checkpoint's manifest.

    Raises:
        InputError: No such checkpoint, a damaged one, or one that does not fit the network.
    """
    manifest = checkpoint.verify(path)
    model = build.model(config, num_classes=len(manifest["class_names"]), seed=0)
    try:
        model.load_state_dict(checkpoint.weights(path, averaged=True))
    except RuntimeError as error:
        raise InputError(
            f"{path} does not fit model={config.name}: {str(error).splitlines()[1].strip()}; "
            "leave the run's model as it is"
        ) from error
    return model, manifest


def _from_run(config: RunConfig) -> Finished:
    folder = Path(config.run)
    path = checkpoint_folder(folder, config.checkpoint)
    model, manifest = read_network(path, config.model)
    return Finished(
        folder=folder, checkpoint=str(path), step=manifest["step"], model=model,
        class_names=tuple(manifest["class_names"]),
    )  # fmt: skip


def _from_weights(config: RunConfig, world: World) -> Finished:
    """Published weights as they are, for the classes of the data set they were trained on."""
    names = distributed.together(lambda: build_data.videos(config.data, "val"), world).class_names
    model = build.model(config.model, num_classes=len(names), seed=0)
    started = start_from(config.model, model, world, keep_head=True)
    if started is None:
        raise UsageError("checkpoint=weights needs model.weights=published, a file, or an address")
    if world.is_main:
        runlog.console.print("\n".join(started.lines()), markup=False, highlight=False)
    return Finished(
        folder=Path(config.run), checkpoint=started.report.origin, step=0, model=model,
        class_names=names, started=started,
    )  # fmt: skip
