"""ViViT with joint space-time attention, on Hugging Face's definition."""

from torch import nn
from transformers import VivitConfig, VivitForVideoClassification

from vidtrain.models.clip_size import tiled
from vidtrain.models.huggingface import PATCH, drop_paths, on_clips, vit


def vivit(
    num_classes: int,
    *,
    version: str = "b",
    num_frames: int = 32,
    crop_size: int = 224,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> nn.Module:
    """Builds the paper's model 1 for clips of one size, to which its position embeddings belong.

    Args:
        num_classes: Number of logits.
        version: Size of the transformer; b is the published one.
        num_frames: Length of the clips, a multiple of 2.
        crop_size: Height and width of the clips in pixels, a multiple of 16.
        dropout: Rate before the classifier.
        drop_path: Rate at which the last layer is skipped; grows linearly from 0 at the first.

    Returns:
        A network that raises UsageError for clips of another size.

    Raises:
        UsageError: An unknown version, a size that patches do not tile, or a rate outside [0, 1).

    Source: Arnab et al., ICCV 2021, §3.3; Scenic,
    scenic/projects/vivit/configs/kinetics400/vivit_base_k400.py.
    """
    tiled("ViViT", num_frames=num_frames, crop_size=crop_size, frames_by=2, pixels_by=PATCH)
    net = VivitForVideoClassification(
        VivitConfig(
            **vit(version),
            num_labels=num_classes,
            num_frames=num_frames,
            image_size=crop_size,
            tubelet_size=[2, PATCH, PATCH],
        )
    )
    drop_paths(net.vivit.layers, highest=drop_path, branches=["dropout"])
    return on_clips(
        net, family="ViViT", num_frames=num_frames, crop_size=crop_size, dropout=dropout
    )
