"""MViT, on PyTorchVideo's definitions."""

import torch
from torch import nn

from vidtrain.models.arguments import rate
from vidtrain.models.clip_size import fix_clip_size, tiled
from vidtrain.models.mend import mend
from vidtrain.models.pytorchvideo import hub


def mvit(
    num_classes: int,
    *,
    num_frames: int = 16,
    crop_size: int = 224,
    dropout: float = 0.5,
    drop_path: float = 0.2,
) -> nn.Module:
    """Builds MViT-B for clips of one size, to which its position embeddings belong.

    Args:
        num_classes: Number of logits.
        num_frames: Length of the clips, a multiple of 2.
        crop_size: Height and width of the clips in pixels, a multiple of 4.
        dropout: Rate before the classifier.
        drop_path: Rate at which the last block is skipped; grows linearly from 0 at the first.

    Returns:
        A network that raises UsageError for clips of another size.

    Raises:
        UsageError: Sizes that patches of 2x4x4 do not tile, or a rate outside [0, 1).

    Source: Fan et al., ICCV 2021, §3; PySlowFast MVIT_B_16x4_CONV. PyTorchVideo's MVIT_B_32x3 is
    the same network for clips of 32 frames.
    """
    tiled("MViT", num_frames=num_frames, crop_size=crop_size, frames_by=2, pixels_by=4)
    # PyTorchVideo reads numbers out of small tensors while it builds, which have none on meta.
    device = torch.get_default_device()
    with torch.device("cpu"):
        net = hub.mvit_base_16x4(
            head_num_classes=num_classes,
            temporal_size=num_frames,
            spatial_size=crop_size,
            head_dropout_rate=rate("dropout", dropout),
            droppath_rate_block=rate("drop_path", drop_path),
        )
    net.token_grid = (num_frames // 2, crop_size // 4, crop_size // 4)
    fix_clip_size(net, num_frames=num_frames, crop_size=crop_size, family="MViT")
    return mend(net).to(device)
