"""What happens to a batch of clips on the device, between the loader and the model."""

from collections.abc import Sequence

import torch


def to_input(
    clips: torch.Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    flips: torch.Tensor | None = None,
) -> torch.Tensor:
    """Turns a batch of raw clips into what models take.

    Args:
        clips: (B, T, H, W, 3) uint8 RGB.
        mean: Per-channel mean, for values in [0, 1].
        std: Per-channel standard deviation, for values in [0, 1].
        flips: (B,) bool, which clips to mirror left to right; None: none.

    Returns:
        (B, 3, T, H, W) float32, contiguous, normalised.
    """
    video = clips.permute(0, 4, 1, 2, 3).float()
    if flips is not None:
        video = torch.where(flips.view(-1, 1, 1, 1, 1), video.flip(-1), video)
    shape = (1, -1, 1, 1, 1)
    centre = torch.tensor(mean, device=video.device).view(shape) * 255.0
    scale = torch.tensor(std, device=video.device).view(shape) * 255.0
    return ((video - centre) / scale).contiguous()


def to_pixels(video: torch.Tensor, *, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Undoes the normalisation for a person's eyes: (B, 3, T, H, W) to (B, T, H, W, 3) uint8."""
    shape = (1, -1, 1, 1, 1)
    centre = torch.tensor(mean, device=video.device).view(shape)
    scale = torch.tensor(std, device=video.device).view(shape)
    pixels = (video * scale + centre).clamp(0, 1) * 255.0
    return pixels.round().to(torch.uint8).permute(0, 2, 3, 4, 1).cpu()
