"""V-JEPA 2's encoder under an attentive probe, on Hugging Face's definition."""

from torch import nn
from transformers import VJEPA2Config, VJEPA2ForVideoClassification

from vidtrain.models.arguments import rate
from vidtrain.models.clip_size import tiled
from vidtrain.models.huggingface import PATCH, on_clips, vit


def vjepa2(
    num_classes: int,
    *,
    version: str = "l",
    num_frames: int = 16,
    crop_size: int = 256,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> nn.Module:
    """Builds encoder, attentive pooler and classifier for clips of one size.

    Positions enter by rotation, so weights fit any clip; the size only fixes the grid of patches.
    The predictor of pre-training, which classification never calls, is left out.

    Args:
        num_classes: Number of logits.
        version: Size of the encoder: l, h or g are published.
        num_frames: Length of the clips, a multiple of 2.
        crop_size: Height and width of the clips in pixels, a multiple of 16.
        dropout: Rate before the classifier.
        drop_path: Rate at which the last layer of the encoder is skipped; grows linearly from 0.

    Returns:
        A network that raises UsageError for clips of another size.

    Raises:
        UsageError: An unknown version, a size that patches do not tile, or a rate outside [0, 1).

    Source: Assran et al., arXiv:2506.09985, §2; facebookresearch/vjepa2,
    configs/inference/vitl/ssv2.yaml: a probe of three self-attention layers and one that pools.
    """
    tiled("V-JEPA 2", num_frames=num_frames, crop_size=crop_size, frames_by=2, pixels_by=PATCH)
    sizes = vit(version)
    net = VJEPA2ForVideoClassification(
        VJEPA2Config(
            mlp_ratio=sizes.pop("intermediate_size") / sizes["hidden_size"],
            **sizes,
            num_labels=num_classes,
            frames_per_clip=num_frames,
            crop_size=crop_size,
            patch_size=PATCH,
            tubelet_size=2,
            num_pooler_layers=3,
            drop_path_rate=rate("drop_path", drop_path),
            pred_num_hidden_layers=0,
        )
    )
    del net.vjepa2.predictor
    return on_clips(
        net, family="V-JEPA 2", num_frames=num_frames, crop_size=crop_size, dropout=dropout
    )
