"""The teacher of a distillation: a run, or a model with weights, made ready for a student."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from vidtrain import build
from vidtrain.checkpoints import checkpoint
from vidtrain.config.model import InputConfig, ModelConfig
from vidtrain.config.train import TrainConfig
from vidtrain.distributed import World
from vidtrain.errors import InputError, UsageError, did_you_mean
from vidtrain.records import runlog
from vidtrain.running import starting
from vidtrain.running.finished import checkpoint_folder, read_network
from vidtrain.tasks.distillation import Teacher, paths_of
from vidtrain.training.precision import Precision

GENERATED = "vidtrain.data.sources.generated.generated"
SEVERAL_CLASSES = "vidtrain.tasks.multilabel.Multilabel"
MOST_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Found:
    """A teacher as it was found.

    Attributes:
        model: Its config.
        network: The network on the CPU, its weights loaded.
        origin: Where the weights come from.
        class_names: Names of its classes; None: not known, as of published weights.
    """

    model: ModelConfig
    network: nn.Module
    origin: str
    class_names: tuple[str, ...] | None


def with_teacher(
    task: Any, config: TrainConfig, world: World, precision: Precision,
    class_names: tuple[str, ...],
) -> Any:  # fmt: skip
    """Returns a task with its teacher, if it takes one; others as they are.

    Args:
        task: What is optimised; a task with a method `with_teacher` needs a teacher.
        config: The training's settings: task.teacher, or teacher.
        world: This process among all; each loads the teacher.
        precision: Whose autocast the teacher computes under.
        class_names: Of the data, by label.

    Raises:
        UsageError: No teacher, two of them, or one that does not fit the data or the student.
        InputError: The teacher cannot be read.
    """
    if not hasattr(task, "with_teacher"):
        if config.teacher is not None:
            raise UsageError(
                f"teacher={config.teacher.name} is given, and this task has none; use "
                "task=distillation"
            )
        return task
    if (task.teacher is None) == (config.teacher is None):
        raise UsageError(
            "task=distillation needs one teacher: task.teacher=RUN_FOLDER, or model@teacher=NAME "
            "teacher.weights=published (or a file, an address, a run folder)"
        )
    if task.teacher is not None:
        found = _of_run(task.teacher)
    else:
        assert config.teacher is not None
        found = _of_weights(config.teacher, len(class_names), world)
    _check_features(task, config, found, world)
    order = order_of(found, class_names, named=config.data.source["_target_"] != GENERATED)
    student, own = config.model.input, found.model.input
    if own.num_frames > student.num_frames:
        raise UsageError(
            f"the teacher ({found.origin}) takes {own.num_frames} frames, the student's clips have "
            f"{student.num_frames}, and frames cannot be made up; raise model.input.num_frames, "
            "choose another teacher, or, if its network takes any length, name it with "
            f"model@teacher= teacher.weights= teacher.input.num_frames={student.num_frames}"
        )
    network = found.network.to(world.device).eval().requires_grad_(False)
    record = {
        "sha256": checkpoint.digest(network.state_dict()), "build": found.model.build,
        "input": [own.num_frames, own.crop_size, list(own.mean), list(own.std)],
    }  # fmt: skip
    # Without gradients nothing is kept that could be computed again.
    build.fast(dataclasses.replace(found.model, checkpointing=False), network)
    gain, offset = renormalising(student, own)
    if world.is_main:
        runlog.warn("\n".join(told(found, network, student)))
    return task.with_teacher(
        Teacher(
            network=network, autocast=precision.autocast, num_frames=own.num_frames,
            crop_size=own.crop_size, gain=gain, offset=offset, order=order, record=record,
        )
    )  # fmt: skip


def _of_run(text: str) -> Found:
    """A run's best checkpoint, its last one where nothing was validated yet, or one by its path."""
    path = Path(os.path.expanduser(text))
    if (path / checkpoint.MANIFEST).is_file():
        folder, chosen = path.parent.parent, path
    else:
        folder, chosen = path, checkpoint_folder(path, "best")
        if not chosen.exists():
            chosen = checkpoint_folder(path, "last")
    config = _recorded(folder, text)
    model = config["model"]
    target = (config.get("task") or {}).get("_target_")
    if target == SEVERAL_CLASSES:
        raise UsageError(
            f"task.teacher={text} gives a video several classes (task=multilabel), and "
            "task=distillation tells one; choose another teacher"
        )
    try:
        network, manifest = read_network(chosen, model)
    except InputError as error:
        raise type(error)(f"task.teacher={text}: {error}") from error
    return Found(model, network, str(chosen), tuple(manifest["class_names"]))


def _recorded(folder: Path, text: str) -> dict[str, Any]:
    """The config of a run, its model as a dataclass."""
    file = folder / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text("utf-8"))
        if not isinstance(config, dict) or "${" in yaml.safe_dump(config.get("model")):
            raise ValueError("it is not the config of a run")
        merged = OmegaConf.merge(OmegaConf.structured(ModelConfig), config["model"])
        return config | {"model": OmegaConf.to_object(merged)}
    except FileNotFoundError:
        there = sorted(str(found.parent) for found in Path("runs").glob("*/config.yaml"))
        hint = did_you_mean(text, there) or f"here are {', '.join(there) or 'no runs'}"
        raise InputError(
            f"task.teacher={text} is not a run folder: there is no {file}; {hint}"
        ) from None
    except (OSError, ValueError, KeyError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise InputError(f"task.teacher={text}: {file} cannot be read: {error}") from error


def _of_weights(model: ModelConfig, num_classes: int, world: World) -> Found:
    """A model with weights that fill it, the classifier too."""
    if model.weights is None:
        raise UsageError(
            f"teacher={model.name} has no weights and would teach noise; give teacher.weights="
            "published, a file, an address, or a run folder"
        )
    network = build.model(model, num_classes=num_classes, seed=0)
    try:
        started = starting.start_from(model, network, world, keep_head=True)
    except InputError as error:
        raise type(error)(f"teacher: {error}") from error
    assert started is not None
    own = starting.own_weights(model.weights)
    names = tuple(checkpoint.manifest_of(own.parent)["class_names"]) if own is not None else None
    return Found(model, network, started.report.origin, names)


def order_of(found: Found, class_names: tuple[str, ...], *, named: bool) -> tuple[int, ...] | None:
    """Returns the teacher's class for each of the data's, or None where they are the same.

    Args:
        found: The teacher.
        class_names: Of the data, by label.
        named: Whether these are the data's own; those of generated clips are numbers only.

    Raises:
        UsageError: They have not the same classes.
    """
    names = found.class_names
    if names is None or names == class_names or (not named and len(names) == len(class_names)):
        return None
    alone = {"the data alone has": sorted(set(class_names) - set(names)),
             "the teacher alone has": sorted(set(names) - set(class_names))}  # fmt: skip
    parts = []
    for who, missing in alone.items():
        if missing:
            more = f" and {len(missing) - MOST_NAMED} more" * (len(missing) > MOST_NAMED)
            parts.append(f"{who} {', '.join(missing[:MOST_NAMED])}{more}")
    if parts:
        raise UsageError(
            f"the teacher ({found.origin}) and the data have other classes: {'; '.join(parts)}; "
            "choose a teacher that was trained on this data"
        )
    return tuple(names.index(name) for name in class_names)


def renormalising(
    student: InputConfig, teacher: InputConfig
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns factor and summand by channel that make a student's clip a teacher's."""
    channels = list(zip(student.mean, student.std, teacher.mean, teacher.std, strict=True))
    gain = tuple(std / its_std for _, std, _, its_std in channels)
    offset = tuple((mean - its_mean) / its_std for mean, _, its_mean, its_std in channels)
    return gain, offset


def told(found: Found, network: nn.Module, student: InputConfig) -> list[str]:
    """Returns what is told of a teacher, as lines for a person."""
    own, size = found.model.input, sum(p.numel() for p in network.parameters()) / 1e6
    lines = [f"teacher: {found.model.name} from {found.origin}, {size:.2f} M parameters, frozen"]
    if (own.num_frames, own.crop_size) != (student.num_frames, student.crop_size):
        lines.append(
            f"  its clips are {own.num_frames} frames @ {own.crop_size}, made of the student's "
            f"{student.num_frames} @ {student.crop_size}: frames picked evenly, scaled bilinearly"
        )
    spans = [(clip.num_frames * clip.sampling_rate, clip.target_fps) for clip in (student, own)]
    if spans[0] != spans[1]:
        words = [f"{frames} frames" + (f" at {fps:g} fps" if fps else "") for frames, fps in spans]
        lines.append(f"  its own clips spanned {words[1]} of a video, the student's {words[0]}")
    if found.class_names is None:
        lines.append("  names of its classes are not known: they must be the data's, in its order")
    return lines


def _check_features(task: Any, config: TrainConfig, found: Found, world: World) -> None:
    """Refuses a loss of features that could not be computed, or would always be 0."""
    if not task.similarity:
        return
    micro = config.train.batch_size // (config.train.accumulate * world.size)
    if micro < 2:
        raise UsageError(
            f"task.similarity={task.similarity:g} compares the clips of a micro-batch, which has "
            f"{micro}; raise train.batch_size, lower train.accumulate, or set it to 0"
        )
    if config.model.compile or found.model.compile:
        raise UsageError(
            f"task.similarity={task.similarity:g} reads features inside the networks, which "
            "torch.compile hides; set compile=false of student and teacher, or similarity to 0"
        )
    paths_of(found.network, task.teacher_layer, "teacher")
