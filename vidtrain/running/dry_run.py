"""`train.dry_run=true`: everything built, steps taken; no data needed, no run folder written."""

import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from vidtrain import build, distributed, sizes
from vidtrain.checkpoints.checkpoint_writing import size_of
from vidtrain.checkpoints.saving import Saver
from vidtrain.command import composing
from vidtrain.config.train import TrainConfig
from vidtrain.data.augment import to_input
from vidtrain.data.generated import noise
from vidtrain.data.multigrid import Shape
from vidtrain.data.plan import Plan
from vidtrain.distributed import World
from vidtrain.models import counting, memory
from vidtrain.parallel.shards import whole
from vidtrain.records import runlog
from vidtrain.report.terminal import counted, doing, duration
from vidtrain.running import batch_finder, strict
from vidtrain.running.parts import Parts, build_parts, last_step, validation
from vidtrain.running.resuming import save
from vidtrain.running.sharded_saving import weights_of
from vidtrain.running.trials import counts, step_on_noise, without_data
from vidtrain.training.host_memory import peak_rss, rss
from vidtrain.training.timeline import occasions

GIB = 2**30


def dry_run(config: TrainConfig) -> None:
    """Builds everything, trains and evaluates on generated clips, and says what it takes.

    Weights are fetched and loaded, a checkpoint is written to a temporary folder. Classes and
    numbers of videos are those of the data, or of data.published where it is not there.

    Raises:
        UsageError: Settings that do not fit together.
        InputError: Neither the data nor data.published is there, or weights cannot be loaded.
    """
    with (
        strict.mode(config),
        distributed.session(config.device, num_threads=config.num_threads) as world,
    ):
        if world.is_main:
            composing.leave_no_empty_folder(DictConfig({"run_dir": config.run_dir}))
        config = batch_finder.settled(config, world)
        if config.profile:
            runlog.warn("profile=true: nothing is recorded in a dry run")
        with doing("dry run: building data, model and optimizer", main=world.is_main):
            tried = built(config, world)
        config, parts = tried.config, tried.parts
        found: dict[str, Any] = dict(zip(("classes", "videos", "held_out"), tried.counted,
                                         strict=True))  # fmt: skip
        with doing("dry run: warming up, and timing training steps", main=world.is_main):
            found["steps"] = steps(parts, config, world)
        with doing("dry run: timing an evaluation", main=world.is_main):
            found["evaluation"] = evaluation(parts, config, world)
        with doing("dry run: writing a checkpoint", main=world.is_main):
            found["checkpoint"] = checkpoint_size(parts, config, world)
        with doing("dry run: counting operations and memory", main=world.is_main):
            found["gmacs"] = gmacs(config, tried.counted[0]) if world.is_main else None
            peaks = distributed.gather(tried.peak(world), world)
            found["peak"] = max(distributed.share(peaks, world))
        if world.is_main:
            for line in told(parts, config, world, found):
                runlog.warn(line)


@dataclass(frozen=True)
class Tried:
    """A training that needs no data, as it was built to be tried.

    Attributes:
        config: Its settings.
        counted: Classes, training and validation videos.
        before: Resident bytes of the process before it was built.
        parts: What it consists of.
    """

    config: TrainConfig
    counted: tuple[int, int, int]
    before: int
    parts: Parts

    def peak(self, world: World) -> int:
        """Returns the most bytes it took: allocated on the GPU, or by which the process grew."""
        if world.device.type == "cuda":
            return int(torch.cuda.max_memory_allocated())
        return max(0, peak_rss() - self.before)


def built(config: TrainConfig, world: World) -> Tried:
    """Builds a training on generated clips, in the order in which `train` builds its own.

    Args:
        config: The training, with a number for train.accumulate (see `batch_finder.settled`).
        world: This process among all.

    Raises:
        UsageError: Settings that do not fit together.
        InputError: Neither the data nor data.published is there, or weights cannot be loaded.
    """
    counted_data = counts(config, world)
    config = without_data(config, counted_data)
    before = rss()
    parts = build_parts(config, world)
    strict.refuse(config, parts, world)
    parts.network = build.replicated(config, parts.model, world)
    return Tried(config, counted_data, before, parts)


def steps(parts: Parts, config: TrainConfig, world: World) -> dict[Shape | None, float]:
    """Returns the seconds of a step at each shape that clips have; None is the model's own."""
    seconds: dict[Shape | None, float] = {}
    first, _ = occurrences(parts.plan, parts.plan.total_steps)
    parts.model.train()
    for shape, step in first.items():
        for _ in range(2):  # the first one warms up: kernels are made, the optimizer's state too
            began = time.perf_counter()
            step_on_noise(parts, config, world, step)
            seconds[shape] = time.perf_counter() - began
    return seconds


def occurrences(
    plan: Plan, last: int
) -> tuple[dict[Shape | None, int], Counter[Shape | None]]:  # fmt: skip
    """Returns the first step of each shape, and how many steps have it, in their order.

    Args:
        plan: All batches.
        last: Steps of the training.
    """
    cycles = plan.shapes.epochs(plan.epochs) if plan.shapes else [(None,)] * plan.epochs
    first, number, start = dict[Shape | None, int](), Counter[Shape | None](), 0
    for cycle, length in zip(cycles, plan.epoch_steps, strict=True):
        there = min(length, last - start)
        for place, shape in enumerate(cycle[: max(there, 0)]):
            first.setdefault(shape, start + place)
            number[shape] += len(range(place, there, len(cycle)))
        start += length
    return first, number


def evaluation(parts: Parts, config: TrainConfig, world: World) -> float:
    """Returns the seconds of one forward pass over a batch of evaluation views."""
    inputs, views = config.model.input, config.eval.batch_size
    size = inputs.eval_crop_size
    clips = noise((views, inputs.num_frames, size, size, 3), seed=config.seed).to(world.device)
    parts.model.eval()
    with (
        whole(parts.model, reshard=config.parallel.reshard),
        torch.inference_mode(),
        parts.precision.autocast(),
    ):
        for _ in range(2):
            began = time.perf_counter()
            parts.model(to_input(clips, mean=inputs.mean, std=inputs.std)).float().cpu()
            seconds = time.perf_counter() - began
    parts.model.train()
    return seconds


def checkpoint_size(parts: Parts, config: TrainConfig, world: World) -> int:
    """Returns the bytes of a checkpoint, written for this and removed.

    Weights that processes share are counted only: a temporary folder is no place that all see.
    """
    if parts.sharded:
        return size_of([weights_of(parts), parts.optimizer.state_dict()["state"]])
    if not world.is_main:
        return 0
    with (
        tempfile.TemporaryDirectory(prefix="vidtrain-") as folder,
        closing(Saver(Path(folder), 1, background=False)) as saver,
    ):
        save(parts, config, saver, world)
        return sum(path.stat().st_size for path in Path(folder).rglob("*")
                   if path.is_file() and not path.parent.is_symlink())  # fmt: skip


def gmacs(config: TrainConfig, num_classes: int) -> float | None:
    """Returns the billions of multiply-adds of one training clip; None: they cannot be counted."""
    inputs = config.model.input
    clip = {"num_frames": inputs.num_frames, "crop_size": inputs.crop_size}

    def count() -> counting.Size:
        network = build.model(config.model, num_classes=num_classes, seed=config.seed)
        return counting.count(network, **clip)

    try:
        return sizes.remembered(
            config.model.build, clip | {"num_classes": num_classes}, count
        ).gmacs
    except Exception:  # a user's network may do what has no meaning without values
        return None


def told(parts: Parts, config: TrainConfig, world: World, found: dict[str, Any]) -> list[str]:
    """Returns what was found as lines for a person."""
    model, plan, inputs = parts.model, parts.plan, config.model.input
    sums = [sum(p.numel() for p in model.parameters() if p.requires_grad or every) / 1e6
            for every in (True, False)]  # fmt: skip
    cost = "" if found["gmacs"] is None else f", {found['gmacs']:.4g} GFLOPs a clip"
    full = list(found["steps"].values())[-1]
    many = "" if plan.accumulate * world.size == 1 else "es"
    micro = (f"{plan.accumulate} x {world.size} micro-batch{many} of "
             f"{counted(plan.micro_batch, 'clip')}")  # fmt: skip
    kind = "allocated on the GPU" if world.device.type == "cuda" else "of growth"
    lines = [
        f"dry run of {config.model.name}: {sums[0]:.2f} M parameters, {sums[1]:.2f} M trained"
        f"{cost}; {inputs.num_frames} frames x {inputs.sampling_rate} @ {inputs.crop_size}, "
        f"{world.size} x {world.device}, {config.precision.dtype}",
        f"data={config.data.name}: {found['videos']} training and {found['held_out']} validation "
        f"videos, {found['classes']} classes; clips are generated",
        f"training step of {counted(plan.batch_size, 'clip')} ({micro}): {full:.3g} s, "
        f"{plan.batch_size / full:.3g} clips/s; peak memory {found['peak'] / GIB:.2f} GiB {kind}",
        f"evaluation of {counted(config.eval.batch_size, 'view')}: {found['evaluation']:.3g} s; "
        f"checkpoint {found['checkpoint'] / 1e6:.1f} MB",
        *([memory.graph_breaks()] if config.model.compile else []),
    ]
    training, validating = times(parts, config, world, found)
    total, of = last_step(parts, config), counted(config.train.epochs, "epoch")
    if total < plan.total_steps:
        of = f"train.max_steps, of {plan.total_steps} in {of}"
    return [*lines, (
        f"the whole training on this machine: {duration(training)} for {counted(total, 'step')} "
        f"({of}), {duration(validating)} of validation, "
        "reading not counted"
    )]  # fmt: skip


def times(
    parts: Parts, config: TrainConfig, world: World, found: dict[str, Any]
) -> tuple[float, float]:
    """Returns the seconds that training steps and validations would take here."""
    total = last_step(parts, config)
    _, counts_of = occurrences(parts.plan, total)
    training = sum(found["steps"][shape] * count for shape, count in counts_of.items())
    due = occasions(parts.timeline, config.validate.every, "validate.every")
    validations = sum(0 < step < total for step in due) + 1
    few = validation(config)
    views = few.num_clips * few.num_crops
    passes = 1 + (parts.average is not None)
    batches = found["held_out"] * views * passes / (config.eval.batch_size * world.size)
    return training, validations * batches * found["evaluation"]
