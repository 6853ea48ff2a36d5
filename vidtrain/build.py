"""Where config becomes objects: data, samplers, model, optimizer, from the typed config.

What a YAML names with `_target_` is called by `component` (see `targets`), and nowhere else.
"""

import math
import os
import sys
from typing import Any

import torch
from torch import nn

from vidtrain import randomness
from vidtrain.config import DataConfig, EvalConfig, LoopConfig, RunConfig, TrainConfig
from vidtrain.config_model import FinetuneConfig, InputConfig, ModelConfig
from vidtrain.data import index_store, preparing, quarantine
from vidtrain.data.eval_loading import EvalLoader, EvalViews
from vidtrain.data.loading import Plan, Reading, TrainClips
from vidtrain.data.reading import check_decoder
from vidtrain.data.sources.class_names import read_class_names
from vidtrain.data.video import VideoList
from vidtrain.errors import InputError, UsageError
from vidtrain.models import anatomy, memory
from vidtrain.targets import component
from vidtrain.training.parameters import parameter_groups


def videos(
    config: DataConfig, part: str, *, class_names: tuple[str, ...] | None = None
) -> VideoList:
    """Returns the videos of a split: of the training split those that are not in quarantine.

    Args:
        config: The data set.
        part: train or val.
        class_names: Names that labels index, from a training split or a finished run; None: the
            data set's own.

    Raises:
        InputError: Files are missing, do not parse, or the split is empty.
    """
    check_decoder(config.decoder)
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
    bad = os.path.expanduser(config.quarantine) if config.quarantine and part == "train" else None
    left_out: list[str] = []
    if bad is not None:
        listed, left_out = quarantine.leave_out(listed, bad)
    if config.prepared is not None:
        prepared = os.path.expanduser(config.prepared)
        listed = preparing.prepared_videos(listed, root, prepared)
        _same_folder_fps(config, prepared)
        if bad is not None:  # the prepared files may have been checked, or the originals
            listed, more = quarantine.leave_out(listed, bad)
            left_out += more
    if bad is not None:
        named = f" ({', '.join(left_out[:3])}{', ...' * (len(left_out) > 3)})" * bool(left_out)
        print(f"data.quarantine leaves out {len(left_out)} videos{named}; {len(listed.videos)} "
              "remain", file=sys.stderr)  # fmt: skip
    return listed


def _same_folder_fps(config: DataConfig, prepared: str) -> None:
    was = preparing.prepared_record(prepared)["settings"].get("frame_folder_fps")
    if was is not None and config.frame_folder_fps not in (None, was):
        raise UsageError(
            f"data.frame_folder_fps={config.frame_folder_fps:g}, but data.prepared={prepared} was "
            f"made of frame folders at {was:g}; prepare anew, or set the same"
        )


def reading(config: DataConfig, device: torch.device) -> Reading:
    """Returns how files are read; refuses an unknown decoder before any work is done."""
    check_decoder(config.decoder)
    _check_range("data", config, num_workers=(0, None), prefetch_batches=(1, None),
                 timeout_seconds=(0, None), frame_folder_fps=(1e-6, None),
                 views_per_decode=(1, None), max_bad_fraction=(0, 1 - 1e-9))  # fmt: skip
    return Reading(
        decoder=config.decoder,
        frame_folder_fps=config.frame_folder_fps,
        num_workers=config.num_workers,
        prefetch_batches=config.prefetch_batches,
        timeout_seconds=config.timeout_seconds,
        pin_memory=device.type == "cuda",
        index=config.index or str(index_store.default_path(config.name, config.root)),
    )


def train_clips(config: TrainConfig, listed: VideoList, device: torch.device) -> TrainClips:
    """Returns the training samples."""
    _one_class_each(config.data, listed)
    inputs = config.model.input
    if len(inputs.short_side) != 2 or not inputs.crop_size <= min(inputs.short_side):
        raise UsageError(
            f"model.input.short_side={inputs.short_side} must be [smallest, largest], both at "
            f"least model.input.crop_size={inputs.crop_size}"
        )
    for name, highest in (("crop_area", 1.0), ("crop_aspect", math.inf)):
        pair = getattr(inputs, name)
        if pair is not None and not (len(pair) == 2 and 0 < pair[0] <= pair[1] <= highest):
            raise UsageError(f"model.input.{name}={pair} must be [smallest, largest], above 0"
                             f"{' and at most 1' if highest == 1 else ''}")  # fmt: skip
    budget = math.floor(config.data.max_bad_fraction * len(listed.videos))
    return TrainClips(
        videos=listed,
        sampler=component(config.clip_sampler.train, "clip_sampler.train", **_clip(inputs)),
        num_frames=inputs.num_frames,
        crop_size=inputs.crop_size,
        short_side=(inputs.short_side[0], inputs.short_side[1]),
        flip=config.data.horizontal_flip,
        seed=config.seed,
        reading=reading(config.data, device),
        views_per_decode=config.data.views_per_decode,
        crop_area=tuple(inputs.crop_area) if inputs.crop_area else None,  # type: ignore[arg-type]
        crop_aspect=tuple(inputs.crop_aspect),  # type: ignore[arg-type]
        replace=budget > 0,
    )


def eval_loader(
    views: EvalViews, evaluation: EvalConfig, *, rank: int, world_size: int
) -> EvalLoader:
    """Returns the views of a rank's share of the videos."""
    views_per_video = evaluation.num_clips * evaluation.num_crops
    if getattr(views.sampler, "views_vary", False):
        views_per_video = evaluation.batch_size  # there may be any number of them
    return EvalLoader(
        views,
        videos_per_group=max(1, evaluation.batch_size // views_per_video),
        batch_size=evaluation.batch_size,
        rank=rank,
        world_size=world_size,
    )


def eval_views(
    config: TrainConfig | RunConfig, evaluation: EvalConfig, listed: VideoList, device: torch.device
) -> EvalViews:
    """Returns the evaluation views."""
    _one_class_each(config.data, listed)
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


def _one_class_each(config: DataConfig, listed: VideoList) -> None:
    if listed.multi_label:
        raise UsageError(
            f"data={config.name} gives a video several classes, and a model here tells one; where "
            "the data set labels segments, as Charades does, data.source.segments=true lists those"
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


def plan(config: LoopConfig, data: DataConfig, *, num_videos: int, world_size: int) -> Plan:
    """Returns the arithmetic of batches.

    Raises:
        UsageError: The global batch does not divide, or no step fits into an epoch.
    """
    counts = ("epochs", "max_steps", "batch_size", "lr_batch", "accumulate", "log_every_steps",
              "save_every_steps")  # fmt: skip
    _check_range("train", config, **dict.fromkeys(counts, (1, None)), clip_grad_norm=(1e-12, None),
                 ema_decay=(0, 1 - 1e-9), label_smoothing=(0, 1 - 1e-9))  # fmt: skip
    if config.batch_size % (config.accumulate * world_size):
        raise UsageError(
            f"train.batch_size={config.batch_size} is the batch over all processes; it must be a "
            f"multiple of train.accumulate={config.accumulate} times {world_size} processes"
        )
    views = data.views_per_decode
    if config.batch_size // (config.accumulate * world_size) % views:
        raise UsageError(
            f"data.views_per_decode={views} must divide the micro-batch of "
            f"{config.batch_size // (config.accumulate * world_size)} clips (train.batch_size over "
            "train.accumulate and the processes)"
        )
    if num_videos * views < config.batch_size:
        raise UsageError(
            f"train.batch_size={config.batch_size} is more than the {num_videos} videos of the "
            f"training split{f' x {views} views' * (views > 1)}; use "
            f"train.batch_size={num_videos * views} or less"
        )
    return Plan(
        num_videos=num_videos,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        epochs=config.epochs,
        world_size=world_size,
        views_per_decode=views,
    )


def model(config: ModelConfig, *, num_classes: int, seed: int) -> nn.Module:
    """Returns the network with weights drawn from the seed, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(randomness.derive(seed, randomness.INIT))
        return component(config.build, "model.build", num_classes=num_classes)


def fast(config: ModelConfig, network: nn.Module) -> nn.Module:
    """Sets the options for memory and speed on a network that is to run, not to be exported."""
    return memory.apply(network, channels_last=config.channels_last,
                        checkpointing=config.checkpointing, compile=config.compile)  # fmt: skip


def finetune(config: FinetuneConfig, network: nn.Module) -> dict[str, float]:
    """Freezes what is not to be trained; returns factors on the learning rate by parameter name.

    Raises:
        UsageError: A value out of range, or a setting that changes nothing on this network.
    """
    _check_range("finetune", config, layer_decay=(1e-9, 1 - 1e-9), head_lr=(1e-9, None))
    wanted = str(config.train_layers)
    if wanted not in ("all", "head") and not wanted.isdecimal():
        raise UsageError(f"finetune.train_layers={wanted} must be all, head, or a number of layers")
    if wanted != "all":
        anatomy.freeze(network, train_layers=0 if wanted == "head" else int(wanted))
    if config.freeze_norm:
        anatomy.freeze_norms(network)
    if config.layer_decay is None and config.head_lr == 1:
        return {}
    decay = 1.0 if config.layer_decay is None else config.layer_decay
    return anatomy.learning_rates(network, layer_decay=decay, head_lr=config.head_lr)


def optimizer(
    node: dict[str, Any], network: nn.Module, loop: LoopConfig, *, lr_scales: dict[str, float]
) -> torch.optim.Optimizer:
    """Returns the optimizer; each of its groups has its base rate, and its share in `lr_scale`.

    Source: Goyal et al., 2017, section 2.1 (the rate grows with the batch), for `lr_batch`.
    """
    groups = parameter_groups(
        network, no_decay_norm_bias=loop.no_decay_norm_bias, lr_scales=lr_scales
    )
    built = component(node, "optimizer", groups)
    factor = loop.batch_size / loop.lr_batch if loop.lr_batch is not None else 1.0
    for group in built.param_groups:
        group["base_lr"] = group["lr"] * factor * group["lr_scale"]
    return built
