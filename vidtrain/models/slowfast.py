"""SlowFast, on PyTorchVideo's definitions."""

from functools import partial
from typing import Any

import torch
from torch import nn

from vidtrain.errors import UsageError
from vidtrain.models.arguments import choose, rate
from vidtrain.models.mend import mend
from vidtrain.models.pytorchvideo import create_slowfast, hub


class SlowFast(nn.Module):
    """SlowFast on one clip: packs the two pathways itself.

    The fast pathway gets all T frames, the slow one T / alpha, spread from the first to the last
    and rounded down: 0, 4, 8, 13, 17, 22, 26, 31 of 32. PySlowFast and PyTorchVideo, which
    published the weights, take the same frames. They compute them in float32, which rounds a few
    long clips otherwise (one frame in a clip of 160), so this does it in integers.

    Args:
        blocks: Blocks of PyTorchVideo's network, taking [slow, fast].
        alpha: Frames of the fast pathway for each frame of the slow one.
    """

    def __init__(self, blocks: nn.ModuleList, *, alpha: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.alpha = alpha

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Maps (B, 3, T, H, W) to (B, num_classes) logits.

        Raises:
            UsageError: T is not a multiple of alpha.
        """
        num_frames = video.shape[2]
        if num_frames % self.alpha:
            raise UsageError(
                f"SlowFast got a clip of {num_frames} frames: its slow pathway takes one frame in "
                f"{self.alpha}, so set num_frames to a multiple of {self.alpha}."
            )
        steps = torch.arange(num_frames // self.alpha, device=video.device)
        # The last step, not the count less one: clamped as a tensor it leaves no branch to export.
        slow = steps * (num_frames - 1) // steps[-1].clamp(min=1)
        features: Any = [video.index_select(2, slow), video]
        for block in self.blocks:
            features = block(features)
        return features


def slowfast(
    num_classes: int, *, depth: int = 50, version: str = "8x8", dropout: float = 0.5
) -> nn.Module:
    """Builds SlowFast; clips of any size whose length is a multiple of alpha.

    Args:
        num_classes: Number of logits.
        depth: Layers of the ResNet, 50 or 101.
        version: Frames x stride of the slow pathway, as published: 8x8 (alpha 4), 4x16 (alpha 8,
            50 layers only) or 16x8 (alpha 4, 101 layers only, with the temporal kernels of 50).
        dropout: Rate before the classifier.

    Raises:
        UsageError: Another version or depth, or a dropout outside [0, 1).

    Source: Feichtenhofer et al., ICCV 2019, §3; PySlowFast's PyTorchVideo configs SLOWFAST_8x8_R50,
    SLOWFAST_4x16_R50, SLOWFAST_8x8_R101, SLOWFAST_16x8_R101_50_50.
    """
    four_by_sixteen = partial(
        create_slowfast,
        model_depth=50,
        slowfast_fusion_conv_kernel_size=(5, 1, 1),
        slowfast_fusion_conv_stride=(8, 1, 1),
    )
    versions = {
        "8x8": {50: hub.slowfast_r50, 101: hub.slowfast_r101},
        "4x16": {50: four_by_sixteen},
        "16x8": {101: hub.slowfast_16x8_r101_50_50},
    }
    build = choose("depth", depth, choose("version", version, versions))
    net = build(model_num_class=num_classes, dropout_rate=rate("dropout", dropout))
    mend(net)
    return SlowFast(net.blocks, alpha=8 if version == "4x16" else 4)
