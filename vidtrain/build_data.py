"""Where config becomes data: lists of videos, training samples, evaluation views."""

import math
import os
import sys
from typing import Any

import torch

from vidtrain.config import RunConfig
from vidtrain.config.data import DataConfig
from vidtrain.config.model import InputConfig
from vidtrain.config.train import EvalConfig, TrainConfig, ValidateConfig
from vidtrain.data import index_store, preparing, quarantine
from vidtrain.data.eval_loading import EvalLoader, EvalViews
from vidtrain.data.loading import Reading, TrainClips
from vidtrain.data.reading import check_decoder
from vidtrain.data.sources.class_names import read_class_names
from vidtrain.data.video import VideoList
from vidtrain.errors import InputError, UsageError
from vidtrain.targets import component


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
    check_range("data", config, num_workers=(0, None), prefetch_batches=(1, None),
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
    inputs = config.model.input
    check_views("eval", evaluation)
    check_range("eval", evaluation, batch_size=(1, None))
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


def check_views(where: str, views: EvalConfig | ValidateConfig) -> None:
    """Refuses numbers of views that there cannot be; null settings are left alone."""
    if views.num_crops not in (None, 1, 3):
        raise UsageError(f"{where}.num_crops={views.num_crops} must be 1 or 3")
    check_range(where, views, num_clips=(1, None))


def check_range(where: str, config: Any, **limits: tuple[float, float | None]) -> None:
    """Refuses numbers outside [lowest, highest]; null settings are left alone."""
    for name, (lowest, highest) in limits.items():
        value = getattr(config, name)
        if value is not None and not lowest <= value <= (math.inf if highest is None else highest):
            wanted = f"at least {lowest:g}"
            if highest is not None:
                wanted = f"from {lowest:g} to {'1' if highest == 1 else 'below 1'}"
            raise UsageError(f"{where}.{name}={value} must be {wanted}")


def _clip(inputs: InputConfig) -> dict[str, Any]:
    """What every clip sampler is told of the model."""
    return {
        "clip_frames": inputs.num_frames,
        "sampling_rate": inputs.sampling_rate,
        "target_fps": inputs.target_fps,
    }
