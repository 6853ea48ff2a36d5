"""RandAugment, TrivialAugment and AugMix for clips.

An operation is drawn once per clip and is the same mapping of pixels in all its frames: a frame's
own histogram or mean never decides, the clip's does. All draws come from the generator given.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F


class _Space(NamedTuple):
    """The operations of a policy and how far they go at strength 1.

    Attributes:
        names: The operations.
        shear: Tangent of the angle.
        shift: Share of the side.
        turn: Degrees.
        enhance: Distance of a factor from 1.
        bits: Bits a colour keeps when posterised, at strength 0 and at strength 1.
    """

    names: tuple[str, ...]
    shear: float
    shift: float
    turn: float
    enhance: float
    bits: tuple[int, int]


class _Operation(NamedTuple):
    """One operation as drawn; what the amount counts depends on the name."""

    name: str
    amount: float


_GEOMETRY = ("shear_x", "shear_y", "shift_x", "shift_y", "turn")
_ENHANCE = {
    "saturation": F.adjust_saturation,
    "contrast": F.adjust_contrast,
    "brightness": F.adjust_brightness,
}
_TONES = ("autocontrast", "equalize", "posterize", "solarize")
_RANDAUGMENT = _Space(
    (*_GEOMETRY, *_ENHANCE, "sharpness", *_TONES, "invert", "solarize_add"),
    shear=0.3, shift=0.45, turn=30, enhance=0.9, bits=(4, 0),
)  # fmt: skip
_TRIVIALAUGMENT = _Space(
    ("identity", *_GEOMETRY, *_ENHANCE, "sharpness", *_TONES),
    shear=0.99, shift=32 / 224, turn=135, enhance=0.99, bits=(8, 2),
)  # fmt: skip
_AUGMIX = _Space(
    (*_GEOMETRY, *_TONES), shear=0.3, shift=1 / 3, turn=30, enhance=0, bits=(4, 0)
)  # fmt: skip


def randaugment(
    clip: torch.Tensor,
    rng: np.random.Generator,
    fill: torch.Tensor,
    *,
    num_ops: int,
    magnitude: float,
    magnitude_std: float,
    op_prob: float,
) -> torch.Tensor:
    """Applies `num_ops` operations, each with probability `op_prob`, one after the other.

    Args:
        clip: (3, T, H, W) uint8 RGB.
        rng: Generator of this clip.
        fill: (3, 1, 1, 1) float, colour of what a shear, shift or turn brings into view, 0 to 255.
        num_ops: Operations drawn, with repetition.
        magnitude: Mean strength, 0 to 10.
        magnitude_std: Standard deviation of the strength of one operation.
        op_prob: Probability that a drawn operation is applied.

    Returns:
        (3, T, H, W) uint8.

    Source: Cubuk et al., RandAugment, NeurIPS 2020; operations and strengths of timm's
    `rand-mM-nN-mstdS-inc1`, which the published video recipes use.
    """
    for _ in range(num_ops):
        level = float(np.clip(rng.normal(magnitude, magnitude_std) / 10, 0, 1))
        operation = _draw(_RANDAUGMENT, level, rng)
        if rng.random() < op_prob:
            clip = _operate(clip, operation, fill)
    return clip


def trivialaugment(
    clip: torch.Tensor, rng: np.random.Generator, fill: torch.Tensor
) -> torch.Tensor:
    """Applies one operation of any of 31 strengths; arguments and result as `randaugment`.

    Source: Müller and Hutter, TrivialAugment, ICCV 2021: the wide set. Its shift of 32 pixels is
    taken as a share of frames of 224.
    """
    return _operate(clip, _draw(_TRIVIALAUGMENT, float(rng.integers(31)) / 30, rng), fill)


def augmix(
    clip: torch.Tensor, rng: np.random.Generator, fill: torch.Tensor, *, severity: float
) -> torch.Tensor:
    """Blends a clip with three chains of one to three operations; clip and result as `randaugment`.

    Args:
        clip: (3, T, H, W) uint8 RGB.
        rng: Generator of this clip.
        fill: As for `randaugment`.
        severity: Largest strength, 0.1 to 10; each operation draws its own below it.

    Source: Hendrycks et al., AugMix, ICLR 2020, algorithm 1, with all alphas 1. The loss between
    three versions of a sample is not part of it.
    """
    share = float(rng.random())  # Beta(1, 1)
    mixed = clip.float().mul_(1.0 - share)
    for weight in rng.dirichlet([1.0, 1.0, 1.0]).tolist():
        chain = clip
        for _ in range(int(rng.integers(1, 4))):
            level = float(rng.uniform(0.1, severity)) / 10
            chain = _operate(chain, _draw(_AUGMIX, level, rng), fill)
        mixed.add_(chain, alpha=share * weight)
    return _to_bytes(mixed)


def one_image(clip: torch.Tensor) -> torch.Tensor:
    """Puts the frames of a clip under one another: (3, T, H, W) to (3, T * H, W).

    An operation on colours then meets the clip as a whole.
    """
    return clip.reshape(3, -1, clip.shape[-1])


def _draw(space: _Space, level: float, rng: np.random.Generator) -> _Operation:
    """Draws an operation and its direction, for a strength in [0, 1]."""
    name = space.names[int(rng.integers(len(space.names)))]
    signed = level if rng.random() < 0.5 else -level
    amount = 0.0
    if name.startswith("shear"):
        amount = math.degrees(math.atan(signed * space.shear))
    elif name.startswith("shift"):
        amount = signed * space.shift
    elif name == "turn":
        amount = signed * space.turn
    elif name in _ENHANCE or name == "sharpness":
        amount = 1.0 + signed * space.enhance
    elif name == "posterize":
        most, least = space.bits
        amount = most - int(level * (most - least))
    elif name == "solarize":
        amount = 256 - int(256 * level)
    elif name == "solarize_add":
        amount = int(110 * level)
    return _Operation(name, amount)


def _operate(clip: torch.Tensor, operation: _Operation, fill: torch.Tensor) -> torch.Tensor:
    """Applies one operation to all frames of (3, T, H, W) uint8."""
    name, amount = operation
    if name in _GEOMETRY:
        return _move(clip, name, amount, fill)
    if name == "sharpness":  # not of one tall image: frames are no neighbours
        return _sharpen(clip, amount)
    image = one_image(clip)
    if name in _ENHANCE:
        image = _ENHANCE[name](image, amount)
    elif name == "autocontrast":
        image = F.autocontrast(image)
    elif name == "equalize":
        image = F.equalize(image)
    elif name == "posterize":
        image = F.posterize(image, int(amount))
    elif name == "solarize" and amount < 256:
        image = F.solarize(image, amount)
    elif name == "solarize_add":
        image = torch.where(image < 128, image + int(amount), image)
    elif name == "invert":
        image = F.invert(image)
    return image.reshape(clip.shape)


def _move(clip: torch.Tensor, name: str, amount: float, fill: torch.Tensor) -> torch.Tensor:
    """Shears by degrees about the top left corner, shifts by a share of the side, or turns."""
    height, width = clip.shape[-2:]
    angle, shift, shear = 0.0, [0, 0], [0.0, 0.0]
    axis = 1 if name.endswith("_y") else 0
    if name.startswith("shear"):
        shear[axis] = amount
    elif name.startswith("shift"):
        shift[axis] = round(amount * (width, height)[axis])
    else:
        angle = amount
    # All planes are channels of one image: where a pixel comes from is worked out once. With the
    # fill taken off, the zeros that come in from outside are the fill, at soft borders too.
    planes = (clip - fill).reshape(1, -1, height, width)
    moved = F.affine(
        planes, angle=angle, translate=shift, scale=1.0, shear=shear,
        center=[0.0, 0.0] if name.startswith("shear") else None,
        interpolation=InterpolationMode.BILINEAR,
    )  # fmt: skip
    return _to_bytes(moved.reshape(clip.shape) + fill)


def _sharpen(clip: torch.Tensor, factor: float) -> torch.Tensor:
    """Blends each frame with its blur; the border stays.

    As torchvision's `adjust_sharpness` bit for bit, at a quarter of its time on a CPU.
    """
    video = clip.float()
    inner = video[..., 1:-1, 1:-1]
    rows = video[..., :-2] + video[..., 1:-1] + video[..., 2:]
    total = rows[..., :-2, :] + rows[..., 1:-1, :] + rows[..., 2:, :]
    blurred = total.add_(inner, alpha=4).div_(13).round_()
    inner.copy_(blurred.add_(inner - blurred, alpha=factor))
    return video.clamp_(0, 255).to(torch.uint8)


def _to_bytes(video: torch.Tensor) -> torch.Tensor:
    return video.round_().clamp_(0, 255).to(torch.uint8)
