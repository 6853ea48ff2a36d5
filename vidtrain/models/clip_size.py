"""Networks that take clips of one size only: others are refused in words."""

from functools import partial

import torch
from torch import nn

from vidtrain.errors import UsageError


def fix_clip_size(net: nn.Module, *, num_frames: int, crop_size: int, family: str) -> None:
    """Makes a network refuse every clip that is not of the size it was built for.

    Args:
        net: Network whose first argument is a clip (B, 3, T, H, W); changed in place. What is
            added holds no state and only compares sizes, so the network stays exportable.
        num_frames: T.
        crop_size: H and W, in pixels.
        family: Name of the network in the message of the UsageError raised in its forward.
    """
    size = (num_frames, crop_size, crop_size)
    net.fixed_clip = family, crop_size  # type: ignore[assignment]  # for `check_crops`
    net.register_forward_pre_hook(partial(_check_clip, size=size, family=family))


def check_crops(net: nn.Module, crops: dict[str, int]) -> None:
    """Refuses to cut clips for a network that it would refuse.

    Args:
        net: Any network.
        crops: Side of the clips in pixels, by the setting that says so.

    Raises:
        UsageError: The network takes one size only, and that is another.
    """
    for part in net.modules():
        family, size = getattr(part, "fixed_clip", (None, None))
        for setting, crop in crops.items():
            if size not in (None, crop):
                raise UsageError(
                    f"{setting}={crop}, but {family} is built for clips of {size} pixels "
                    f"(model.input.crop_size); set {setting}={size}, and the short side with it"
                )


def tiled(
    family: str, *, num_frames: int, crop_size: int, frames_by: int, pixels_by: int
) -> tuple[int, int, int]:
    """Returns a clip size (T, H, W) that patches tile.

    Args:
        family: Name of the network in the message.
        num_frames: T.
        crop_size: H and W, in pixels.
        frames_by: What T must be a multiple of.
        pixels_by: What H and W must be a multiple of.

    Raises:
        UsageError: A size is not positive, or no such multiple.
    """
    if num_frames <= 0 or num_frames % frames_by or crop_size <= 0 or crop_size % pixels_by:
        raise UsageError(
            f"{family} cannot be built for clips of {num_frames} frames at {crop_size} pixels: "
            f"set num_frames to a multiple of {frames_by} and crop_size to a multiple of "
            f"{pixels_by}."
        )
    return num_frames, crop_size, crop_size


def _check_clip(
    net: nn.Module, args: tuple[torch.Tensor], *, size: tuple[int, int, int], family: str
) -> None:
    found = tuple(args[0].shape[2:])
    if found != size:
        raise UsageError(
            "{} got a clip of {}x{}x{} (frames x height x width) but was built for {}x{}x{}: "
            "give it clips of that size, or set num_frames and crop_size "
            "where the model is built.".format(family, *found, *size)
        )
