"""Where config becomes objects: data, samplers, model, optimizer, from the typed config.

What a YAML names with `_target_` is called by `component` (see `targets`), and nowhere else.
"""

import math
import os
from typing import Any

import torch
from torch import nn

from vidtrain import randomness
from vidtrain.config import (
    DataConfig,
    EvalConfig,
    InputConfig,
    LoopConfig,
    ModelConfig,
    RunConfig,
    TrainConfig,
)
from vidtrain.data.loading import EvalViews, Plan, Reading, TrainClips
from vidtrain.data.reading import check_decoder
from vidtrain.data.sources.class_names import read_class_names
from vidtrain.data.video import VideoList
from vidtrain.errors import InputError, UsageError
from vidtrain.targets import component
from vidtrain.training.parameters import parameter_groups


def videos(
    config: DataConfig, part: str, *, class_names: tuple[str, ...] | None = None
) -> VideoList:
    """Returns the videos of a split.

    Args:
        config: The data set.
        part: train or val.
        class_names: Names that labels index, from a training split or a finished run; None: the
            data set's own.

    Raises:
        InputError: Files are missing, do not parse, or the split is empty.
    """
    split = getattr(config, part)
    root = os.path.expanduser(config.root)
    if class_names is None and config.classes is not None:
        class_names = read_class_names(config.classes, root)
    listed = component(config.source, "data.source", root, split=split,
                       class_names=class_names)  # fmt: skip
    if not listed.videos:
        raise InputError(
            f"data.{part}={split!r} of data={config.name} holds no video (root {config.root}); "
            f"check data.root and data.{part}"
        )
    return listed


def reading(config: DataConfig, device: torch.device) -> Reading:
    """Returns how files are read; refuses an unknown decoder before any work is done."""
    check_decoder(config.decoder)
    _check_range("data", config, num_workers=(0, None), prefetch_batches=(1, None),
                 timeout_seconds=(0, None), frame_folder_fps=(1e-6, None))  # fmt: skip
    return Reading(
        decoder=config.decoder,
        frame_folder_fps=config.frame_folder_fps,
        num_workers=config.num_workers,
        prefetch_batches=config.prefetch_batches,
        timeout_seconds=config.timeout_seconds,
        pin_memory=device.type == "cuda",
    )


def train_clips(config: TrainConfig, listed: VideoList, device: torch.device) -> TrainClips:
    """Returns the training samples."""
    inputs = config.model.input
    if len(inputs.short_side) != 2 or not inputs.crop_size <= min(inputs.short_side):
        raise UsageError(
            f"model.input.short_side={inputs.short_side} must be [smallest, largest], both at "
            f"least model.input.crop_size={inputs.crop_size}"
        )
    return TrainClips(
        videos=listed,
        sampler=component(config.clip_sampler.train, "clip_sampler.train", **_clip(inputs)),
        crop_size=inputs.crop_size,
        short_side=(inputs.short_side[0], inputs.short_side[1]),
        flip=config.data.horizontal_flip,
        seed=config.seed,
        reading=reading(config.data, device),
    )


def eval_views(
    config: TrainConfig | RunConfig, evaluation: EvalConfig, listed: VideoList, device: torch.device
) -> EvalViews:
    """Returns the evaluation views."""
    inputs = config.model.input
    if evaluation.num_crops not in (1, 3):
        raise UsageError(f"eval.num_crops={evaluation.num_crops} must be 1 or 3")
    _check_range("eval", evaluation, num_clips=(1, None), batch_size=(1, None),
                 every_epochs=(1, None))  # fmt: skip
    if inputs.eval_crop_size > inputs.eval_short_side:
        raise UsageError(
            f"model.input.eval_crop_size={inputs.eval_crop_size} is more than "
            f"model.input.eval_short_side={inputs.eval_short_side}"
        )
    return EvalViews(
        videos=listed,
        sampler=component(
            config.clip_sampler.eval,
            "clip_sampler.eval",
            **_clip(inputs),
            num_clips=evaluation.num_clips,
        ),
        crop_size=inputs.eval_crop_size,
        short_side=inputs.eval_short_side,
        num_crops=evaluation.num_crops,
        reading=reading(config.data, device),
    )


def _check_range(where: str, config: Any, **limits: tuple[float, float | None]) -> None:
    """Refuses numbers outside [lowest, highest]; null settings are left alone."""
    for name, (lowest, highest) in limits.items():
        value = getattr(config, name)
        if value is not None and not lowest <= value <= (math.inf if highest is None else highest):
            wanted = f"at least {lowest:g}" if highest is None else f"from {lowest:g} to below 1"
            raise UsageError(f"{where}.{name}={value} must be {wanted}")


def _clip(inputs: InputConfig) -> dict[str, Any]:
    """What every clip sampler is told of the model."""
    return {
        "clip_frames": inputs.num_frames,
        "sampling_rate": inputs.sampling_rate,
        "target_fps": inputs.target_fps,
    }


def plan(config: LoopConfig, *, num_videos: int, world_size: int) -> Plan:
    """Returns the arithmetic of batches.

    Raises:
        UsageError: The global batch does not divide, or no step fits into an epoch.
    """
    counts = ("epochs", "max_steps", "batch_size", "accumulate", "log_every_steps",
              "save_every_steps")  # fmt: skip
    _check_range("train", config, **dict.fromkeys(counts, (1, None)), clip_grad_norm=(1e-12, None),
                 ema_decay=(0, 1 - 1e-9), label_smoothing=(0, 1 - 1e-9))  # fmt: skip
    if config.batch_size % (config.accumulate * world_size):
        raise UsageError(
            f"train.batch_size={config.batch_size} is the batch over all processes; it must be a "
            f"multiple of train.accumulate={config.accumulate} times {world_size} processes"
        )
    if num_videos < config.batch_size:
        raise UsageError(
            f"train.batch_size={config.batch_size} is more than the {num_videos} videos of the "
            f"training split; use train.batch_size={num_videos} or less"
        )
    return Plan(
        num_videos=num_videos,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        epochs=config.epochs,
        world_size=world_size,
    )


def model(config: ModelConfig, *, num_classes: int, seed: int) -> nn.Module:
    """Returns the network with weights drawn from the seed, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derive(seed, randomness.INIT))
        return component(config.build, "model.build", num_classes=num_classes)


def optimizer(
    node: dict[str, Any], network: nn.Module, *, no_decay_norm_bias: bool
) -> torch.optim.Optimizer:
    """Returns the optimizer over the network's parameter groups."""
    groups = parameter_groups(network, no_decay_norm_bias=no_decay_norm_bias)
    built = component(node, "optimizer", groups)
    for group in built.param_groups:
        group["base_lr"] = group["lr"]
    return built
