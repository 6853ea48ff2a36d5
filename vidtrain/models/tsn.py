"""Temporal Segment Network: an image backbone over frames spread over the whole video."""

from difflib import get_close_matches
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from vidtrain.errors import InputError, UsageError
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


def tsn(
    num_classes: int, *, backbone: str, dropout: float = 0.4, pretrained: bool = False
) -> nn.Module:
    """Builds a TSN on an image backbone, for any number of segments.

    Args:
        num_classes: Number of logits.
        backbone: Name of a timm model, with or without a weight tag (resnet50,
            resnet50.a1_in1k), or googlenet. Transformers take the one crop size of their name.
        dropout: Rate before the classifier.
        pretrained: Downloads timm's weights for the backbone; otherwise it starts at random.

    Raises:
        UsageError: There is no such model, or no weights for it although `pretrained`, or
            dropout is outside [0, 1).
        InputError: The weights are neither in timm's cache nor to be downloaded.

    Source: Wang et al., ECCV 2016, §3.1, average consensus; initial classifier and dropout as in
    MMAction2's tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb.
    """
    rate("dropout", dropout)
    if backbone == "googlenet":
        net, num_features = _googlenet(pretrained=pretrained), 1024
    else:
        net = _timm_backbone(backbone, pretrained=pretrained)
        num_features = net.head_hidden_size
    return TSN(net, num_features=num_features, num_classes=num_classes, dropout=dropout)


def _timm_backbone(name: str, *, pretrained: bool) -> Any:
    names, with_weights = timm.list_models(), timm.list_models(pretrained=True)
    if name not in names and name not in with_weights:
        near = get_close_matches(name, [*names, *with_weights], n=3)
        hint = f"the nearest names are {', '.join(near)}" if near else "see timm.list_models()"
        raise UsageError(f"timm has no image model named {name!r}: {hint}.")
    if pretrained and not timm.models.is_model_pretrained(name):
        raise UsageError(
            f"timm has no weights for {name}: set pretrained=false or choose another backbone."
        )
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0)
    except OSError as error:
        raise InputError(
            f"The weights of {name} cannot be downloaded: check the connection, or set "
            f"pretrained=false ({type(error).__name__})."
        ) from error


def _googlenet(*, pretrained: bool) -> nn.Module:
    """GoogLeNet (Inception v1), which timm lacks, from torchvision, without its side classifiers.

    Source: Szegedy et al., CVPR 2015, §5, with batch normalisation.
    """
    if pretrained:
        raise UsageError(
            "timm has no weights for googlenet: set pretrained=false and give torchvision's file "
            "as model.weights."
        )
    net = torchvision.models.googlenet(
        weights=None, aux_logits=False, init_weights=True, transform_input=False
    )
    net.dropout = net.fc = nn.Identity()  # TSN has its own
    return net
