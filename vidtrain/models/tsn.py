"""Temporal Segment Network: an image backbone over frames spread over the whole video."""

from typing import Any

import timm
import torch
import torchvision
from torch import nn

from vidtrain.errors import UsageError, did_you_mean
from vidtrain.models.arguments import rate


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


def tsn(num_classes: int, *, backbone: str, dropout: float = 0.4) -> nn.Module:
    """Builds a TSN on an image backbone, for any number of segments.

    Args:
        num_classes: Number of logits.
        backbone: Name of a timm model, with or without a weight tag (resnet50,
            resnet50.a1_in1k), or googlenet. Transformers take the one crop size of their name.
        dropout: Rate before the classifier.

    Raises:
        UsageError: There is no such model, or dropout is outside [0, 1).

    Source: Wang et al., ECCV 2016, §3.1, average consensus; initial classifier and dropout as in
    MMAction2's tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb.
    """
    rate("dropout", dropout)
    if backbone == "googlenet":
        net, num_features = _googlenet(), 1024
    else:
        net = _timm_backbone(backbone)
        num_features = net.head_hidden_size
    return TSN(net, num_features=num_features, num_classes=num_classes, dropout=dropout)


def _timm_backbone(name: str) -> Any:
    names = [*timm.list_models(), *timm.list_models(pretrained=True)]  # the latter with their tags
    if name not in names:
        hint = did_you_mean(name, names) or "see timm.list_models()"
        raise UsageError(f"timm has no image model named {name!r}; {hint}")
    return timm.create_model(name, pretrained=False, num_classes=0)


def _googlenet() -> nn.Module:
    """GoogLeNet (Inception v1), which timm lacks, from torchvision, without its side classifiers.

    Source: Szegedy et al., CVPR 2015, §5, with batch normalisation.
    """
    net = torchvision.models.googlenet(
        weights=None, aux_logits=False, init_weights=True, transform_input=False
    )
    net.dropout = net.fc = nn.Identity()  # TSN has its own
    return net
