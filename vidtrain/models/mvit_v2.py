"""MViTv2, on torchvision's definitions."""

from torch import nn
from torchvision.models.video.mvit import MSBlockConfig, MViT

from vidtrain.models.arguments import choose, rate
from vidtrain.models.clip_size import fix_clip_size, tiled

# Number of blocks, and the blocks that halve height and width and double channels and heads.
_VERSIONS = {"s": (16, (1, 3, 14)), "b": (24, (2, 5, 21))}


def mvit_v2(
    num_classes: int,
    *,
    version: str = "s",
    num_frames: int = 16,
    crop_size: int = 224,
    dropout: float = 0.5,
    drop_path: float = 0.2,
) -> nn.Module:
    """Builds MViTv2 for clips of one size, to which its relative position tables belong.

    Args:
        num_classes: Number of logits.
        version: s (16 blocks) or b (24 blocks).
        num_frames: Length of the clips, a multiple of 2.
        crop_size: Height and width of the clips in pixels, a multiple of 4.
        dropout: Rate before the classifier.
        drop_path: Rate at which the last block is skipped; grows linearly from 0 at the first.

    Returns:
        torchvision's MViT; it raises UsageError for clips of another size.

    Raises:
        UsageError: Another version, sizes that patches of 2x4x4 do not tile, or a rate outside
            [0, 1).

    Source: Li et al., CVPR 2022, §4; PySlowFast MVITv2_S_16x4, MVITv2_B_32x3.
    """
    depth, steps = choose("version", version, _VERSIONS)
    size = tiled("MViTv2", num_frames=num_frames, crop_size=crop_size, frames_by=2, pixels_by=4)
    net = MViT(
        spatial_size=size[1:],
        temporal_size=num_frames,
        block_setting=_blocks(depth, steps=steps),
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        dropout=rate("dropout", dropout),
        stochastic_depth_prob=rate("drop_path", drop_path),
        num_classes=num_classes,
    )
    fix_clip_size(net, num_frames=num_frames, crop_size=crop_size, family="MViTv2")
    return net


def _blocks(depth: int, *, steps: tuple[int, ...]) -> list[MSBlockConfig]:
    """Returns the settings of all blocks: the pooled key and value keep their size throughout."""
    blocks, width, heads, kv_stride = [], 96, 1, 8
    for block in range(depth):
        stride, inputs = 1, width
        if block in steps:
            stride, width, heads, kv_stride = 2, 2 * width, 2 * heads, kv_stride // 2
        blocks.append(
            MSBlockConfig(
                num_heads=heads,
                input_channels=inputs,
                output_channels=width,
                kernel_q=[3, 3, 3],
                kernel_kv=[3, 3, 3],
                stride_q=[1, stride, stride],
                stride_kv=[1, kv_stride, kv_stride],
            )
        )
    return blocks
