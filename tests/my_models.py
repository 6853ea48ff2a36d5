"""A user's own model, as small as a network with every kind of state can be."""

import os
import time

import torch
from torch import nn


def tiny(*, num_classes: int, width: int = 8, dropout: float = 0.2) -> nn.Sequential:
    """Maps (B, 3, T, H, W) to (B, num_classes) logits."""
    return nn.Sequential(
        nn.Conv3d(3, width, (3, 3, 3), stride=(1, 2, 2), padding=1, bias=False),
        nn.BatchNorm3d(width),
        nn.ReLU(),
        nn.Conv3d(width, 2 * width, (3, 3, 3), stride=(2, 2, 2), padding=1, bias=False),
        nn.BatchNorm3d(2 * width),
        nn.ReLU(),
        nn.AdaptiveAvgPool3d(1),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(2 * width, num_classes),
    )


def tiny_without_batch_norm(*, num_classes: int, width: int = 8, dropout: float = 0.0) -> nn.Module:
    """As `tiny`, each clip's result independent of the others in the batch."""
    layers = [
        nn.GroupNorm(2, layer.num_features) if isinstance(layer, nn.BatchNorm3d) else layer
        for layer in tiny(num_classes=num_classes, width=width, dropout=dropout)
    ]
    return nn.Sequential(*layers)


def unhurried(*, num_classes: int, seconds: float, **options: float) -> nn.Module:
    """As `tiny`, and each step takes so many seconds more."""
    network = tiny(num_classes=num_classes, **options)  # type: ignore[arg-type]
    network.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    return network


class Overflows(nn.Module):
    """As `tiny`, but a white clip overflows, as an unlucky input does in low precision."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        white = video.flatten(1).min(dim=1).values > 2.0
        return self.network(torch.where(white[:, None, None, None, None], video * 1e38, video))


def overflowing(*, num_classes: int) -> nn.Module:
    """Maps (B, 3, T, H, W) to (B, num_classes) logits, not finite for a white clip."""
    return Overflows(tiny(num_classes=num_classes, dropout=0.0))


class Tokens(nn.Module):
    """A transformer as small as one with blocks can be."""

    def __init__(self, num_classes: int, width: int, depth: int, dropout: float) -> None:
        super().__init__()
        self.patches = nn.Conv3d(3, width, (2, 8, 8), stride=(2, 8, 8))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout, batch_first=True)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(video).flatten(2).transpose(1, 2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens.mean(1)))


def tokens(*, num_classes: int, width: int = 32, depth: int = 3, dropout: float = 0.1) -> nn.Module:
    """Maps (B, 3, T, H, W) to (B, num_classes) logits; T even, H and W multiples of 8."""
    return Tokens(num_classes, width, depth, dropout)


class Troubled(nn.Module):
    """As `tiny`, but at a step of one process something goes wrong in the forward pass."""

    def __init__(self, network: nn.Module, trouble: str, rank: int, calls: int) -> None:
        super().__init__()
        self.network, self.trouble, self.left = network, trouble, calls
        self.here = os.environ.get("RANK", "0") == str(rank)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        self.left -= self.training
        if self.here and self.left == 0 and self.trouble == "raise":
            raise ZeroDivisionError("a bug of this model")
        if self.here and self.left == 0 and self.trouble == "hang":
            time.sleep(3600)
        return self.network(video)


def troubled(*, num_classes: int, trouble: str, rank: int = 1, calls: int = 3) -> nn.Module:
    """Maps (B, 3, T, H, W) to (B, num_classes) logits, as long as nothing goes wrong."""
    network = tiny_without_batch_norm(num_classes=num_classes)
    return Troubled(network, trouble, rank, calls)
