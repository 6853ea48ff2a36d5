"""What a training consists of: built once, in reading order."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vidtrain import build, build_data, distributed
from vidtrain.checkpoints.checkpoint import all_steps
from vidtrain.config.train import EvalConfig, TrainConfig
from vidtrain.data.augment import Augment
from vidtrain.data.eval_loading import EvalLoader
from vidtrain.data.loading import Plan, TrainClips
from vidtrain.data.preparing import prepared_record
from vidtrain.data.video import VideoList
from vidtrain.distributed import World
from vidtrain.errors import InputError, UsageError
from vidtrain.parallel.shards import is_sharded
from vidtrain.records import provenance
from vidtrain.running import teaching
from vidtrain.running.bad_videos import BadVideos
from vidtrain.running.nonfinite import NonFinite
from vidtrain.running.starting import Started, start_from
from vidtrain.targets import component
from vidtrain.training import batch_norm
from vidtrain.training.mixing import Mix
from vidtrain.training.precision import Precision
from vidtrain.training.timeline import Timeline, recurring


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        step: Optimizer steps taken.
        best: The best validations, {"step", "value", "figures"}, the best first.
        stale: Validations since the best one.
        owes_validation: Whether one is due after the present step that a signal broke off.
    """

    step: int = 0
    best: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    stale: int = 0
    owes_validation: bool = False

    def judge(self, value: float, figures: dict[str, Any], *, lower_is_better: bool,
              keep: int) -> bool:  # fmt: skip
        """Notes a validation at the present step.

        Args:
            value: The figure that "best" goes by.
            figures: All figures, for the record.
            lower_is_better: Whether a lower value is better.
            keep: Validations to remember.

        Returns:
            Whether it is among the best; of equal ones the earlier is better.
        """
        before = self.best[0]["step"] if self.best else None
        sign = 1.0 if lower_is_better else -1.0
        if not math.isfinite(value):
            value = sign * math.inf
        entry = {"step": self.step, "value": value, "figures": figures}
        ranked = sorted([*self.best, entry], key=lambda row: (sign * row["value"], row["step"]))
        self.best = ranked[:keep]
        improved = self.best[0]["step"] != before
        self.stale = 0 if improved else self.stale + 1
        return any(row["step"] == self.step for row in self.best)


@dataclass
class Parts:
    """The parts of a training.

    Attributes:
        clips: Training samples.
        val: Validation views of this process.
        plan: Arithmetic of batches.
        timeline: Steps and epochs of the whole training.
        task: What is optimised and measured.
        model: The plain network, on its device.
        network: The network as it is called: wrapped for DDP, or the same (sharded by FSDP).
        average: Averaged weights, or None.
        optimizer: Optimizer; each group has its `base_lr`, and its `lr_scale` in that.
        unclipped: Parameters that adaptive clipping leaves alone.
        schedule: Factor on the base learning rate, by step.
        precision: Arithmetic and loss scaler.
        augment: What happens to each clip on the device, or None.
        mix: Mixup and cutmix, or None.
        bad: Unreadable videos met so far.
        nonfinite: Steps left out because something was not finite.
        prepared: What `vidtrain prepare` did to the videos, or None.
        started: The weights that this start of the run took, or None.
        saving: Whether a checkpoint is due after so many steps.
        validating: The same for a validation.
        progress: How far it is.
    """

    clips: TrainClips
    val: EvalLoader
    plan: Plan
    timeline: Timeline
    task: Any
    model: nn.Module
    network: nn.Module
    average: Any
    optimizer: torch.optim.Optimizer
    unclipped: list[nn.Parameter]
    schedule: Callable[[int], float]
    precision: Precision
    augment: Augment | None
    mix: Mix | None
    bad: BadVideos
    nonfinite: NonFinite
    prepared: dict[str, Any] | None
    started: Started | None
    saving: Callable[[int], bool]
    validating: Callable[[int], bool]
    progress: Progress = dataclasses.field(default_factory=Progress)

    @property
    def sharded(self) -> bool:
        """Whether each process has a part of the weights only."""
        return is_sharded(self.model)

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
    """Builds everything: precision, data, task, model, optimizer, schedule, average.

    Raises:
        UsageError: Settings that are wrong or do not fit together.
        InputError: The data is not there or not readable.
    """
    build.check_loop(config)
    precision = Precision(config.precision.dtype, world.device, tf32=config.precision.tf32)
    train, held_out = lists(config, world)
    plan = build.plan(config, train, world_size=world.size)
    timeline = Timeline(plan.epoch_steps, plan.batch_size)
    saving = recurring(timeline, config.save.every, "save.every")
    validating = recurring(timeline, config.validate.every, "validate.every")
    augment = component(config.augment, "augment") if config.augment is not None else None
    mix = pairing(config, plan)
    task = build.task(config.task, train)
    build.check_metric(config.save.metric, task)
    model = build.model(config.model, num_classes=len(train.class_names), seed=config.seed)
    resuming = distributed.share(bool(all_steps(Path(config.run_dir) / "checkpoints")), world)
    started = None if resuming else start_from(config.model, model, world)
    model = batch_norm.synchronised(model, world) if config.train.sync_bn else model
    model = model.to(world.device)
    lr_scales = build.finetune(config.finetune, model)
    batch_norm.check_precise(model, config.train.precise_bn)
    if started is not None:
        refuse_frozen_noise(started.report.missing, model)
    average = None
    if config.average is not None:
        average = component(config.average, "average", model, timeline=timeline)
    for network in (model, *([average.module] if average is not None else [])):
        build.fast(config.model, network)
        build.sharded(config, network, world)
    optimizer = build.optimizer(config.optimizer, model, config.train, lr_scales=lr_scales)
    schedule = build.schedule(config.schedule, timeline)
    task = teaching.with_teacher(task, config, world, precision, train.class_names)
    share, prepared_in = config.data.max_bad_fraction, config.data.prepared
    val = build_data.eval_views(config, validation(config), held_out, world.device)
    return Parts(
        clips=build_data.train_clips(config, train, world.device),
        val=build_data.eval_loader(val, validation(config), rank=world.rank, world_size=world.size),
        plan=plan,
        timeline=timeline,
        task=task,
        model=model,
        network=model,
        average=average,
        optimizer=optimizer,
        unclipped=build.unclipped(config.train, model),
        schedule=schedule,
        precision=precision,
        augment=augment,
        mix=mix,
        bad=BadVideos(math.floor(share * len(train.videos)), share),
        nonfinite=NonFinite(config.train.skip_nonfinite),
        prepared=prepared_record(prepared_in) if prepared_in is not None else None,
        started=started,
        saving=saving,
        validating=validating,
    )


def last_step(parts: Parts, config: TrainConfig) -> int:
    """Returns the steps after which training ends if nothing ends it earlier."""
    return min(parts.plan.total_steps, config.train.max_steps or parts.plan.total_steps)


def validation(config: TrainConfig) -> EvalConfig:
    """Returns the views that are validated on while training."""
    few = {key: value for key in ("num_clips", "num_crops")
           if (value := getattr(config.validate, key)) is not None}  # fmt: skip
    return dataclasses.replace(config.eval, **few)


def pairing(config: TrainConfig, plan: Plan) -> Mix | None:
    """Returns how clips are mixed, or None.

    Raises:
        UsageError: A process has an odd number of videos, so that one has no partner.
    """
    mix = component(config.mix, "mix") if config.mix is not None else None
    if mix is not None and plan.micro_batch // plan.views_per_decode % 2:
        raise UsageError(
            f"mix pairs clips, but each of {plan.world_size} processes has {plan.micro_batch} clips"
            f" of {plan.micro_batch // plan.views_per_decode} videos per micro-batch; make it even "
            "with train.batch_size or train.accumulate, or use mix=none"
        )
    return mix


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


def lists(config: TrainConfig, world: World) -> tuple[VideoList, VideoList]:
    """Returns the videos of the training and the validation split.

    Raises:
        InputError: The data is not there, not readable, or of one class.
    """
    # Rank 0 first: a source may have to write its files.
    listed = distributed.together(partial(build_data.videos, config.data, "train"), world)
    names = listed.class_names
    held_out = distributed.together(
        partial(build_data.videos, config.data, "val", class_names=names), world
    )
    if len(names) < 2:
        raise InputError(
            f"data={config.data.name} has one class only ({', '.join(names)}) in "
            f"{config.data.root}; there is nothing to tell apart: is data.root one folder off?"
        )
    return listed, held_out
