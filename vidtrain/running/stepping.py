"""One optimizer step: micro-batches, loss, backward, clip, update, average."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from vidtrain import distributed, randomness
from vidtrain.config.train import TrainConfig
from vidtrain.data.augment import to_input
from vidtrain.data.loading import ClipBatch
from vidtrain.distributed import World
from vidtrain.parallel.shards import synchronise
from vidtrain.records.runlog import Meter
from vidtrain.running.parts import Parts
from vidtrain.training.clipping import clip_gradients
from vidtrain.training.mixing import mix_clips

# A loss scale this small means that the gradient overflows in fp16 whatever the scale.
SMALLEST_SCALE = 2.0**-10


@dataclass(frozen=True)
class Taken:
    """What came of a step.

    Attributes:
        loss: Mean loss of this process's clips, a scalar.
        norm: Norm of the gradient before clipping, a scalar.
        clips: Clips of the step, over all processes.
        left_out: Facts about a step that was left out for loss or gradient, or None.
        stop: Whether a process was asked to stop.
    """

    loss: torch.Tensor
    norm: torch.Tensor
    clips: int
    left_out: dict[str, Any] | None
    stop: bool


def optimizer_step(
    parts: Parts, config: TrainConfig, world: World, step: int, batches: Iterator[ClipBatch],
    meter: Meter, *, stop: bool = False,
) -> Taken:  # fmt: skip
    """Takes one optimizer step over the micro-batches of this process.

    Args:
        parts: What is trained.
        config: The training's settings.
        world: This process among all.
        step: Number of the step, from 0.
        batches: Micro-batches of this process, from this step on.
        meter: Told how long the data were waited for.
        stop: Whether this process was asked to stop; all processes learn of it.

    Raises:
        InputError: Loss or gradient is not finite, once too often; the weights are as they were.
    """
    scaler, optimizer = parts.precision.scaler, parts.optimizer
    rate = parts.schedule(step) * parts.plan.lr_factor(step)
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * rate
    loss, videos, clips = backward(parts, config, world, step, batches, meter)
    with phase("optimizer", step, world):
        scaler.unscale_(optimizer)
        loop = config.train
        norm = clip_gradients(
            parts.model.parameters(), norm=loop.clip_grad_norm, agc=loop.clip_grad_agc,
            unclipped=parts.unclipped,
        )  # fmt: skip
        # With loss scaling an overflowing gradient is expected now and then: the scaler skips it.
        overflow_for_ever = scaler.is_enabled() and scaler.get_scale() < SMALLEST_SCALE
        fine = loss.isfinite() if scaler.is_enabled() else loss.isfinite() & norm.isfinite()
        bad, stop = update(parts, fine & (not overflow_for_ever), world, stop=stop)
        facts = None
        if bad:
            facts = facts_of(parts, config, world, step, loss, norm, videos)
            parts.nonfinite.leave_out(step, parts.model, facts)
        scaler.update()
        if parts.average is not None and not bad:
            parts.average.update(parts.model, step=step)
    return Taken(loss=loss, norm=norm, clips=clips * world.size, left_out=facts, stop=stop)


def update(parts: Parts, fine: torch.Tensor, world: World, *, stop: bool) -> tuple[bool, bool]:
    """Updates the weights, unless the step is bad, and clears the gradient.

    On CUDA, Adam's kernels are started before it is known and learn it on the device: the GPU would
    stand still while Python gets them ready.

    Args:
        parts: What is trained.
        fine: Whether this process found its part of the step good; a bool on the device.
        world: This process among all.
        stop: Whether this process was asked to stop.

    Returns:
        Whether the step is bad, and whether to stop: both where they are so on any process.
    """
    scaler, optimizer = parts.precision.scaler, parts.optimizer
    fused = all(group.get("fused") for group in optimizer.param_groups)
    ahead = fused and isinstance(optimizer, torch.optim.Adam) and fine.is_cuda
    # A scaler does the same with what it finds itself, and knows no loss.
    if not ahead or scaler.is_enabled() or parts.sharded:
        bad, stop = distributed.any_each((not fine, stop), world)
        if not bad:
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
        return bad, stop
    flags = torch.stack([~fine, torch.full_like(fine, stop)]).float()  # waits for nothing
    optimizer.found_inf = distributed.maximum(flags, world)[0]  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]
    optimizer.zero_grad(set_to_none=True)  # as all that needs no answer: the GPU is still at work
    bad, stop = map(bool, flags.tolist())
    return bad, stop


def backward(
    parts: Parts, config: TrainConfig, world: World, step: int, batches: Iterator[ClipBatch],
    meter: Meter,
) -> tuple[torch.Tensor, list[int], int]:  # fmt: skip
    """Adds up the gradient of a step; it is averaged over processes with the last micro-batch.

    Returns:
        The mean loss of this process's clips, the videos they are from, and their number.
    """
    accumulate, clips_seen, videos = parts.plan.accumulate, 0, list[int]()
    loss = torch.zeros((), device=world.device)
    for micro in range(accumulate):
        with meter.waiting(), phase("data", step, world):
            batch = next(batches)
        parts.bad.add(batch.bad, parts.clips.videos)
        with phase("augment", step, world):
            clips, targets = model_input(parts, config, world, step, batch)
        if not micro:  # once a GPU has the clips to copy
            parts.nonfinite.remember(parts.model)
        # Last thing before the forward pass: a loader may draw from the global generator too. The
        # number of the micro-batch among those of all processes: dropout is that of one process.
        key = (randomness.STEP, step, micro * world.size + world.rank, 0)
        torch.manual_seed(randomness.derive(config.seed, *key))
        with communicating(parts, micro == accumulate - 1):
            with phase("forward", step, world, waits=True), parts.precision.autocast():
                part = parts.task.loss(parts.network, clips, targets) / accumulate
            with phase("backward", step, world, waits=True):
                parts.precision.scaler.scale(part).backward()
        loss += part.detach()
        videos += batch.videos.tolist()
        clips_seen += len(clips)
    return loss, videos, clips_seen


@contextmanager
def phase(name: str, step: int, world: World, *, waits: bool = False) -> Iterator[None]:
    """Marks a part of a step, in a profile and for the other processes.

    Args:
        name: What is done.
        step: In which step.
        world: This process among all.
        waits: Whether it may be waiting for others there.
    """
    world.place.note(f"{name} of step {step}", waiting=waits, counted=True)
    with record_function(f"vidtrain.{name}"):
        yield


@contextmanager
def communicating(parts: Parts, wanted: bool) -> Iterator[None]:
    """Lets the backward passes within add up gradients over all processes, or not yet."""
    synchronise(parts.network, wanted)
    waiting = isinstance(parts.network, DistributedDataParallel) and not wanted
    with parts.network.no_sync() if waiting else nullcontext():  # type: ignore[operator]
        yield


def model_input(
    parts: Parts, config: TrainConfig, world: World, step: int, batch: ClipBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a raw batch as the network takes it: augmented, normalised, mixed; and targets."""
    clips = plain_input(parts, config, world, batch)
    videos = parts.clips.videos.videos
    labels = [videos[index].all_labels for index in batch.videos.tolist()]
    targets = parts.task.targets(labels, world.device)
    if parts.mix is None:
        return clips, targets
    rng = randomness.generator(config.seed, randomness.MIX, step)
    return mix_clips(clips, targets, parts.mix, rng, batch.draws)


def plain_input(parts: Parts, config: TrainConfig, world: World, batch: ClipBatch) -> torch.Tensor:
    """Returns the clips of a raw batch augmented and normalised, but not mixed."""
    device, inputs = world.device, config.model.input
    return to_input(
        batch.clips.to(device, non_blocking=True),
        mean=inputs.mean, std=inputs.std,
        flips=batch.flips, augment=parts.augment, draws=batch.draws,
    )  # fmt: skip


def facts_of(
    parts: Parts, config: TrainConfig, world: World, step: int, loss: torch.Tensor,
    norm: torch.Tensor, videos: list[int],
) -> dict[str, Any]:  # fmt: skip
    """Returns what is known of a step that is not finite, the samples of all processes included."""
    listed = parts.clips.videos.videos
    shards = distributed.gather([listed[index].id for index in videos], world)
    everyone = distributed.share([name for shard in shards for name in shard], world)
    losses = distributed.share(distributed.gather(loss.item(), world), world)
    return {
        "step": step, "epoch": parts.timeline.epoch_of(step),
        "loss": " ".join(f"{value:g}" for value in losses), "grad_norm": f"{norm.item():g}",
        "lr": parts.optimizer.param_groups[0]["lr"], "precision": config.precision.dtype,
        "loss_scale": parts.precision.scaler.get_scale(), "videos": everyone,
    }  # fmt: skip
