"""PyTorchVideo's own networks, as it publishes them, beside ours of the same weights."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vidtrain.models.pytorchvideo import hub

# What a network is given: (B, 3, T, H, W), or a list of such.
Pack = Callable[[torch.Tensor], Any]
X3D = ("x3d_xs", "x3d_s", "x3d_m", "x3d_l")
NAMES = (*X3D, "slow_r50", "slowfast_r50", "mvit_base_16x4")


def peer(
    name: str,
    ours: nn.Module,
    *,
    num_classes: int,
    num_frames: int,
    crop_size: int,
    drop_path: float = 0.0,
) -> tuple[nn.Module, Pack] | None:
    """Returns PyTorchVideo's network with the weights of ours, and what turns clips into its input.

    Args:
        name: Of the model, as model= takes it.
        ours: Our network, on its device.
        num_classes: Number of logits.
        num_frames: T.
        crop_size: H and W, pixels.
        drop_path: Rate of stochastic depth of a transformer, as ours has it.

    Returns:
        None where PyTorchVideo has no such network.
    """
    cells = -(-crop_size // 32)
    if name in X3D:
        network = getattr(hub, name)(model_num_class=num_classes, head_activation=None)
    elif name == "slow_r50":
        network = hub.slow_r50(model_num_class=num_classes)
    elif name == "slowfast_r50":
        network = hub.slowfast_r50(model_num_class=num_classes)
    elif name == "mvit_base_16x4":
        network = hub.mvit_base_16x4(
            head_num_classes=num_classes,
            temporal_size=num_frames,
            spatial_size=crop_size,
            droppath_rate_block=drop_path,
        )
    else:
        return None
    # Its heads take clips of one size; those of another size are as its builders make them.
    for path, part in network.named_modules():
        if isinstance(part, nn.AvgPool3d):
            slow = path.endswith("pool.0")  # of SlowFast's two pathways
            part.kernel_size = (num_frames // 4 if slow else num_frames, cells, cells)
    network.to(next(ours.parameters()).device).load_state_dict(ours.state_dict())
    return network, _two_rates if name == "slowfast_r50" else _as_it_is


def _as_it_is(clips: torch.Tensor) -> torch.Tensor:
    return clips


def _two_rates(clips: torch.Tensor) -> list[torch.Tensor]:
    """Source: `PackPathway` in PyTorchVideo's SlowFast tutorial."""
    frames = torch.linspace(0, clips.shape[2] - 1, clips.shape[2] // 4).long()
    return [torch.index_select(clips, 2, frames.to(clips.device)), clips]
