"""TimeSformer with divided space-time attention, on Hugging Face's definition."""

from torch import nn
from transformers import TimesformerConfig, TimesformerForVideoClassification

from vidtrain.models.clip_size import tiled
from vidtrain.models.huggingface import PATCH, drop_paths, on_clips, vit


def timesformer(
    num_classes: int,
    *,
    version: str = "b",
    num_frames: int = 8,
    crop_size: int = 224,
    dropout: float = 0.0,
    drop_path: float = 0.1,
) -> nn.Module:
    """Builds the network for clips of one size, to which its position embeddings belong.

    Args:
        num_classes: Number of logits.
        version: Size of the transformer; b is the published one.
        num_frames: Length of the clips.
        crop_size: Height and width of the clips in pixels, a multiple of 16.
        dropout: Rate before the classifier.
        drop_path: Rate at which the last layer is skipped; grows linearly from 0 at the first.

    Returns:
        A network that raises UsageError for clips of another size.

    Raises:
        UsageError: An unknown version, a size that patches do not tile, or a rate outside [0, 1).

    Source: Bertasius et al., ICML 2021, §3; facebookresearch/TimeSformer,
    timesformer/models/vit.py (drop path).
    """
    tiled("TimeSformer", num_frames=num_frames, crop_size=crop_size, frames_by=1, pixels_by=PATCH)
    net = TimesformerForVideoClassification(
        TimesformerConfig(
            **vit(version),
            num_labels=num_classes,
            num_frames=num_frames,
            image_size=crop_size,
            patch_size=PATCH,
            attention_type="divided_space_time",
        )
    )
    # Its config takes whole numbers alone for this rate.
    drop_paths(net.timesformer.encoder.layer, highest=drop_path, branches=["drop_path"])
    return on_clips(
        net,
        family="TimeSformer",
        num_frames=num_frames,
        crop_size=crop_size,
        tubelet=1,
        dropout=dropout,
    )
