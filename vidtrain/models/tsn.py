"""Temporal Segment Network: an image backbone over frames spread over the whole video."""

from difflib import get_close_matches
from typing import Any

import timm
import torch
from torch import nn

from vidtrain.errors import InputError, UsageError


class TSN(nn.Module):
    """Scores every frame by itself and averages the scores.

    Args:
        backbone: Maps images (N, 3, H, W) to features (N, num_features).
        num_features: Length of a feature vector.
        num_classes: Number of logits.
        dropout: Rate before the classifier.
    """

    def __init__(
        self, backbone: nn.Module, *, num_features: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(num_features, num_classes)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Maps (B, 3, T, H, W), one frame for each of T segments, to (B, num_classes) logits."""
        batch, _, num_segments, _, _ = video.shape
        frames = video.transpose(1, 2).flatten(0, 1)
        scores = self.head(self.dropout(self.backbone(frames)))
        return scores.reshape(batch, num_segments, -1).mean(1)


def tsn(
    num_classes: int, *, backbone: str, dropout: float = 0.4, pretrained: bool = False
) -> nn.Module:
    """Builds a TSN on any of timm's image backbones, for any number of segments.

    Args:
        num_classes: Number of logits.
        backbone: Name of a timm model, with or without a weight tag (resnet50,
            resnet50.a1_in1k). Transformers take the one crop size of their name.
        dropout: Rate before the classifier.
        pretrained: Downloads timm's weights for the backbone; otherwise it starts at random.

    Raises:
        UsageError: timm has no such model, or no weights for it although `pretrained`, or
            dropout is outside [0, 1).
        InputError: The weights are neither in timm's cache nor to be downloaded.

    Source: Wang et al., ECCV 2016, §3.1, average consensus; initial classifier and dropout as in
    MMAction2's tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb.
    """
    if not 0 <= dropout < 1:
        raise UsageError(
            f"dropout={dropout} is no rate: give a number from 0 up to, not including, 1."
        )
    names, with_weights = timm.list_models(), timm.list_models(pretrained=True)
    if backbone not in names and backbone not in with_weights:
        near = get_close_matches(backbone, [*names, *with_weights], n=3)
        hint = f"the nearest names are {', '.join(near)}" if near else "see timm.list_models()"
        raise UsageError(f"timm has no image model named {backbone!r}: {hint}.")
    if pretrained and not timm.models.is_model_pretrained(backbone):
        raise UsageError(
            f"timm has no weights for {backbone}: set pretrained=false or choose another backbone."
        )
    try:
        net: Any = timm.create_model(backbone, pretrained=pretrained, num_classes=0)
    except OSError as error:
        raise InputError(
            f"The weights of {backbone} cannot be downloaded: check the connection, or set "
            f"pretrained=false ({type(error).__name__})."
        ) from error
    return TSN(net, num_features=net.head_hidden_size, num_classes=num_classes, dropout=dropout)
