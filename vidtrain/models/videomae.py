"""VideoMAE's classifier, a plain vision transformer, on Hugging Face's definition."""

from torch import nn
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from vidtrain.models.clip_size import tiled
from vidtrain.models.huggingface import PATCH, drop_paths, on_clips, vit


def videomae(
    num_classes: int,
    *,
    version: str = "b",
    num_frames: int = 16,
    crop_size: int = 224,
    dropout: float = 0.0,
    drop_path: float = 0.1,
) -> nn.Module:
    """Builds the network for clips of one size, to which its fixed position embeddings belong.

    ViT-S has the 6 heads that its weights were trained with; the script that converted them for
    transformers wrote 16 into its config, which changes no shape but every result.

    Args:
        num_classes: Number of logits.
        version: Size of the transformer: s, b, l or h are published.
        num_frames: Length of the clips, a multiple of 2.
        crop_size: Height and width of the clips in pixels, a multiple of 16.
        dropout: Rate before the classifier.
        drop_path: Rate at which the last layer is skipped; grows linearly from 0 at the first.

    Returns:
        A network that raises UsageError for clips of another size.

    Raises:
        UsageError: An unknown version, a size that patches do not tile, or a rate outside [0, 1).

    Source: Tong et al., NeurIPS 2022, §3; MCG-NJU/VideoMAE, modeling_finetune.py and
    run_class_finetuning.py (drop path).
    """
    tiled("VideoMAE", num_frames=num_frames, crop_size=crop_size, frames_by=2, pixels_by=PATCH)
    net = VideoMAEForVideoClassification(
        VideoMAEConfig(
            **vit(version),
            num_labels=num_classes,
            num_frames=num_frames,
            image_size=crop_size,
            patch_size=PATCH,
            tubelet_size=2,
            layer_norm_eps=1e-6,  # as the weights were trained; transformers' default is 1e-12
            use_mean_pooling=True,
        )
    )
    # As a buffer the table moves to the device with the network, not anew with every clip.
    embeddings = net.videomae.embeddings
    table = embeddings.position_embeddings
    del embeddings.position_embeddings
    embeddings.register_buffer("position_embeddings", table, persistent=False)
    drop_paths(
        net.videomae.encoder.layer,
        highest=drop_path,
        branches=["attention.output.dropout", "output.dropout"],
    )
    return on_clips(
        net, family="VideoMAE", num_frames=num_frames, crop_size=crop_size, dropout=dropout
    )
