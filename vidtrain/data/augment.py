"""What happens to a batch of clips on the device, between the loader and the model.

An augmentation treats all frames of a clip alike, and what it draws is a function of the clip's own
key: not of the batch, the device, the number of loader processes or a global generator.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from vidtrain import randomness
from vidtrain.data.policies import augmix, one_image, randaugment, trivialaugment
from vidtrain.errors import UsageError, did_you_mean

POLICIES = ("randaugment", "trivialaugment", "augmix")
RANGES: dict[str, tuple[float, float]] = {
    "num_ops": (1, 100), "magnitude": (0, 10), "magnitude_std": (0, 10), "op_prob": (0, 1),
    "severity": (0.1, 10), "brightness": (0, 1), "contrast": (0, 1), "saturation": (0, 1),
    "hue": (0, 0.5), "grayscale_prob": (0, 1), "erase_prob": (0, 1),
}  # fmt: skip


@dataclass(frozen=True)
class Augment:
    """How the clips of a training batch are changed; what is not asked for does not happen.

    Attributes:
        policy: randaugment, trivialaugment or augmix: operations drawn from a set; None: none.
        num_ops: Operations drawn per clip (randaugment).
        magnitude: Strength of the operations, 0 to 10 (randaugment).
        magnitude_std: Standard deviation of one operation's strength around it (randaugment).
        op_prob: Probability that a drawn operation is applied (randaugment).
        severity: Largest strength of an operation, 0.1 to 10 (augmix).
        brightness: Brightness is multiplied by 1 - brightness to 1 + brightness; 0 to 1.
        contrast: The same for contrast.
        saturation: The same for saturation.
        hue: Colours are turned by -hue to hue; 1 is once around, so 0 to 0.5.
        grayscale_prob: Probability that a clip loses its colours.
        erase_prob: Probability that a box is erased, in all frames of a clip.
        erase_scale: Smallest and largest share of the frame that is erased.
        erase_aspect: Smallest and largest height over width of the box.
        erase_mode: pixel (normal noise, the same in all frames) or const (the mean colour).
    """

    policy: str | None = None
    num_ops: int = 2
    magnitude: float = 9.0
    magnitude_std: float = 0.5
    op_prob: float = 0.5
    severity: float = 3.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grayscale_prob: float = 0.0
    erase_prob: float = 0.0
    erase_scale: tuple[float, float] = (0.02, 0.3333)
    erase_aspect: tuple[float, float] = (0.3, 3.3333)
    erase_mode: Literal["pixel", "const"] = "pixel"

    def __post_init__(self) -> None:
        """Raises UsageError for values out of range, or if nothing is asked for."""
        if self.policy is not None and self.policy not in POLICIES:
            hint = did_you_mean(self.policy, POLICIES) or f"it is one of {', '.join(POLICIES)}"
            raise UsageError(f"augment.policy={self.policy!r} is not there; {hint}")
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise UsageError(f"augment.{name}={value} must lie in [{least}, {most}]")
        for name, most in (("erase_scale", 1.0), ("erase_aspect", math.inf)):
            low, high = getattr(self, name)
            if not 0 < low <= high <= most or math.isinf(high):
                raise UsageError(
                    f"augment.{name}={[low, high]} must be a smallest and a largest value, above 0"
                    f"{' and at most 1' * (most == 1)}"
                )
        of = {**dict.fromkeys(("num_ops", "magnitude", "magnitude_std", "op_prob"), "randaugment"),
              "severity": "augmix"}  # fmt: skip
        for name, policy in of.items():
            if policy != self.policy and getattr(self, name) != getattr(type(self), name):
                raise UsageError(f"augment.{name}={getattr(self, name)} is of {policy}, and the "
                                 f"policy is {self.policy}; leave it out")  # fmt: skip
        if self.erase_mode not in ("pixel", "const"):
            raise UsageError(f"augment.erase_mode={self.erase_mode!r} must be pixel or const")
        colours = (self.brightness, self.contrast, self.saturation, self.hue, self.grayscale_prob)
        if self.policy is None and not any((*colours, self.erase_prob)):
            raise UsageError("augment changes nothing with these values; use augment=none")


def to_input(
    clips: torch.Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    flips: torch.Tensor | None = None,
    augment: Augment | None = None,
    draws: torch.Tensor | None = None,
) -> torch.Tensor:
    """Turns a batch of raw clips into what models take.

    In this order: mirrored, policy, colour jitter, grayscale, normalised, erased.

    Args:
        clips: (B, T, H, W, 3) uint8 RGB.
        mean: Per-channel mean, for values in [0, 1].
        std: Per-channel standard deviation, for values in [0, 1].
        flips: (B,) bool, which clips to mirror left to right, best left on the CPU; None: none.
        augment: What else to change; None: nothing.
        draws: (B,) int64, >= 0: the key of each clip's augmentation, needed with `augment` and best
            left on the CPU.

    Returns:
        (B, 3, T, H, W) float32, contiguous, normalised.
    """
    if flips is not None and flips.any():
        chosen = flips.to(clips.device, non_blocking=True).view(-1, 1, 1, 1, 1)
        clips = torch.where(chosen, clips.flip(3), clips)
    video = clips.permute(0, 4, 1, 2, 3).contiguous()
    centre, scale = (_by_channel(tuple(values), video.device) for values in (mean, std))
    rngs: list[np.random.Generator] = []
    if augment is not None:
        if draws is None:
            raise ValueError("augment needs draws, one key per clip")
        rngs = [randomness.generator(key, randomness.AUGMENT) for key in draws.tolist()]
        pairs = zip(video, rngs, strict=True)
        video = torch.stack([_change(clip, augment, rng, centre[0]) for clip, rng in pairs])
    video = video.float().sub_(centre).div_(scale)
    if augment is not None:
        for clip, rng in zip(video, rngs, strict=True):
            _erase(clip, augment, rng)
    return video


@lru_cache(maxsize=16)
def _by_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Returns values for [0, 1] as (1, 3, 1, 1, 1) for [0, 255]; a copy to a GPU waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device).view(1, -1, 1, 1, 1) * 255.0


def to_pixels(video: torch.Tensor, *, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Undoes the normalisation for a person's eyes: (B, 3, T, H, W) to (B, T, H, W, 3) uint8."""
    shape = (1, -1, 1, 1, 1)
    centre = torch.tensor(mean, device=video.device).view(shape)
    scale = torch.tensor(std, device=video.device).view(shape)
    pixels = (video * scale + centre).clamp(0, 1) * 255.0
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu()


def _change(
    clip: torch.Tensor, augment: Augment, rng: np.random.Generator, fill: torch.Tensor
) -> torch.Tensor:
    """Does everything but erasing to one clip, (3, T, H, W) uint8."""
    if augment.policy == "randaugment":
        clip = randaugment(
            clip, rng, fill, num_ops=augment.num_ops, magnitude=augment.magnitude,
            magnitude_std=augment.magnitude_std, op_prob=augment.op_prob,
        )  # fmt: skip
    elif augment.policy == "trivialaugment":
        clip = trivialaugment(clip, rng, fill)
    elif augment.policy == "augmix":
        clip = augmix(clip, rng, fill, severity=augment.severity)
    image = one_image(clip)
    jitter = (
        (F.adjust_brightness, 1.0, augment.brightness),
        (F.adjust_contrast, 1.0, augment.contrast),
        (F.adjust_saturation, 1.0, augment.saturation),
        (F.adjust_hue, 0.0, augment.hue),
    )
    for index in rng.permutation(len(jitter)):
        adjust, neutral, spread = jitter[index]
        if spread:
            image = adjust(image, neutral + float(rng.uniform(-spread, spread)))
    if rng.random() < augment.grayscale_prob:
        image = F.rgb_to_grayscale(image, num_output_channels=3)
    return image.reshape(clip.shape)


def _erase(clip: torch.Tensor, augment: Augment, rng: np.random.Generator) -> None:
    """Erases a box from all frames of one normalised clip, (3, T, H, W) float32, in place.

    Source: Zhong et al., Random Erasing, AAAI 2020; noise and defaults as in timm.
    """
    if rng.random() >= augment.erase_prob:
        return
    height, width = clip.shape[-2:]
    area = float(rng.uniform(*augment.erase_scale)) * height * width
    # Only aspect ratios with which a box of this area fits into the frame.
    fits = (area / width**2, height**2 / area)
    least, most = np.log(np.clip(augment.erase_aspect, *fits))
    aspect = math.exp(rng.uniform(least, most))
    rows = min(max(round(math.sqrt(area * aspect)), 1), height)
    columns = min(max(round(math.sqrt(area / aspect)), 1), width)
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    box = clip[..., top : top + rows, left : left + columns]
    if augment.erase_mode == "const":
        box.zero_()
    else:  # drawn on the CPU, so that it does not depend on the device
        noise = rng.standard_normal((3, 1, rows, columns), np.float32)
        box.copy_(torch.from_numpy(noise).to(clip.device).expand_as(box))
