"""Training steps on generated clips: what a dry run and the search for a batch are made of."""

import dataclasses
import os
import tempfile

import torch

from vidtrain.config.train import TrainConfig
from vidtrain.data.generated import noise_batches
from vidtrain.distributed import World
from vidtrain.errors import InputError, UsageError
from vidtrain.parallel.replicas import restore_buffers
from vidtrain.records import runlog
from vidtrain.running import parts
from vidtrain.running.parts import Parts
from vidtrain.running.stepping import backward, optimizer_step


def counts(config: TrainConfig, world: World) -> tuple[int, int, int]:
    """Returns classes, training and validation videos: of the lists, or as they are published.

    Raises:
        InputError: The data is not there, and data.published does not tell.
    """
    try:
        train, held_out = parts.lists(config, world)
    except InputError as error:
        known = config.data.published
        if known is None or isinstance(error, UsageError):
            raise
        return known.num_classes, known.num_train, known.num_val
    return len(train.class_names), len(train.videos), len(held_out.videos)


def without_data(
    config: TrainConfig, counted: tuple[int, int, int], *, num_train: int = 0
) -> TrainConfig:
    """Returns a config whose videos need not be there.

    Args:
        config: The training.
        counted: Classes, training and validation videos.
        num_train: Training videos at least.
    """
    source = {
        "_target_": "vidtrain.data.sources.generated.generated",
        "num_classes": counted[0], "num_train": max(counted[1], num_train), "num_val": counted[2],
    }  # fmt: skip
    data = dataclasses.replace(
        config.data, source=source, train="train", val="val", classes=None, quarantine=None,
        prepared=None, decoder="pyav", index=None, num_workers=0,
    )  # fmt: skip
    nowhere = os.path.join(tempfile.gettempdir(), "vidtrain-trial", "no-run")
    return dataclasses.replace(config, data=data, run_dir=nowhere)


def step_on_noise(built: Parts, config: TrainConfig, world: World, step: int) -> None:
    """Takes one optimizer step on noise."""
    meter = runlog.Meter(total=1, start=0, main=False)
    batches = noise_batches(built.clips, built.plan, rank=world.rank, start_step=step)
    optimizer_step(built, config, world, step, batches, meter)
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)


def warm_up(parts: Parts, config: TrainConfig, world: World) -> None:
    """Lets DDP see a backward pass that is thrown away, where a run goes on.

    DDP sorts what travels together by the order in which its first backward pass finishes. Three
    or more processes add up in another order then, so the first step after a resume would differ
    in its last bits from the same step of a run that was never stopped.
    """
    if parts.progress.step == 0 or world.size < 3 or parts.network is parts.model:
        return
    kept = [buffer.clone() for buffer in parts.model.buffers()]
    meter = runlog.Meter(total=1, start=0, main=False)
    step = parts.progress.step - 1
    batches = noise_batches(parts.clips, parts.plan, rank=world.rank, start_step=step)
    parts.model.train()
    backward(parts, config, world, step, batches, meter)
    parts.optimizer.zero_grad(set_to_none=True)
    restore_buffers(parts.model, kept)
