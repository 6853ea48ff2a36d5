"""Mixup and cutmix on a batch of clips.

A sample's partner is its neighbour in the order of the epoch (2k with 2k+1), and the mixing ratio
is drawn once per optimizer step. The order is shuffled anew each epoch, so pairs are random; and
the same pairs are mixed in the same way however the global batch is split over processes and
micro-batches.
"""

from dataclasses import dataclass

import numpy as np
import torch

from vidtrain.errors import UsageError


@dataclass(frozen=True)
class Mix:
    """How a step mixes: draws happen in `mix`, from the step's own generator.

    Attributes:
        mixup_alpha: Beta distribution parameter of mixup; 0: no mixup.
        cutmix_alpha: Beta distribution parameter of cutmix; 0: no cutmix.
        switch_prob: Probability of cutmix where both are on.
        prob: Probability that a step mixes at all.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    switch_prob: float = 0.5
    prob: float = 1.0

    def __post_init__(self) -> None:
        """Raises UsageError for values out of range."""
        if self.mixup_alpha < 0 or self.cutmix_alpha < 0:
            raise UsageError(
                f"mix.mixup_alpha={self.mixup_alpha} and mix.cutmix_alpha={self.cutmix_alpha} "
                "must be >= 0; use mix=none to mix nothing"
            )
        if self.mixup_alpha == self.cutmix_alpha == 0:
            raise UsageError("mix has neither mixup_alpha nor cutmix_alpha; use mix=none")
        for name in ("switch_prob", "prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"mix.{name}={getattr(self, name)} must lie in [0, 1]")


def mix_clips(
    clips: torch.Tensor, targets: torch.Tensor, mix: Mix, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixes each clip and its target with its neighbour's.

    Args:
        clips: (B, C, T, H, W) float; B must be even.
        targets: (B, classes) float, rows sum to 1.
        mix: What to draw from.
        rng: Generator of this optimizer step, the same for all its micro-batches and ranks.

    Returns:
        Mixed clips and targets of the same shapes. A cutmix box covers all frames of a clip.

    Source: Zhang et al., mixup, ICLR 2018, eq. 1; Yun et al., CutMix, ICCV 2019, eqs. 1 and 2, with
    the ratio corrected to the box after clipping at the border.
    """
    if rng.random() >= mix.prob:
        return clips, targets
    use_cutmix = mix.cutmix_alpha > 0 and (mix.mixup_alpha == 0 or rng.random() < mix.switch_prob)
    alpha = mix.cutmix_alpha if use_cutmix else mix.mixup_alpha
    keep = float(rng.beta(alpha, alpha))
    partner = torch.arange(len(clips), device=clips.device) ^ 1
    if use_cutmix:
        top, bottom, left, right = _box(clips.shape[-2], clips.shape[-1], keep, rng)
        mixed = clips.clone()
        mixed[..., top:bottom, left:right] = clips[partner][..., top:bottom, left:right]
        keep = 1.0 - (bottom - top) * (right - left) / (clips.shape[-2] * clips.shape[-1])
    else:
        mixed = keep * clips + (1.0 - keep) * clips[partner]
    return mixed, keep * targets + (1.0 - keep) * targets[partner]


def _box(height: int, width: int, keep: float, rng: np.random.Generator) -> tuple[int, ...]:
    """Returns top, bottom, left, right of a box of share 1 - keep around a uniform centre."""
    half = 0.5 * (1.0 - keep) ** 0.5
    row, column = rng.integers(height), rng.integers(width)
    edges = (row - half * height, row + half * height, column - half * width, column + half * width)
    limits = (height, height, width, width)
    return tuple(int(np.clip(round(e), 0, limit)) for e, limit in zip(edges, limits, strict=True))
