"""Which family a checkpoint looks like, from the names of its tensors: for messages only."""

import re
from collections.abc import Iterable

# The first pattern that some name matches decides; the more telling ones come first.
SIGNS: tuple[tuple[str, str], ...] = (
    (r"multipathway_blocks", "SlowFast (PyTorchVideo names)"),
    (r"pathway1_(stem|res)", "SlowFast (PySlowFast names)"),
    (r"backbone\.fast_path\.", "SlowFast (MMAction2 names)"),
    (r"^fast_(conv|res|bn)|lateral_", "SlowFast (GluonCV names)"),
    (r"t_res\d_.*branch2", "SlowFast (Caffe2 names)"),
    (r"norm_b\.1\.block", "X3D (PyTorchVideo names)"),
    (r"branch2\.se\.|conv5\.conv|lin_5_bn", "X3D (PySlowFast names)"),
    (r"backbone\.conv1_s\.", "X3D (MMAction2 names)"),
    (r"^videomae\.", "VideoMAE (Hugging Face names)"),
    (r"^vivit\.", "ViViT (Hugging Face names)"),
    (r"^timesformer\.", "TimeSformer (Hugging Face names)"),
    (r"^vjepa2\.|predictor\.", "V-JEPA 2"),
    (r"temporal_attn|temporal_fc", "TimeSformer"),
    (r"Mixed_3b|mixed_3b", "I3D on InceptionV1"),
    (r"Mixed_5b", "InceptionV3"),
    (r"relative_position_bias_table", "Swin"),
    (r"(pool_q|norm_q|rel_pos_t)", "MViT"),
    (r"blocks[1-4]\.\d+\.pos_embed\.weight|patch_embed4\.", "UniFormer"),
    (r"^pos_embed_spatial|head\.projection", "Hiera"),
    (r"\.q_bias$", "VideoMAE"),
    (r"nonlocal|non_local|\bnl\b", "a network with non-local blocks"),
    (r"^s\d\.pathway0_", "a one-pathway ResNet (PySlowFast names)"),
    (r"^res\d_.*branch2|^pred_w", "a one-pathway ResNet (Caffe2 names)"),
    (r"^blocks\.\d+\.res_blocks\.", "a one-pathway 3-D ResNet (PyTorchVideo names)"),
    (r"layer\d\.\d\.conv1\.0\.3", "R(2+1)D (torchvision names)"),
    (r"layer\d\.\d\.conv1\.0\.weight", "R3D or MC3 (torchvision names)"),
    (r"cls_head|^backbone\.conv1\.conv\.", "a ResNet recogniser (MMAction2 names)"),
    (r"^res_layers\.|first_stage", "I3D on a ResNet (GluonCV names)"),
    (r"^backbone\.", "TSN (vidtrain names)"),
    (r"^layer\d\.\d\.conv1\.weight", "a ResNet for images"),
    (r"^features\.\d+\.", "VGG or a torchvision network"),
    (r"^blocks\.\d+\.attn\.qkv", "a Vision Transformer"),
)


def looks_like(names: Iterable[str]) -> str:
    """Returns the family that a checkpoint with such tensors is probably of, or some names.

    Args:
        names: Names of its tensors.
    """
    listed = list(names)
    for pattern, family in SIGNS:
        if any(re.search(pattern, name) for name in listed):
            return family
    return f"no known family (its tensors: {', '.join(listed[:3])} ...)" if listed else "nothing"
