"""What networks from Hugging Face transformers share: sizes, drop path, and our kind of clip."""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath
from torch import nn

from vidtrain.models.arguments import choose, rate
from vidtrain.models.clip_size import fix_clip_size

PATCH = 16

# Width, layers, heads and width of the MLP of the vision transformers of the literature: s is
# DeiT's (Touvron et al., 2021, table 1), b, l and h are those of Dosovitskiy et al., ICLR 2021,
# table 1, and g is V-JEPA 2's (facebookresearch/vjepa2, src/models/vision_transformer.py).
SIZES = {
    "s": (384, 12, 6, 1536),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
    "g": (1408, 40, 22, 6144),
}


class OnClips(nn.Module):
    """Gives a video classifier of transformers our clips, and returns nothing but its logits.

    Args:
        net: Classifier of transformers: the only part with weights.
        token_grid: Patches of a clip (T, H, W), from which weights of another size are fitted.
        dropout: Rate before the last layer.
    """

    def __init__(self, net: Any, *, token_grid: tuple[int, int, int], dropout: float) -> None:
        super().__init__()
        self.net = net
        self.token_grid = token_grid
        self.dropout = nn.Dropout(dropout)
        net.classifier.register_forward_pre_hook(self._drop)

    def _drop(self, classifier: nn.Module, args: tuple[torch.Tensor]) -> torch.Tensor:
        return self.dropout(args[0])

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Maps (B, 3, T, H, W) to (B, num_classes) logits."""
        return self.net(video.transpose(1, 2)).logits


def vit(version: str) -> dict[str, int]:
    """Returns the numbers of a vision transformer as transformers' configs name them.

    Raises:
        UsageError: There is no such version.
    """
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    return dict(zip(names, choose("version", version, SIZES), strict=True))


def drop_paths(layers: nn.ModuleList, *, highest: float, branches: Sequence[str]) -> None:
    """Puts drop path where the residual branches of layers end in an inactive Dropout.

    Args:
        layers: Layers of the transformer, changed in place.
        highest: Rate of the last layer; grows linearly from 0 at the first.
        branches: Names of the modules in a layer that the residual branches end in.

    Raises:
        UsageError: The rate is outside [0, 1).

    Source: Huang et al., ECCV 2016, §3.
    """
    rate("drop_path", highest)
    for index, layer in enumerate(layers):
        for branch in branches:
            layer.set_submodule(branch, DropPath(highest * index / max(1, len(layers) - 1)))


def on_clips(
    net: Any, *, family: str, num_frames: int, crop_size: int, tubelet: int = 2, dropout: float
) -> nn.Module:
    """Returns the network that takes our clips, of one size.

    Args:
        net: Classifier of transformers.
        family: Name of the network in messages.
        num_frames: T of its clips.
        crop_size: H and W of its clips, in pixels.
        tubelet: Frames of a patch.
        dropout: Rate before the classifier.

    Raises:
        UsageError: The rate is outside [0, 1); in its forward, for clips of another size.
    """
    side = crop_size // PATCH
    grid = (num_frames // tubelet, side, side)
    clips = OnClips(net, token_grid=grid, dropout=rate("dropout", dropout))
    fix_clip_size(clips, num_frames=num_frames, crop_size=crop_size, family=family)
    return clips
