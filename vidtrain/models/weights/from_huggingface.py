"""Checkpoints of Hugging Face transformers, and of the repositories its models come from."""

from torch import Tensor

from vidtrain.models.weights.renaming import rename

# Vision transformers as timm names them -> as transformers named them first.
_TIMM = (
    (r"^blocks\.", "encoder.layer."),
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"^head\.", "classifier."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.", ".attention.attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)

# Patterns and their replacements, one after the other, for each attribute that transformers
# gives a network without its classifier.
_RENAMED = {
    # facebookresearch/TimeSformer, timesformer/models/vit.py
    "timesformer": (
        (r"^model\.", ""),
        (r"^cls_token$", "embeddings.cls_token"),
        (r"^pos_embed$", "embeddings.position_embeddings"),
        (r"^time_embed$", "embeddings.time_embeddings"),
        (r"\.temporal_norm1\.", ".temporal_layernorm."),
        (r"\.temporal_fc\.", ".temporal_dense."),
        (r"\.temporal_attn\.proj\.", ".temporal_attention.output.dense."),
        (r"\.temporal_attn\.", ".temporal_attention.attention."),
        *_TIMM,
    ),
    # Before version 5.9 of transformers, as the published file still has it
    "vivit": (
        (r"^encoder\.layer\.", "layers."),
        (r"\.attention\.attention\.(q|k|v)[a-z]+\.", r".attention.\1_proj."),
        (r"\.attention\.output\.dense\.", ".attention.o_proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"\.output\.dense\.", ".mlp.fc2."),
    ),
    # MCG-NJU/VideoMAE, modeling_finetune.py, and modeling_pretrain.py with "encoder." before it;
    # q_bias and v_bias are also those of transformers before version 5.10
    "videomae": (
        (r"^encoder\.(?=blocks\.|patch_embed\.|norm\.)", ""),
        *_TIMM,
        (r"\.q_bias$", ".query.bias"),
        (r"\.v_bias$", ".value.bias"),
    ),
    # facebookresearch/vjepa2, src/models/vision_transformer.py
    "vjepa2": (
        (r"^backbone\.", ""),
        (r"^blocks\.", "encoder.layer."),
        (r"^patch_embed\.", "encoder.embeddings.patch_embeddings."),
        (r"^norm\.", "encoder.layernorm."),
        (r"\.attn\.", ".attention."),
    ),
}


def convert(state: dict[str, Tensor], own: dict[str, Tensor]) -> dict[str, Tensor] | None:
    """Returns the weights under the names of TimeSformer, ViViT, VideoMAE or V-JEPA 2.

    Args:
        state: Checkpoint of a classifier, of the network without one, or of pre-training; named
            as in transformers or, except for ViViT, as in the original repository.
        own: Weights of the network they are for.

    Returns:
        The same tensors, joint query-key-value projections in three parts where the network has
        three; names without a place keep theirs. None where no name fits.

    Source: the convert_*.py scripts of these models in transformers before version 5.6.
    """
    ours = {key.split(".")[1] for key in own if key.startswith("net.")}
    family = next((name for name in _RENAMED if name in ours), None)
    if family is None:
        return None
    converted: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = rename(key.removeprefix("net.").removeprefix(f"{family}."), _RENAMED[family])
        place = _place(name, family, own)
        parts = [
            _place(name.replace(".qkv.", f".{part}."), family, own)
            for part in ("query", "key", "value")
        ]
        if place is None and ".qkv." in name and all(parts):
            converted |= zip(map(str, parts), tensor.chunk(3), strict=True)
        else:
            converted[place or key] = tensor
    return converted if converted.keys() & own.keys() else None


def _place(name: str, family: str, own: dict[str, Tensor]) -> str | None:
    """Returns the key of our network: the classifier's parts lie beside the rest."""
    return next((key for key in (f"net.{name}", f"net.{family}.{name}") if key in own), None)
