"""Builders of the published 3-D networks, on PyTorchVideo's definitions.

Every builder returns a network with forward((B, 3, T, H, W) float32) -> (B, num_classes) logits,
alike in train and eval, freshly initialised. The state_dict keys are those of PyTorchVideo's
model zoo (`blocks.0. ...`). All builders work under `torch.device("meta")`.
"""

import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn

with warnings.catch_warnings():  # a library below compiles TorchScript at import, now deprecated
    warnings.simplefilter("ignore", FutureWarning)
    from pytorchvideo.models import hub
    from pytorchvideo.models.r2plus1d import create_r2plus1d

from vidtrain.errors import UsageError
from vidtrain.models.mend import mend

_Value = TypeVar("_Value")


class SlowFast(nn.Module):
    """SlowFast on one clip: packs the two pathways itself.

    The fast pathway gets all T frames, the slow one every alpha-th, counted from the first: 0, 4,
    8 ... 28 of 32. These are the frames on which the strided fast-to-slow convolutions are
    centred. PySlowFast and PyTorchVideo, which published the weights, spread T / alpha frames
    from the first to the last instead: 0, 4, 8, 13, 17, 22, 26, 31 of 32.

    Args:
        blocks: Blocks of PyTorchVideo's network, taking [slow, fast].
        alpha: Frames of the fast pathway for each frame of the slow one.
    """

    def __init__(self, blocks: nn.ModuleList, *, alpha: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.alpha = alpha

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Maps (B, 3, T, H, W) to (B, num_classes) logits.

        Raises:
            UsageError: T is not a multiple of alpha.
        """
        num_frames = video.shape[2]
        if num_frames % self.alpha:
            raise UsageError(
                f"SlowFast got a clip of {num_frames} frames: its slow pathway takes one frame in "
                f"{self.alpha}, so set num_frames to a multiple of {self.alpha}."
            )
        features: Any = [video[:, :, :: self.alpha], video]
        for block in self.blocks:
            features = block(features)
        return features


def slowfast(num_classes: int, *, depth: int = 50, dropout: float = 0.5) -> nn.Module:
    """Builds SlowFast 8x8; clips of any size whose length is a multiple of 4.

    Args:
        num_classes: Number of logits.
        depth: Layers of the ResNet, 50 or 101.
        dropout: Rate before the classifier.

    Raises:
        UsageError: Another depth, or a dropout outside [0, 1).

    Source: Feichtenhofer et al., ICCV 2019, §3; PySlowFast SLOWFAST_8x8_R50, SLOWFAST_8x8_R101.
    """
    build = _choose("depth", depth, {50: hub.slowfast_r50, 101: hub.slowfast_r101})
    net = build(model_num_class=num_classes, dropout_rate=_rate("dropout", dropout))
    mend(net)
    return SlowFast(net.blocks, alpha=4)


def slow(num_classes: int, *, dropout: float = 0.5) -> nn.Module:
    """Builds Slow-R50, the slow pathway alone; clips of any size.

    Args:
        num_classes: Number of logits.
        dropout: Rate before the classifier.

    Raises:
        UsageError: A dropout outside [0, 1).

    Source: Feichtenhofer et al., ICCV 2019, §3.1; PySlowFast SLOW_8x8_R50.
    """
    return mend(hub.slow_r50(model_num_class=num_classes, dropout_rate=_rate("dropout", dropout)))


def c2d(num_classes: int, *, dropout: float = 0.5) -> nn.Module:
    """Builds C2D-R50, a 2-D ResNet over frames pooled once in time; clips of any size.

    Args:
        num_classes: Number of logits.
        dropout: Rate before the classifier.

    Raises:
        UsageError: A dropout outside [0, 1).

    Source: Wang et al., Non-local Neural Networks, CVPR 2018, §4; PySlowFast C2D_8x8_R50.
    """
    return mend(hub.c2d_r50(model_num_class=num_classes, dropout_rate=_rate("dropout", dropout)))


def i3d(num_classes: int, *, dropout: float = 0.5) -> nn.Module:
    """Builds I3D-R50, a ResNet inflated to 3-D; clips of any size.

    Args:
        num_classes: Number of logits.
        dropout: Rate before the classifier.

    Raises:
        UsageError: A dropout outside [0, 1).

    Source: Carreira and Zisserman, CVPR 2017, inflated as in Wang et al., CVPR 2018, §4;
    PySlowFast I3D_8x8_R50.
    """
    return mend(hub.i3d_r50(model_num_class=num_classes, dropout_rate=_rate("dropout", dropout)))


def x3d(num_classes: int, *, version: str, dropout: float = 0.5) -> nn.Module:
    """Builds X3D; clips of any size.

    XS, S and M are one network, published for different clips; L is deeper.

    Args:
        num_classes: Number of logits.
        version: xs, s, m or l.
        dropout: Rate before the classifier.

    Raises:
        UsageError: Another version, or a dropout outside [0, 1).

    Source: Feichtenhofer, CVPR 2020, §3; PySlowFast X3D_XS, X3D_S, X3D_M, X3D_L.
    """
    versions = {"xs": hub.x3d_xs, "s": hub.x3d_s, "m": hub.x3d_m, "l": hub.x3d_l}
    build = _choose("version", version, versions)
    return mend(build(model_num_class=num_classes, dropout_rate=_rate("dropout", dropout)))


def csn(num_classes: int, *, dropout: float = 0.5) -> nn.Module:
    """Builds ir-CSN-101, with depthwise 3-D convolutions; clips of any size.

    Args:
        num_classes: Number of logits.
        dropout: Rate before the classifier.

    Raises:
        UsageError: A dropout outside [0, 1).

    Source: Tran et al., ICCV 2019, §3; PySlowFast CSN_32x2_R101.
    """
    return mend(hub.csn_r101(model_num_class=num_classes, dropout_rate=_rate("dropout", dropout)))


def r2plus1d(num_classes: int, *, dropout: float = 0.5) -> nn.Module:
    """Builds R(2+1)D-50, spatial then temporal convolutions; clips of any size.

    Args:
        num_classes: Number of logits.
        dropout: Rate before the classifier.

    Raises:
        UsageError: A dropout outside [0, 1).

    Source: Tran et al., CVPR 2018, §3; PySlowFast R2PLUS1D_16x4_R50.
    """
    # The hub's function fixes the dropout and refuses another.
    return mend(
        create_r2plus1d(model_num_class=num_classes, dropout_rate=_rate("dropout", dropout))
    )


def mvit(
    num_classes: int,
    *,
    num_frames: int = 16,
    crop_size: int = 224,
    dropout: float = 0.5,
    drop_path: float = 0.2,
) -> nn.Module:
    """Builds MViT-B for clips of one size, to which its position embeddings belong.

    Args:
        num_classes: Number of logits.
        num_frames: Length of the clips, a multiple of 2.
        crop_size: Height and width of the clips in pixels, a multiple of 4.
        dropout: Rate before the classifier.
        drop_path: Rate at which the last block is skipped; grows linearly from 0 at the first.

    Returns:
        A network that raises UsageError for clips of another size.

    Raises:
        UsageError: Sizes that patches of 2x4x4 do not tile, or a rate outside [0, 1).

    Source: Fan et al., ICCV 2021, §3; PySlowFast MVIT_B_16x4_CONV.
    """
    if num_frames <= 0 or num_frames % 2 or crop_size <= 0 or crop_size % 4:
        raise UsageError(
            f"MViT cannot be built for clips of {num_frames} frames at {crop_size} pixels: "
            "set num_frames to a multiple of 2 and crop_size to a multiple of 4."
        )
    # PyTorchVideo reads numbers out of small tensors while it builds, which have none on meta.
    device = torch.get_default_device()
    with torch.device("cpu"):
        net = hub.mvit_base_16x4(
            head_num_classes=num_classes,
            temporal_size=num_frames,
            spatial_size=crop_size,
            head_dropout_rate=_rate("dropout", dropout),
            droppath_rate_block=_rate("drop_path", drop_path),
        )
    net.register_forward_pre_hook(partial(_check_clip, size=(num_frames, crop_size, crop_size)))
    return mend(net).to(device)


def _check_clip(net: nn.Module, args: tuple[torch.Tensor], *, size: tuple[int, int, int]) -> None:
    found = tuple(args[0].shape[2:])
    if found != size:
        raise UsageError(
            "MViT got a clip of {}x{}x{} (frames x height x width) but was built for {}x{}x{}: "
            "give it clips of that size, or set num_frames and crop_size "
            "where the model is built.".format(*found, *size)
        )


def _choose(name: str, value: Any, choices: Mapping[Any, _Value]) -> _Value:
    if value not in choices:
        raise UsageError(
            f"{name}={value} does not exist: choose from {', '.join(map(str, choices))}."
        )
    return choices[value]


def _rate(name: str, value: float) -> float:
    if not 0 <= value < 1:
        raise UsageError(
            f"{name}={value} is no rate: give a number from 0 up to, not including, 1."
        )
    return value
