"""Hiera for video, on timm's definitions."""

from typing import Any

from timm.models.hiera import Hiera
from torch import nn

from vidtrain.models.arguments import choose, rate
from vidtrain.models.clip_size import fix_clip_size, tiled

# Channels and heads of the first stage, blocks of each stage.
_VERSIONS = {
    "tiny": (96, 1, (1, 2, 7, 2)),
    "small": (96, 1, (1, 2, 11, 2)),
    "base": (96, 1, (2, 3, 16, 3)),
    "base_plus": (112, 2, (2, 3, 16, 3)),
    "large": (144, 2, (2, 6, 36, 4)),
    "huge": (256, 4, (2, 6, 36, 4)),
}


def hiera(
    num_classes: int,
    *,
    version: str = "base",
    num_frames: int = 16,
    crop_size: int = 224,
    dropout: float = 0.0,
    drop_path: float = 0.1,
) -> nn.Module:
    """Builds Hiera for clips of one size, to which its position embeddings belong.

    Args:
        num_classes: Number of logits.
        version: tiny, small, base, base_plus, large or huge.
        num_frames: Length of the clips, a multiple of 2.
        crop_size: Height and width of the clips in pixels, a multiple of 32.
        dropout: Rate before the classifier.
        drop_path: Rate at which the last block is skipped; grows linearly from 0 at the first.

    Returns:
        timm's Hiera; it raises UsageError for clips of another size.

    Raises:
        UsageError: Another version, sizes that units of 2x32x32 do not tile, or a rate outside
            [0, 1).

    Source: Ryali et al., ICML 2023, §3; the 16x224 models of facebookresearch/hiera, of which
    tiny and small are published for images only.
    """
    width, heads, stages = choose("version", version, _VERSIONS)
    size = tiled("Hiera", num_frames=num_frames, crop_size=crop_size, frames_by=2, pixels_by=32)
    net: Any = Hiera(
        img_size=size,
        embed_dim=width,
        num_heads=heads,
        stages=stages,
        num_classes=num_classes,
        q_stride=(1, 2, 2),
        mask_unit_size=(1, 8, 8),
        patch_kernel=(3, 7, 7),
        patch_stride=(2, 4, 4),
        patch_padding=(1, 3, 3),
        sep_pos_embed=True,
        drop_rate=rate("dropout", dropout),
        drop_path_rate=rate("drop_path", drop_path),
    )
    for block in net.blocks:
        # Within units, queries have five axes: no fused kernel takes those, nor does ONNX.
        block.attn.fused_attn = not block.attn.use_mask_unit_attn
    net.token_grid = (num_frames // 2, crop_size // 4, crop_size // 4)
    fix_clip_size(net, num_frames=num_frames, crop_size=crop_size, family="Hiera")
    return net
