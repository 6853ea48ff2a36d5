"""Train a model: build the parts in order, then loop."""

import dataclasses
import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext

import numpy as np
import torch
from PIL import Image
from torch import nn

from vidtrain import distributed, interrupt, provenance, randomness, runlog
from vidtrain.config import TrainConfig
from vidtrain.data.augment import to_input, to_pixels
from vidtrain.data.clip_samplers import describe
from vidtrain.data.loading import ClipBatch, as_batch, train_batches
from vidtrain.distributed import World
from vidtrain.errors import InputError, Interrupted
from vidtrain.evaluation import evaluate
from vidtrain.parts import Parts, build_parts, restore, save
from vidtrain.report.plots import plot_clip_grid, plot_confusion, plot_curves
from vidtrain.runlog import Meter, RunLog, shown_path
from vidtrain.tasks import classification
from vidtrain.training.mixing import mix_clips

# A loss scale this small means that the gradient overflows in fp16 whatever the scale.
SMALLEST_SCALE = 2.0**-10


def train(config: TrainConfig) -> float | None:
    """Trains, validates, saves; goes on where the run folder's last checkpoint stands.

    Returns:
        The best validation top-1, for sweeps.

    Raises:
        UsageError: Settings that do not fit together, found before any work is done.
        InputError: Unreadable data, a folder that cannot be written, a loss that is not finite.
        Interrupted: A signal stopped the run; its state is saved.
    """
    began, folder = time.perf_counter(), shown_path(config.run_dir)
    with distributed.session(config.device, num_threads=config.num_threads) as world:
        parts = build_parts(config, world)
        restore(parts, config, folder, world)
        parts.network = distributed.replicate(parts.model, world)
        last_step = min(parts.plan.total_steps, config.train.max_steps or parts.plan.total_steps)
        log = RunLog(folder, main=world.is_main, start_step=parts.step)
        try:
            introduce(parts, config, log, world)
            if parts.step < last_step:
                fit(parts, config, log, world, last_step=last_step)
            summarise(parts, log, seconds=time.perf_counter() - began)
        finally:
            log.close()
    return parts.best.get("top1")


def fit(parts: Parts, config: TrainConfig, log: RunLog, world: World, *, last_step: int) -> None:
    """The training loop: from the current step to the last."""
    plan, loop = parts.plan, config.train
    batches = train_batches(parts.clips, plan, rank=world.rank, start_step=parts.step)
    meter = Meter(total=last_step, start=parts.step, main=world.is_main)
    parts.model.train()
    with interrupt.deferred() as stop, closing(meter):
        for step in range(parts.step, last_step):
            loss, norm = optimizer_step(parts, config, world, step, batches, meter)
            parts.step = step + 1
            meter.stepped(plan.batch_size)
            epoch = parts.step / plan.steps_per_epoch

            stopping = distributed.any_true(bool(stop.signum), world)
            save_every = loop.save_every_steps or plan.steps_per_epoch
            validating = _due(
                parts.step, config.eval.every_epochs * plan.steps_per_epoch, last_step
            )
            logging = _due(parts.step, loop.log_every_steps, last_step)
            saving = stopping or _due(parts.step, save_every, last_step)
            if logging or validating or saving:
                parts.bad.agree(world)
            if logging:
                mean_loss = float(distributed.mean(loss, world))
                group = parts.optimizer.param_groups[0]
                rate = group["lr"] / group["lr_scale"]
                row = {"loss": mean_loss, "lr": rate, "grad_norm": finite(norm),
                       "bad_videos": len(parts.bad.found), **meter.speed()}  # fmt: skip
                log.row("train", step=parts.step, epoch=epoch, **row)
                meter.show(row)
            if validating:
                validate(parts, config, log, world, epoch=epoch)
                meter.restart_clock()
            improved = parts.best.get("step") == parts.step
            if world.is_main and (saving or improved):
                save(parts, config, log.folder)
            if stopping and parts.step < last_step:
                raise Interrupted(
                    stop.signum or signal.SIGTERM,
                    f"stopped and saved at step {parts.step} of {last_step}; "
                    "the same command goes on from there",
                )


def optimizer_step(
    parts: Parts, config: TrainConfig, world: World, step: int,
    batches: Iterator[ClipBatch], meter: Meter,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Takes one optimizer step over the micro-batches of this process.

    Returns:
        The mean loss of this process's clips and the gradient norm before clipping, scalars.

    Raises:
        InputError: Loss or gradient is not finite; the weights are left as they were.
    """
    scaler, accumulate = parts.precision.scaler, parts.plan.accumulate
    rate = parts.schedule(step)
    for group in parts.optimizer.param_groups:
        group["lr"] = group["base_lr"] * rate
    loss = torch.zeros((), device=world.device)
    seen: list[int] = []
    for micro in range(accumulate):
        with meter.waiting():
            batch = next(batches)
        parts.bad.add(batch.bad, parts.clips.videos)
        clips, targets = model_input(parts, config, world, step, batch)
        # Last thing before the forward pass: a loader may draw from the global generator too.
        key = (randomness.STEP, step, micro, world.rank)
        torch.manual_seed(randomness.derive(config.seed, *key))
        communicate = micro == accumulate - 1 or world.size == 1
        with nullcontext() if communicate else parts.network.no_sync():  # type: ignore[operator]
            with parts.precision.autocast():
                part = classification.loss(parts.network, clips, targets) / accumulate
            scaler.scale(part).backward()
        loss += part.detach()
        seen += batch.videos.tolist()
    scaler.unscale_(parts.optimizer)
    norm = nn.utils.clip_grad_norm_(
        parts.model.parameters(), config.train.clip_grad_norm or math.inf
    )
    # With loss scaling an overflowing gradient is expected now and then: the scaler skips the step.
    overflow_for_ever = scaler.is_enabled() and scaler.get_scale() < SMALLEST_SCALE
    if not (loss.isfinite() and (scaler.is_enabled() or norm.isfinite())) or overflow_for_ever:
        raise InputError(_not_finite(loss, norm, step, seen, parts, config))
    scaler.step(parts.optimizer)
    scaler.update()
    parts.optimizer.zero_grad(set_to_none=True)
    if parts.average is not None:
        parts.average.update(parts.model, step=step)
    return loss, norm


def model_input(
    parts: Parts, config: TrainConfig, world: World, step: int, batch: ClipBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a raw batch as the network takes it: augmented, normalised, mixed; and targets."""
    device = world.device
    clips = to_input(
        batch.clips.to(device, non_blocking=True),
        mean=config.model.input.mean, std=config.model.input.std,
        flips=batch.flips.to(device), augment=parts.augment, draws=batch.draws,
    )  # fmt: skip
    num_classes = len(parts.clips.videos.class_names)
    targets = classification.soft_targets(
        batch.labels.to(device), num_classes, config.train.label_smoothing
    )
    if parts.mix is None:
        return clips, targets
    rng = randomness.generator(config.seed, randomness.MIX, step)
    return mix_clips(clips, targets, parts.mix, rng)


def validate(parts: Parts, config: TrainConfig, log: RunLog, world: World, *, epoch: float) -> None:
    """Evaluates the averaged weights if there are any, else the plain ones; notes the best."""
    judged = parts.model if parts.average is None else parts.average.module
    distributed.copy_buffers(judged, world)
    inputs = config.model.input
    scores = evaluate(
        judged, parts.val,
        batch_size=config.eval.batch_size,
        to_input=lambda clips: to_input(clips, mean=inputs.mean, std=inputs.std),
        precision=parts.precision, world=world,
    )  # fmt: skip
    if not world.is_main:
        return
    found = classification.figures(scores, parts.val.views.videos.class_names)
    shown = {k: found[k] for k in ("top1", "top5", "loss", "mean_class_accuracy", "num_videos")}
    log.row("val", step=parts.step, epoch=epoch, **shown)
    log.say(f"epoch {epoch:.4g}: {classification.summary(found)}")
    if found["top1"] > parts.best.get("top1", -1.0):
        parts.best = {"top1": found["top1"], "step": parts.step}
        confusion = np.array(found["confusion"])
        plot_confusion(confusion, parts.class_names, log.folder / "confusion_matrix.png")


def finite(value: torch.Tensor) -> float | None:
    """Returns a scalar as a float, or None where JSON has no number for it."""
    return float(value) if value.isfinite() else None


def _due(step: int, every: int, last_step: int) -> bool:
    return step % every == 0 or step == last_step


def _not_finite(
    loss: torch.Tensor, norm: torch.Tensor, step: int, seen: list[int], parts: Parts,
    config: TrainConfig,
) -> str:  # fmt: skip
    ids = ", ".join(parts.clips.videos.videos[i].id for i in seen[:8])
    return (
        f"loss is {loss.item():g} and gradient norm {norm.item():g} at step {step} (epoch "
        f"{step / parts.plan.steps_per_epoch:.2f}, lr {parts.optimizer.param_groups[0]['lr']:.2e},"
        f" precision {config.precision.dtype}); videos of the batch: {ids}"
        f"{', ...' * (len(seen) > 8)}."
        " Nothing was saved since the last checkpoint. Lower optimizer.lr, set "
        "train.clip_grad_norm=1, or use precision=fp32"
    )


def introduce(parts: Parts, config: TrainConfig, log: RunLog, world: World) -> None:
    """Says and writes what the run is made of, and shows clips as they reach the model."""
    if not world.is_main:
        return
    runlog.write_yaml(log.folder / "config.yaml", dataclasses.asdict(config))
    facts = provenance.record(world, seed=config.seed, data=parts.data_record)
    log.text("config", runlog.as_yaml(dataclasses.asdict(config)))
    earlier = log.folder / "run.json"
    before = json.loads(earlier.read_text("utf-8")) if parts.step else {}
    this = {"started": facts["started"], "command": facts["command"], "step": parts.step}
    weights = parts.started.record() if parts.started else before.get("weights")
    runlog.write_json(
        earlier, facts | {"weights": weights, "starts": [*before.get("starts", []), this]}
    )
    inputs, plan = config.model.input, parts.plan
    size = sum(p.numel() for p in parts.model.parameters()) / 1e6
    log.say(
        f"{config.model.name}: {size:.2f} M parameters, {inputs.num_frames} frames x "
        f"{inputs.sampling_rate} @ {inputs.crop_size}. {config.data.name}: {plan.num_videos} train "
        f"and {len(parts.val.views.videos.videos)} val videos, {len(parts.class_names)} classes. "
        f"{world.size} x {world.device}, {config.precision.dtype}"
    )
    if parts.started:
        log.say("\n".join(parts.started.lines()))
    describe_training(parts, config, log)
    if parts.step:
        log.say(f"going on from step {parts.step} of {plan.total_steps} in {log.folder}")
        return
    keys = next(plan.micro_batches(seed=config.seed, rank=0, start_step=0))[:8]
    batch = as_batch(parts.clips.batch(keys))
    for video, frames in zip(batch.videos[:2].tolist(), batch.frames[:2], strict=True):
        log.say(f"frames of {parts.clips.videos.videos[video].id}: {describe(frames.numpy())}")
    clips, targets = model_input(parts, config, world, 0, batch)
    pixels = to_pixels(clips, mean=inputs.mean, std=inputs.std).numpy()
    picture = log.folder / "inputs.png"
    labels = [classification.describe(row, parts.class_names) for row in targets.cpu()]
    plot_clip_grid(pixels, labels, picture)
    log.picture("inputs", np.asarray(Image.open(picture).convert("RGB")), 0)


def describe_training(parts: Parts, config: TrainConfig, log: RunLog) -> None:
    """Says which part of the network is trained, and at which rate, where that is not plain."""
    counts = {flag: sum(p.numel() for p in parts.model.parameters() if p.requires_grad is flag)
              for flag in (True, False)}  # fmt: skip
    if counts[False]:
        origin = "" if config.model.weights else ", as model.build made them (no model.weights)"
        log.say(f"finetune: {counts[True] / 1e6:.3g} M parameters are trained, "
                f"{counts[False] / 1e6:.3g} M frozen{origin}")  # fmt: skip
    loop, groups = config.train, parts.optimizer.param_groups
    if loop.lr_batch is not None:
        base = groups[0]["base_lr"] / groups[0]["lr_scale"]
        log.say(
            f"learning rate {base:.3g}: optimizer.lr={base * loop.lr_batch / loop.batch_size:.3g} "
            f"is for batches of {loop.lr_batch} (train.lr_batch), here they are {loop.batch_size}"
        )
    scales = [group["lr_scale"] for group in groups]
    if scales != [1.0] * len(groups):
        log.say(f"finetune: layers learn at {min(scales):.3g} to {max(scales):g} times that rate")


def summarise(parts: Parts, log: RunLog, *, seconds: float) -> None:
    """Draws the curves and says how the run ended."""
    if not log.main:
        return
    plot_curves(runlog.read_rows(log.folder / "metrics.jsonl"), log.folder / "curves.png")
    best = "no validation yet"
    if parts.best:
        best = f"best val top-1 {parts.best['top1']:.4f} at step {parts.best['step']:.0f}"
    log.say(
        f"done: step {parts.step} of {parts.plan.total_steps} after {seconds:.0f} s; {best}\n"
        f"run folder {log.folder}: checkpoints/best.pt, curves.png, confusion_matrix.png, "
        f"inputs.png, metrics.jsonl\n"
        f"next: vidtrain eval run={log.folder}    vidtrain export run={log.folder}    "
        f"tensorboard --logdir {log.folder}"
    )
