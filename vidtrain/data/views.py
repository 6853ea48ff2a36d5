"""Which part of the frames, and at what size: crops are cut before anything is scaled.

A crop is drawn as if the video had first been scaled to a short side; what is cut is the same
region of the unscaled frames, so only the crop's pixels are scaled. Videos smaller than the short
side are scaled up. Places and sizes are even numbers of pixels, because most video stores colour
for blocks of 2 x 2.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from vidtrain.data.video import Box

cv2.setNumThreads(0)  # loader processes are the parallelism


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
    top = 2 * int(rng.integers((height - side) // 2 + 1))
    left = 2 * int(rng.integers((width - side) // 2 + 1))
    return Box(top, left, side, side)


def random_resized_crop_box(
    height: int, width: int, *, area: tuple[float, float], aspect: tuple[float, float],
    rng: np.random.Generator,
) -> Box:  # fmt: skip
    """Draws a region of random area and aspect ratio; a centred one if ten draws do not fit.

    Args:
        height: Of the frames, pixels.
        width: Of the frames, pixels.
        area: Smallest and largest share of the frame, in (0, 1].
        aspect: Smallest and largest width over height.
        rng: Generator of the sample.

    Source: Szegedy et al., Going deeper with convolutions, CVPR 2015, section 6.
    """
    for _ in range(10):
        target = height * width * rng.uniform(*area)
        ratio = float(np.exp(rng.uniform(np.log(aspect[0]), np.log(aspect[1]))))
        w, h = (max(2, round(float(x) / 2) * 2) for x in ((target * ratio) ** 0.5,
                                                          (target / ratio) ** 0.5))  # fmt: skip
        if w <= width and h <= height:
            top = 2 * int(rng.integers((height - h) // 2 + 1))
            left = 2 * int(rng.integers((width - w) // 2 + 1))
            return Box(top, left, h, w)
    w = min(width, max(2, int(height * aspect[1]) // 2 * 2))
    h = min(height, max(2, int(w / aspect[0]) // 2 * 2))
    return Box((height - h) // 4 * 2, (width - w) // 4 * 2, h, w)


@dataclass(frozen=True)
class EvalGeometry:
    """The part of a video's frames that holds all its crops, and where they lie in it.

    Attributes:
        box: The part, in source pixels.
        height: Of the part after scaling, pixels.
        width: Of the part after scaling, pixels.
        corners: (crops, 2) int64, top and left of each crop in the scaled part.
    """

    box: Box
    height: int
    width: int
    corners: np.ndarray


def eval_geometry(
    height: int, width: int, *, short_side: int, crop_size: int, num_crops: int
) -> EvalGeometry:
    """Returns where one crop in the centre, or three spread along the longer side, lie.

    Source: Feichtenhofer et al., SlowFast, ICCV 2019, section 4 (inference).
    """
    side = _side(height, width, crop_size, short_side)
    top, left = (height - side) // 4 * 2, (width - side) // 4 * 2
    if num_crops == 1:
        corners = np.zeros((1, 2), np.int64)
        return EvalGeometry(Box(top, left, side, side), crop_size, crop_size, corners)
    wide = width >= height
    length = max(width, height)
    scaled = max(crop_size, round(crop_size * length / side))
    places = np.array([0, (scaled - crop_size) // 2, scaled - crop_size], np.int64)
    zeros = np.zeros(3, np.int64)
    if wide:
        corners = np.stack([zeros, places], axis=1)
        return EvalGeometry(Box(top, 0, side, width), crop_size, scaled, corners)
    corners = np.stack([places, zeros], axis=1)
    return EvalGeometry(Box(0, left, height, side), scaled, crop_size, corners)


def _side(height: int, width: int, crop_size: int, short_side: int) -> int:
    """Side of the crop in source pixels, even."""
    short = min(height, width)
    return max(1, min(short, max(2, round(crop_size * short / short_side / 2) * 2)) // 2 * 2)


def scale(plane: np.ndarray, out: np.ndarray) -> None:
    """Scales an (H, W) or (H, W, C) uint8 or uint16 picture to the size of `out`, and into it.

    Bilinear. While the picture is more than twice the size, it is halved first, each pixel the
    mean of four, so that no pixel is passed over.
    """
    height, width = out.shape[:2]
    while plane.shape[0] >= 2 * height and plane.shape[1] >= 2 * width and plane.shape[0] > 1:
        half = (plane.shape[1] // 2, plane.shape[0] // 2)
        plane = cv2.resize(plane, half, interpolation=cv2.INTER_AREA)
    if plane.shape[:2] == (height, width):
        out[...] = plane
    else:
        cv2.resize(plane, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)


def cut_frames(frames: np.ndarray, box: Box, out: np.ndarray) -> None:
    """Cuts a box from whole frames and scales it into `out`.

    Args:
        frames: (T, H, W, 3) uint8.
        box: What to cut.
        out: (T, h, w, 3) uint8, C-contiguous.
    """
    rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
    for frame, place in zip(frames[:, rows, columns], out, strict=True):
        scale(frame, place)
