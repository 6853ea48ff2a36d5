"""Mixup and cutmix on a batch of clips.

A clip's partner is its neighbour in the order of the epoch (2k with 2k+1). The order is shuffled
anew each epoch, so pairs are random; and the same pairs are mixed in the same way however the
global batch is split over processes and micro-batches: what is drawn depends on the optimizer step,
or on the clip, alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from vidtrain import randomness
from vidtrain.errors import UsageError

Box = tuple[int, int, int, int]  # top, bottom, left, right


@dataclass(frozen=True)
class Mix:
    """How clips are mixed.

    Attributes:
        mixup_alpha: Beta distribution parameter of mixup; 0: no mixup.
        cutmix_alpha: Beta distribution parameter of cutmix; 0: no cutmix.
        switch_prob: Probability of cutmix where both are on.
        prob: Probability of mixing at all.
        mode: batch: one draw for all clips of an optimizer step. sample: one for each clip.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    switch_prob: float = 0.5
    prob: float = 1.0
    mode: Literal["batch", "sample"] = "batch"

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


@dataclass(frozen=True)
class Drawn:
    """What is to be done.

    Attributes:
        keep: Share of the clip itself, in [0, 1].
        box: Part that is the partner's, with cutmix; None: both are blended.
    """

    keep: float
    box: Box | None = None


def mix_clips(
    clips: torch.Tensor, targets: torch.Tensor, mix: Mix, rng: np.random.Generator,
    draws: Sequence[int] | torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Mixes each clip and its target with its neighbour's.

    Args:
        clips: (B, C, T, H, W) float; B must be even.
        targets: (B, classes) float.
        mix: What to draw from.
        rng: Generator of this optimizer step, the same for all its micro-batches and ranks.
        draws: (B,) seed of each clip, for mode sample.

    Returns:
        Mixed clips and targets of the same shapes. A cutmix box covers all frames of a clip.

    Source: Zhang et al., mixup, ICLR 2018, eq. 1; Yun et al., CutMix, ICCV 2019, eqs. 1 and 2, with
    the ratio corrected to the box after clipping at the border; mode sample is mode elem of
    timm.data.Mixup.
    """
    height, width = clips.shape[-2:]
    if mix.mode == "batch":
        drawn = draw(mix, height, width, rng)
        return (clips, targets) if drawn is None else _mixed(clips, targets, drawn)
    assert draws is not None, "mode sample draws from each clip's own seed"
    rngs = (randomness.generator(int(seed), randomness.MIX) for seed in draws)
    each = [draw(mix, height, width, of_clip) for of_clip in rngs]
    return _mixed_each(clips, targets, [one or Drawn(1.0) for one in each])


def draw(mix: Mix, height: int, width: int, rng: np.random.Generator) -> Drawn | None:
    """Draws how to mix clips of a size in pixels; None: not at all."""
    if rng.random() >= mix.prob:
        return None
    use_cutmix = mix.cutmix_alpha > 0 and (mix.mixup_alpha == 0 or rng.random() < mix.switch_prob)
    alpha = mix.cutmix_alpha if use_cutmix else mix.mixup_alpha
    keep = float(rng.beta(alpha, alpha))
    if not use_cutmix:
        return Drawn(keep)
    top, bottom, left, right = box = _box(height, width, keep, rng)
    return Drawn(1.0 - (bottom - top) * (right - left) / (height * width), box)


def _mixed(
    clips: torch.Tensor, targets: torch.Tensor, drawn: Drawn
) -> tuple[torch.Tensor, torch.Tensor]:
    partner, keep = _partner(clips), drawn.keep
    if drawn.box is not None:
        top, bottom, left, right = drawn.box
        mixed = clips.clone()
        mixed[..., top:bottom, left:right] = clips[partner][..., top:bottom, left:right]
    else:
        mixed = keep * clips + (1.0 - keep) * clips[partner]
    return mixed, keep * targets + (1.0 - keep) * targets[partner]


def _mixed_each(
    clips: torch.Tensor, targets: torch.Tensor, drawn: list[Drawn]
) -> tuple[torch.Tensor, torch.Tensor]:
    partner = _partner(clips)
    blend = [1.0 if one.box else one.keep for one in drawn]
    keep = torch.tensor(blend, dtype=clips.dtype, device=clips.device).view(-1, 1, 1, 1, 1)
    mixed = keep * clips + (1.0 - keep) * clips[partner]
    for place, one in enumerate(drawn):
        if one.box is not None:
            top, bottom, left, right = one.box
            other = clips[place ^ 1]
            mixed[place, ..., top:bottom, left:right] = other[..., top:bottom, left:right]
    shares = [one.keep for one in drawn]
    share = torch.tensor(shares, dtype=targets.dtype, device=targets.device).view(-1, 1)
    return mixed, share * targets + (1.0 - share) * targets[partner]


def _partner(clips: torch.Tensor) -> torch.Tensor:
    return torch.arange(len(clips), device=clips.device) ^ 1


def _box(height: int, width: int, keep: float, rng: np.random.Generator) -> Box:
    """Returns a box of share 1 - keep around a uniform centre."""
    half = 0.5 * (1.0 - keep) ** 0.5
    row, column = rng.integers(height), rng.integers(width)
    edges = (row - half * height, row + half * height, column - half * width, column + half * width)
    limits = (height, height, width, width)
    top, bottom, left, right = (
        int(np.clip(round(e), 0, limit)) for e, limit in zip(edges, limits, strict=True)
    )
    return top, bottom, left, right
