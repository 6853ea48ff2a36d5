"""Temporal Shift Module: TSN whose frames exchange channels with their neighbours."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from vidtrain.errors import UsageError
from vidtrain.models.tsn import tsn


class _Clip:
    """Length of the clip that is on its way through the network: frames are folded into batch."""

    num_frames = 1


def tsm(num_classes: int, *, shift_div: int = 8, dropout: float = 0.5) -> nn.Module:
    """Builds TSM on timm's ResNet-50, for any number of segments.

    The state_dict keys are those of TSN on the same backbone: the shift has no weights.

    Args:
        num_classes: Number of logits.
        shift_div: Of so many channels one goes to the frame before and one to the frame after.
        dropout: Rate before the classifier.

    Raises:
        UsageError: A shift_div below 2, or a dropout outside [0, 1).

    Source: Lin et al., ICCV 2019, §3 and §4.1: shift inside the residual branch of every block;
    initial classifier and dropout as in MMAction2's
    tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb.
    """
    if shift_div < 2:
        raise UsageError(f"shift_div={shift_div} leaves no channel in its frame: set 2 or more.")
    net: Any = tsn(num_classes, backbone="resnet50", dropout=dropout)
    nn.init.normal_(net.head.weight, std=0.001)
    clip = _Clip()
    net.register_forward_pre_hook(partial(_note_length, clip=clip))
    for block in net.backbone.modules():
        if hasattr(block, "conv1") and hasattr(block, "conv3"):
            block.conv1.register_forward_pre_hook(partial(_shift, clip=clip, shift_div=shift_div))
    return net


def _note_length(net: nn.Module, args: tuple[torch.Tensor], *, clip: _Clip) -> None:
    clip.num_frames = args[0].shape[2]


def _shift(
    conv: nn.Module, args: tuple[torch.Tensor], *, clip: _Clip, shift_div: int
) -> torch.Tensor:
    """Maps (B * T, C, H, W) to the same shape.

    Of the channels the first part comes from the next frame and the second from the frame before;
    zeros stand in beyond the ends of the clip.
    """
    frames = args[0].unflatten(0, (-1, clip.num_frames))
    part = frames.shape[2] // shift_div
    after = F.pad(frames[:, 1:, :part], (0, 0, 0, 0, 0, 0, 0, 1))
    before = F.pad(frames[:, :-1, part : 2 * part], (0, 0, 0, 0, 0, 0, 1, 0))
    return torch.cat((after, before, frames[:, :, 2 * part :]), dim=2).flatten(0, 1)
