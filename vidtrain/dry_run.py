"""`train.dry_run=true`: everything built, steps taken; no data needed, no run folder written."""

import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from vidtrain import batch_finder, build, composing, distributed, runlog, sizes, strict
from vidtrain.config_train import TrainConfig
from vidtrain.data.augment import to_input
from vidtrain.data.generated import noise
from vidtrain.data.multigrid import Shape
from vidtrain.distributed import World
from vidtrain.models import counting, memory
from vidtrain.parts import Parts, build_parts, last_step, validation
from vidtrain.resuming import save
from vidtrain.saving import Saver
from vidtrain.training.host_memory import peak_rss, rss
from vidtrain.training.timeline import occasions
from vidtrain.trials import counts, step_on_noise, without_data

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
        counted = counts(config, world)
        config = without_data(config, counted)
        before = rss()
        parts = build_parts(config, world)
        strict.refuse(config, parts, world)
        parts.network = build.replicated(config, parts.model, world)
        found = {
            "classes": counted[0], "videos": counted[1], "held_out": counted[2],
            "steps": steps(parts, config, world),
            "evaluation": evaluation(parts, config, world),
            "checkpoint": checkpoint_size(parts, config, world),
            "gmacs": gmacs(config, counted[0]),
        }  # fmt: skip
        cuda = world.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() if cuda else peak_rss() - before
        found["peak"] = max(distributed.share(distributed.gather(peak, world), world))
        if world.is_main:
            for line in told(parts, config, world, found):
                runlog.warn(line)


def steps(parts: Parts, config: TrainConfig, world: World) -> dict[Shape | None, float]:
    """Returns the seconds of a step at each shape that clips have; None is the model's own."""
    seconds: dict[Shape | None, float] = {}
    first: dict[Shape | None, int] = {}
    for step in range(parts.plan.total_steps if parts.plan.all_shapes else 1):
        first.setdefault(parts.plan.shape(step), step)
    parts.model.train()
    for shape, step in first.items():
        for _ in range(2):  # the first one warms up: kernels are made, the optimizer's state too
            began = time.perf_counter()
            step_on_noise(parts, config, world, step)
            seconds[shape] = time.perf_counter() - began
    return seconds


def evaluation(parts: Parts, config: TrainConfig, world: World) -> float:
    """Returns the seconds of one forward pass over a batch of evaluation views."""
    inputs, views = config.model.input, config.eval.batch_size
    size = inputs.eval_crop_size
    clips = noise((views, inputs.num_frames, size, size, 3), seed=config.seed).to(world.device)
    parts.model.eval()
    with torch.inference_mode(), parts.precision.autocast():
        for _ in range(2):
            began = time.perf_counter()
            parts.model(to_input(clips, mean=inputs.mean, std=inputs.std)).float().cpu()
            seconds = time.perf_counter() - began
    parts.model.train()
    return seconds


def checkpoint_size(parts: Parts, config: TrainConfig, world: World) -> int:
    """Returns the bytes of a checkpoint, written for this and removed."""
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
    micro = f"{plan.accumulate} x {world.size} micro-batches of {plan.micro_batch} clips"
    kind = "allocated on the GPU" if world.device.type == "cuda" else "of growth"
    lines = [
        f"dry run of {config.model.name}: {sums[0]:.2f} M parameters, {sums[1]:.2f} M trained"
        f"{cost}; {inputs.num_frames} frames x {inputs.sampling_rate} @ {inputs.crop_size}, "
        f"{world.size} x {world.device}, {config.precision.dtype}",
        f"data={config.data.name}: {found['videos']} training and {found['held_out']} validation "
        f"videos, {found['classes']} classes; clips are generated",
        f"training step of {plan.batch_size} clips ({micro}): {full:.3g} s, "
        f"{plan.batch_size / full:.3g} clips/s; peak memory {found['peak'] / GIB:.2f} GiB {kind}",
        f"evaluation of {config.eval.batch_size} views: {found['evaluation']:.3g} s; "
        f"checkpoint {found['checkpoint'] / 1e6:.1f} MB",
        *([memory.graph_breaks()] if config.model.compile else []),
    ]
    training, validating = hours(parts, config, world, found)
    total = last_step(parts, config)
    return [*lines, (
        f"the whole training on this machine: {training:.3g} h for {total} steps "
        f"({config.train.epochs} epochs), {validating:.3g} h of validation, reading not counted"
    )]  # fmt: skip


def hours(
    parts: Parts, config: TrainConfig, world: World, found: dict[str, Any]
) -> tuple[float, float]:
    """Returns the hours that training steps and validations would take here."""
    total, seconds = last_step(parts, config), found["steps"]
    if parts.plan.all_shapes:
        times = Counter(parts.plan.shape(step) for step in range(total))
        training = sum(seconds[shape] * count for shape, count in times.items())
    else:
        training = seconds[None] * total
    due = occasions(parts.timeline, config.validate.every, "validate.every")
    validations = sum(0 < step < total for step in due) + 1
    few = validation(config)
    views = few.num_clips * few.num_crops
    passes = 1 + (parts.average is not None)
    batches = found["held_out"] * views * passes / (config.eval.batch_size * world.size)
    return training / 3600, validations * batches * found["evaluation"] / 3600
