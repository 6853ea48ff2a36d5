"""What a training consists of: built once in reading order, saved and restored as one."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from vidtrain import build, checkpoint, distributed, provenance
from vidtrain.bad_videos import BadVideos
from vidtrain.config import TrainConfig
from vidtrain.data.augment import Augment
from vidtrain.data.eval_loading import EvalLoader
from vidtrain.data.loading import Plan, TrainClips
from vidtrain.data.preparing import prepared_record
from vidtrain.distributed import World
from vidtrain.errors import InputError, UsageError
from vidtrain.starting import Started, start_from
from vidtrain.targets import component, prepared
from vidtrain.training.averaging import average_of
from vidtrain.training.mixing import Mix
from vidtrain.training.precision import Precision

# Settings that may differ between the parts of a resumed run: they do not change the weights.
FREE_TO_CHANGE = (
    "name", "runs", "run_dir", "resume", "device", "num_threads", "data.root", "data.num_workers",
    "data.prefetch_batches", "data.timeout_seconds", "data.index", "data.max_bad_fraction",
    "data.prepared", "model.checkpointing", "model.published", "train.log_every_steps",
    "train.save_every_steps", "train.max_steps", "eval.",
)  # fmt: skip


@dataclass
class Parts:
    """The parts of a training.

    Attributes:
        clips: Training samples.
        val: Validation views of this process.
        plan: Arithmetic of batches.
        model: The plain network, on its device.
        network: The network as it is called: wrapped for DDP, or the same.
        average: Averaged weights, or None.
        optimizer: Optimizer; each group has its `base_lr`, and its `lr_scale` in that.
        schedule: Factor on the base learning rate, by step.
        precision: Arithmetic and loss scaler.
        augment: What happens to each clip on the device, or None.
        mix: Mixup and cutmix, or None.
        bad: Unreadable videos met so far.
        prepared: What `vidtrain prepare` did to the videos, or None.
        started: The weights that this start of the run took, or None.
        step: Optimizer steps taken.
        best: Best validation so far, {"top1": share, "step": step}; or empty.
    """

    clips: TrainClips
    val: EvalLoader
    plan: Plan
    model: nn.Module
    network: nn.Module
    average: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int], float]
    precision: Precision
    augment: Augment | None
    mix: Mix | None
    bad: BadVideos
    prepared: dict[str, Any] | None
    started: Started | None
    step: int = 0
    best: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, by label."""
        return self.clips.videos.class_names

    @cached_property
    def data_record(self) -> dict[str, Any]:
        """Fingerprints of both splits; computed once, since every checkpoint holds them."""
        return {
            "train": provenance.fingerprint(self.clips.videos),
            "val": provenance.fingerprint(self.val.views.videos),
            "prepared": self.prepared,
        }


def build_parts(config: TrainConfig, world: World) -> Parts:
    """Builds everything: precision, data, model, optimizer, schedule.

    Raises:
        UsageError: Settings that are wrong or do not fit together.
        InputError: The data is not there or not readable.
    """
    if config.seed < 0:
        raise UsageError(f"seed={config.seed} must be at least 0")
    precision = Precision(config.precision.dtype, world.device, tf32=config.precision.tf32)
    clips, val = build_data(config, world)
    num_videos, names = len(clips.videos.videos), clips.videos.class_names
    plan = build.plan(config.train, config.data, num_videos=num_videos, world_size=world.size)
    augment = component(config.augment, "augment") if config.augment is not None else None
    mix = component(config.mix, "mix") if config.mix is not None else None
    if mix is not None and plan.micro_batch // plan.views_per_decode % 2:
        raise UsageError(
            f"mix pairs clips, but each of {world.size} processes has {plan.micro_batch} clips of "
            f"{plan.micro_batch // plan.views_per_decode} videos per micro-batch; make it even "
            "with train.batch_size or train.accumulate, or use mix=none"
        )
    model = build.model(config.model, num_classes=len(names), seed=config.seed)
    resuming = distributed.share(last_checkpoint(Path(config.run_dir)).exists(), world)
    started = None if resuming else start_from(config.model, model, world)
    model = model.to(world.device)
    lr_scales = build.finetune(config.finetune, model)
    if started is not None:
        refuse_frozen_noise(started.report.missing, model)
    optimizer = build.optimizer(config.optimizer, model, config.train, lr_scales=lr_scales)
    schedule = prepared(
        config.schedule, "schedule", 0,
        total_steps=plan.total_steps, steps_per_epoch=plan.steps_per_epoch,
    )  # fmt: skip
    schedule(0)  # a schedule that does not fit says so now
    decay = config.train.ema_decay
    average = average_of(model, decay) if decay is not None else None
    for network in (model, *([average.module] if average is not None else [])):
        build.fast(config.model, network)
    share, prepared_in = config.data.max_bad_fraction, config.data.prepared
    return Parts(
        clips=clips,
        val=val,
        plan=plan,
        model=model,
        network=model,
        average=average,
        optimizer=optimizer,
        schedule=schedule,
        precision=precision,
        augment=augment,
        mix=mix,
        bad=BadVideos(math.floor(share * num_videos), share),
        prepared=prepared_record(prepared_in) if prepared_in is not None else None,
        started=started,
    )


def refuse_frozen_noise(missing: Sequence[str], model: nn.Module) -> None:
    """Refuses to freeze what the weights did not fill: it would stay random for ever.

    Args:
        missing: Tensors of the network that were not in the weights.
        model: The network, frozen in part.

    Raises:
        UsageError: A parameter is missing and frozen.
    """
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    noise = [name for name in missing if not trained.get(name, True)]
    if noise:
        raise UsageError(
            f"finetune freezes {len(noise)} parameters that model.weights does not hold, such as "
            f"{noise[0]}: they would stay random; raise finetune.train_layers until they are "
            "trained"
        )


def build_data(config: TrainConfig, world: World) -> tuple[TrainClips, EvalLoader]:
    """Builds the training samples and this process's validation views.

    Raises:
        UsageError: Settings that are wrong or do not fit together.
        InputError: The data is not there, not readable, or of one class.
    """
    # Rank 0 first: a source may have to write its files.
    listed = distributed.together(lambda: build.videos(config.data, "train"), world)
    names = listed.class_names
    held_out = distributed.together(
        lambda: build.videos(config.data, "val", class_names=names), world
    )
    if len(names) < 2:
        raise InputError(
            f"data={config.data.name} has one class only ({', '.join(names)}) in "
            f"{config.data.root}; there is nothing to tell apart: is data.root one folder off?"
        )
    views = build.eval_views(config, config.eval, held_out, world.device)
    return (
        build.train_clips(config, listed, world.device),
        build.eval_loader(views, config.eval, rank=world.rank, world_size=world.size),
    )


def last_checkpoint(folder: Path) -> Path:
    """Returns the file that a run folder is resumed from."""
    return folder / "checkpoints" / "last.pt"


def save(parts: Parts, config: TrainConfig, folder: Path) -> None:
    """Writes checkpoints/last.pt, and best.pt if this step's validation was the best so far.

    Raises:
        InputError: It cannot be written; earlier checkpoints are intact.
    """
    last = last_checkpoint(folder)
    state = {
        "model": parts.model.state_dict(),
        "average": None if parts.average is None else parts.average.module.state_dict(),
        "optimizer": parts.optimizer.state_dict(),
        "scaler": parts.precision.scaler.state_dict(),
        "step": parts.step,
        "best": parts.best,
        "bad_videos": parts.bad.found,
        "class_names": list(parts.class_names),
        "config": dataclasses.asdict(config),
        "data": parts.data_record,
    }
    checkpoint.save(last, state)
    if parts.best.get("step") == parts.step:
        checkpoint.duplicate(last, last.with_name("best.pt"))


def restore(parts: Parts, config: TrainConfig, folder: Path, world: World) -> None:
    """Takes the run folder's last checkpoint up, if there is one.

    Raises:
        UsageError: The config or the data has changed, or resume=false met a checkpoint.
        InputError: The checkpoint is damaged.
    """
    last = last_checkpoint(folder)
    there = last.exists()
    if there != distributed.share(there, world):
        raise InputError(
            f"rank 0 {'lacks' if there else 'has'} {last}, this process does not agree; all nodes "
            "must share the folder of runs (runs=)"
        )
    if not there:
        return
    if not config.resume:
        raise UsageError(
            f"resume=false, but {last} exists; give a new name with name=, or remove the folder"
        )
    state = checkpoint.load(last, world.device)
    changed = checkpoint.config_differences(
        state["config"], dataclasses.asdict(config), ignore=FREE_TO_CHANGE
    )
    for part, now in parts.data_record.items():
        was = state["data"].get(part)
        if was != now and part == "prepared":
            changed.append("what data.prepared holds, or whether it is used")
        elif was != now:
            counts = f"{was['videos']} -> {now['videos']} videos" if was else "unknown before"
            changed.append(f"the list of {part} videos ({counts})")
    if state["class_names"] != list(parts.class_names):
        changed.append(f"class names: {state['class_names']} -> {list(parts.class_names)}")
    if changed:
        raise UsageError(
            f"{folder} was trained with other settings ({'; '.join(changed)}); undo the change to "
            "go on with that run, or start a new one with name="
        )
    parts.model.load_state_dict(state["model"])
    if parts.average is not None:
        parts.average.module.load_state_dict(state["average"])
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.precision.scaler.load_state_dict(state["scaler"])
    parts.step, parts.best = state["step"], state["best"]
    parts.bad.found = dict(state["bad_videos"])
    if (
        world.is_main and parts.best.get("step") == parts.step
    ):  # a kill may have come between the two
        checkpoint.duplicate(last, last.with_name("best.pt"))
