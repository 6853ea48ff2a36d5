"""Which part of the frames: crops for training and evaluation, cut before anything is scaled.

A crop is drawn as if the video had first been scaled to a short side; what is cut is the same
region of the unscaled frames, so only the crop's pixels are scaled. Videos smaller than the short
side are scaled up.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torchvision.transforms.v2 import functional


@dataclass(frozen=True)
class Box:
    """A square-ish region of the source frames, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_crop_box(
    height: int, width: int, *, crop_size: int, short_side: tuple[int, int],
    rng: np.random.Generator,
) -> Box:  # fmt: skip
    """Draws a training crop: short side jittered, then a crop anywhere.

    Args:
        height: Of the frames, pixels.
        width: Of the frames, pixels.
        crop_size: Side of the crop after scaling, pixels.
        short_side: Smallest and largest short side to scale to, pixels; both >= crop_size.
        rng: Generator of the sample.

    Source: Simonyan & Zisserman, ICLR 2015, section 3.1 (scale jittering); ranges as in SlowFast.
    """
    side = _side(height, width, crop_size, int(rng.integers(short_side[0], short_side[1] + 1)))
    top = int(rng.integers(height - side + 1))
    left = int(rng.integers(width - side + 1))
    return Box(top, left, side, side)


def eval_crop_boxes(
    height: int, width: int, *, short_side: int, crop_size: int, num_crops: int
) -> list[Box]:
    """Returns one crop in the centre, or three spread along the longer side.

    Source: Feichtenhofer et al., SlowFast, ICCV 2019, section 4 (inference).
    """
    side = _side(height, width, crop_size, short_side)
    top, left = height - side, width - side
    if num_crops == 1:
        return [Box(top // 2, left // 2, side, side)]
    if width >= height:
        return [Box(top // 2, place, side, side) for place in (0, left // 2, left)]
    return [Box(place, left // 2, side, side) for place in (0, top // 2, top)]


def _side(height: int, width: int, crop_size: int, short_side: int) -> int:
    """Side of the crop in source pixels."""
    short = min(height, width)
    return min(short, max(1, round(crop_size * short / short_side)))


def cut(frames: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Cuts a box from all frames and scales it, bilinear with antialiasing.

    Args:
        frames: (T, H, W, 3) uint8.
        box: What to cut.
        size: Side of the result, pixels.

    Returns:
        (T, size, size, 3) uint8, contiguous.
    """
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    region = torch.from_numpy(frames[:, rows, columns]).permute(0, 3, 1, 2)
    if region.shape[-2:] != (size, size):
        region = functional.resize(region, [size, size], antialias=True)
    return region.permute(0, 2, 3, 1).contiguous().numpy()
