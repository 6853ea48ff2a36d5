"""UniFormer: convolutions as local attention in two stages, global attention in the other two.

No library that can be installed has the video network. Names of weights are those of the
published files of Sense-X/UniFormer.
"""

from collections import OrderedDict
from collections.abc import Callable

import torch
from timm.layers import Attention, DropPath
from torch import nn

from vidtrain.models.arguments import choose, rate

_DEPTHS = {"s": (3, 4, 8, 3), "b": (5, 8, 20, 7)}
_WIDTHS = (64, 128, 320, 512)
_HEAD_WIDTH = 64


class PatchEmbed(nn.Module):
    """Strided convolution, then LayerNorm over channels: (B, C, T, H, W) to a smaller such map.

    Args:
        channels: Channels of the input and of the output.
        kernel: Kernel (time, height, width); height and width are the strides too.
        stride: Stride of time.
    """

    def __init__(
        self, channels: tuple[int, int], *, kernel: tuple[int, int, int], stride: int
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels[1])
        self.proj = nn.Conv3d(
            *channels, kernel, stride=(stride, *kernel[1:]), padding=(kernel[0] // 2, 0, 0)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the smaller map; what strides of space do not reach is left out."""
        return self.norm(self.proj(features).movedim(1, -1)).movedim(-1, 1)


class LocalBlock(nn.Module):
    """Block whose tokens meet those of a 5x5x5 neighbourhood: (B, C, T, H, W) to the same.

    Args:
        width: Channels.
        drop_path: Rate at which each of its two branches is skipped.
    """

    def __init__(self, width: int, *, drop_path: float) -> None:
        super().__init__()
        self.pos_embed = nn.Conv3d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.BatchNorm3d(width)
        self.conv1 = nn.Conv3d(width, width, 1)
        self.conv2 = nn.Conv3d(width, width, 1)
        self.attn = nn.Conv3d(width, width, 5, padding=2, groups=width)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.BatchNorm3d(width)
        self.mlp = _mlp(width, layer=_pointwise)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the map with position, neighbourhood and channels mixed in."""
        features = features + self.pos_embed(features)
        mixed = self.conv2(self.attn(self.conv1(self.norm1(features))))
        features = features + self.drop_path(mixed)
        return features + self.drop_path(self.mlp(self.norm2(features)))


class GlobalBlock(nn.Module):
    """Block whose tokens meet all of the clip: (B, C, T, H, W) to the same.

    Args:
        width: Channels, a multiple of 64, the width of a head.
        drop_path: Rate at which each of its two branches is skipped.
    """

    def __init__(self, width: int, *, drop_path: float) -> None:
        super().__init__()
        self.pos_embed = nn.Conv3d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads=width // _HEAD_WIDTH, qkv_bias=True)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _mlp(width, layer=nn.Linear)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the map with position, clip and channels mixed in."""
        features = features + self.pos_embed(features)
        tokens = features.flatten(2).transpose(1, 2)
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens)))
        tokens = tokens + self.drop_path(self.mlp(self.norm2(tokens)))
        return tokens.transpose(1, 2).reshape(features.shape)


class UniFormer(nn.Module):
    """UniFormer for clips of any size: (B, 3, T, H, W) to (B, num_classes) logits.

    Args:
        num_classes: Number of logits.
        depths: Blocks of each of the four stages.
        dropout: Rate before the classifier.
        drop_path: Rate at which the last block is skipped; grows linearly from 0 at the first.
    """

    def __init__(
        self, num_classes: int, *, depths: tuple[int, ...], dropout: float, drop_path: float
    ) -> None:
        super().__init__()
        rates = [drop_path * block / (sum(depths) - 1) for block in range(sum(depths))]
        for stage, width in enumerate(_WIDTHS):
            first = stage == 0
            embed = PatchEmbed(
                (3 if first else _WIDTHS[stage - 1], width),
                kernel=(3, 4, 4) if first else (1, 2, 2),
                stride=2 if first else 1,
            )
            self.add_module(f"patch_embed{stage + 1}", embed)
        for stage, width in enumerate(_WIDTHS):
            kind = LocalBlock if stage < 2 else GlobalBlock
            own, rates = rates[: depths[stage]], rates[depths[stage] :]
            blocks = nn.ModuleList(kind(width, drop_path=drop) for drop in own)
            self.add_module(f"blocks{stage + 1}", blocks)
        self.norm = nn.BatchNorm3d(_WIDTHS[-1])
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(_WIDTHS[-1], num_classes)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, num_classes) of clips (B, 3, T, H, W)."""
        features = video
        for stage in range(1, len(_WIDTHS) + 1):
            features = getattr(self, f"patch_embed{stage}")(features)
            for block in getattr(self, f"blocks{stage}"):
                features = block(features)
        return self.head(self.drop(self.norm(features).mean((2, 3, 4))))


def uniformer(
    num_classes: int, *, version: str = "s", dropout: float = 0.0, drop_path: float = 0.1
) -> nn.Module:
    """Builds UniFormer; clips of any size, since its position embeddings are convolutions.

    Args:
        num_classes: Number of logits.
        version: s or b.
        dropout: Rate before the classifier.
        drop_path: Rate at which the last block is skipped; grows linearly from 0 at the first.

    Raises:
        UsageError: Another version, or a rate outside [0, 1).

    Source: Li et al., ICLR 2022, §3; Sense-X/UniFormer uniformer_s16x4_k400.
    """
    return UniFormer(
        num_classes,
        depths=choose("version", version, _DEPTHS),
        dropout=rate("dropout", dropout),
        drop_path=rate("drop_path", drop_path),
    )


def _pointwise(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv3d(inputs, outputs, 1)


def _mlp(width: int, *, layer: Callable[[int, int], nn.Module]) -> nn.Module:
    parts = (("fc1", layer(width, 4 * width)), ("act", nn.GELU()), ("fc2", layer(4 * width, width)))
    return nn.Sequential(OrderedDict(parts))
