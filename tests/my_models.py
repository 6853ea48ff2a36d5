"""A user's own model, as small as a network with every kind of state can be."""

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
