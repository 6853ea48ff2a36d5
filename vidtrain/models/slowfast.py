"""SlowFast, on PyTorchVideo's definitions."""

from typing import Any

import torch
from torch import nn

from vidtrain.errors import UsageError
from vidtrain.models.arguments import choose, rate
from vidtrain.models.mend import mend
from vidtrain.models.pytorchvideo import hub


class SlowFast(nn.Module):
    """SlowFast on one clip: packs the two pathways itself.

    The fast pathway gets all T frames, the slow one every alpha-th, counted from the first: 0, 4,
    8 ... 28 of 32. These are the frames on which the strided fast-to-slow convolutions are
    centred. PySlowFast and PyTorchVideo, which published the weights, spread T / alpha frames
    from the first to the last instead: 0, 4, 8, 13, 17, 22, 26, 31 of 32.

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
        features: Any = [video[:, :, :: self.alpha], video]
        for block in self.blocks:
            features = block(features)
        return features


def slowfast(num_classes: int, *, depth: int = 50, dropout: float = 0.5) -> nn.Module:
    """Builds SlowFast 8x8; clips of any size whose length is a multiple of 4.

    Args:
        num_classes: Number of logits.
        depth: Layers of the ResNet, 50 or 101.
        dropout: Rate before the classifier.

    Raises:
        UsageError: Another depth, or a dropout outside [0, 1).

    Source: Feichtenhofer et al., ICCV 2019, §3; PySlowFast SLOWFAST_8x8_R50, SLOWFAST_8x8_R101.
    """
    build = choose("depth", depth, {50: hub.slowfast_r50, 101: hub.slowfast_r101})
    net = build(model_num_class=num_classes, dropout_rate=rate("dropout", dropout))
    mend(net)
    return SlowFast(net.blocks, alpha=4)
