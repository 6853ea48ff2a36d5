"""Checkpoints of MMAction2 -> the names of PyTorchVideo, torchvision, timm and transformers."""

from collections.abc import Callable

from torch import Tensor

from vidtrain.models.weights import from_pyslowfast
from vidtrain.models.weights.renaming import Rules, renamed

State = dict[str, Tensor]
# Residual networks, to the names of PySlowFast: stages count from the stem there.
_RESIDUAL: Rules = (
    (r"^backbone\.fast_path\.", "pathway1."),
    (r"^backbone\.(slow_path\.)?", "pathway0."),
    (r"^pathway0\.conv1_lateral\.", "s1_fuse."),
    (r"^pathway0\.layer(\d)_lateral\.", lambda found: f"s{int(found[1]) + 1}_fuse."),
    (r"_fuse\.conv\.", "_fuse.conv_f2s."),
    (r"^(pathway\d)\.conv1(_t)?\.(conv|bn)\.", r"s1.\1_stem.\3."),
    (r"^pathway0\.conv1_s\.conv\.", "s1.pathway0_stem.conv_xy."),
    (
        r"^(pathway\d)\.layer(\d)\.(\d+)\.",
        lambda found: f"s{int(found[2]) + 1}.{found[1]}_res{found[3]}.",
    ),
    (r"\.downsample\.conv\.", ".branch1."),
    (r"\.downsample\.bn\.", ".branch1_bn."),
    (r"\.conv1\.", ".branch2.a."),
    (r"\.conv2\.", ".branch2.b."),
    (r"\.conv3\.", ".branch2.c."),
    (r"\.branch2\.([abc])\.conv\.", r".branch2.\1."),
    (r"\.branch2\.([abc])\.bn\.", r".branch2.\1_bn."),
    (r"\.se_module\.", ".branch2.se."),
    (r"^pathway0\.conv5\.conv\.", "head.conv_5."),
    (r"^pathway0\.conv5\.bn\.", "head.conv_5_bn."),
    (r"^cls_head\.fc1\.", "head.lin_5."),
    (r"^cls_head\.fc(_cls|2)\.", "head.projection."),
)
# The depthwise convolutions of CSN: alone (ir), or behind a 1x1x1 convolution and its norm (ip).
_CSN_IR: Rules = ((r"\.conv2\.0\.", ".conv2."),)
_CSN_IP: Rules = (
    (r"\.conv2\.0\.conv\.", ".branch2.b.0."),
    (r"\.conv2\.0\.bn\.", ".branch2.b.1."),
    (r"\.conv2\.1\.conv\.", ".branch2.b.2."),
    (r"\.conv2\.1\.bn\.", ".branch2.b_bn."),
)
_IMAGE_RESNET: Rules = (
    (r"\.conv\.net\.", ".conv."),  # TSM wraps what it shifts
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample\.bn\.", ".downsample.1."),
    (r"\.conv(\d)\.conv\.", r".conv\1."),
    (r"\.conv(\d)\.bn\.", r".bn\1."),
    (r"^cls_head\.fc_cls\.", "head."),
)
_I3D: Rules = (
    *_IMAGE_RESNET,
    (r"^backbone\.conv1\.", "first_stage.0."),
    (r"^backbone\.bn1\.", "first_stage.1."),
    (r"^backbone\.layer(\d)\.", lambda found: f"res_layers.{int(found[1]) - 1}."),
    (r"^head\.", "fc."),
)
_SWIN: Rules = (
    (r"^backbone\.patch_embed\.", "patch_embed."),
    (r"^backbone\.layers\.(\d)\.blocks\.", lambda found: f"features.{2 * int(found[1])}."),
    (r"^backbone\.layers\.(\d)\.downsample\.", lambda found: f"features.{2 * int(found[1]) + 1}."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^backbone\.norm3?\.", "norm."),
    (r"^cls_head\.fc_cls\.", "head."),
)
_MVIT: Rules = (
    (r"^backbone\.patch_embed\.projection\.", "patch_embed.proj."),
    (r"^backbone\.norm3\.", "norm."),
    (r"^backbone\.", ""),
    (r"^cls_head\.fc_cls\.", "head.projection."),
)
_UNIFORMER: Rules = ((r"^backbone\.", ""), (r"^cls_head\.fc_cls\.", "head."))
_HUGGING_FACE: Rules = (
    (r"^backbone\.fc_norm\.", "net.fc_norm."),
    (r"^backbone\.norm\.", "backbone.layernorm."),
    (r"^backbone\.(transformer_layers\.layers|blocks)\.", "backbone.encoder.layer."),
    (r"^backbone\.cls_token$", "backbone.embeddings.cls_token"),
    (r"^backbone\.pos_embed$", "backbone.embeddings.position_embeddings"),
    (r"^backbone\.time_embed$", "backbone.embeddings.time_embeddings"),
    (r"^backbone\.patch_embed\.", "backbone.embeddings.patch_embeddings."),
    (r"^cls_head\.fc_cls\.", "net.classifier."),
)
_VIDEOMAE: Rules = (
    *_HUGGING_FACE,
    (r"^backbone\.", "net.videomae."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.attn\.q_bias$", ".attention.attention.query.bias"),
    (r"\.attn\.v_bias$", ".attention.attention.value.bias"),
    (r"\.attn\.qkv\.", ".attention.attention.qkv."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.mlp\.layers\.0\.0\.", ".intermediate.dense."),
    (r"\.mlp\.layers\.1\.", ".output.dense."),
)
_TIMESFORMER: Rules = (
    *_HUGGING_FACE,
    (r"^backbone\.", "net.timesformer."),
    (r"\.attentions\.0\.norm\.", ".temporal_layernorm."),
    (r"\.attentions\.0\.temporal_fc\.", ".temporal_dense."),
    (r"\.attentions\.0\.attn\.", ".temporal_attention."),
    (r"\.attentions\.1\.norm\.", ".layernorm_before."),
    (r"\.attentions\.1\.attn\.", ".attention."),
    (r"\.in_proj_", ".attention.qkv."),
    (r"\.out_proj\.", ".output.dense."),
    (r"\.ffns\.0\.norm\.", ".layernorm_after."),
    (r"\.ffns\.0\.layers\.0\.0\.", ".intermediate.dense."),
    (r"\.ffns\.0\.layers\.1\.", ".output.dense."),
)
# Batch norms of CSN there, and of every network here.
_CSN_EPS, _OUR_EPS = 1e-3, 1e-5


def convert(state: State, own: State) -> State | None:
    """Returns the weights of a recogniser under the network's names.

    All but the following compute what they did there (logits differ by rounding alone):

    - SlowFast published without `lateral_norm`: its connections from the fast to the slow pathway
      have neither batch norm nor ReLU. The norms are missing then, and the network has to be
      trained further.
    - C2D, whose first pool has no padding there.
    - The slow pathway of SlowFast gets the first frame of alpha there, not frames spread from the
      first to the last.

    I3D is the one of `i3d_resnet`: it halves time where PySlowFast's does not, so the tensors
    would fit that of `i3d` but not the results. Non-local blocks keep their names.

    Args:
        state: Checkpoint of MMAction2 1.x, or 0.x as far as names are the same.
        own: Weights of the network they are for.

    Returns:
        The same tensors, except that running variances of CSN make up for another epsilon, that
        the columns of SlowFast's classifier are put in order (fast ones first there), and that
        `from_pyslowfast` merges some. None where the names are not MMAction2's, or
        where no network of this kind can take them.

    Source: open-mmlab/mmaction2 1.2.0, mmaction/models/backbones and mmaction/models/heads.
    """
    return next((take(state, own) for sign, take in _FAMILIES.items() if sign in state), None)


def _residual(state: State, own: State) -> State | None:
    if "backbone.conv1.weight" in own:
        return renamed(state, _IMAGE_RESNET)
    if "first_stage.0.weight" in own:
        return renamed(state, _I3D)
    stem = own.get("blocks.0.conv.weight")
    if stem is not None and stem.shape[2] == 5:  # I3D as PySlowFast has it
        return None
    fast = state.get("backbone.fast_path.layer4.0.downsample.bn.weight")
    head = state.get("cls_head.fc_cls.weight")
    if fast is not None and head is not None:
        state = state | {"cls_head.fc_cls.weight": head.roll(-len(fast), 1)}
    if any(".conv2.0." in name for name in state):
        ip = any(".conv2.1." in name for name in state)
        state = {
            name: tensor + (_CSN_EPS - _OUR_EPS) if name.endswith(".running_var") else tensor
            for name, tensor in renamed(state, _CSN_IP if ip else _CSN_IR).items()
        }
    return from_pyslowfast.convert(renamed(state, _RESIDUAL), own)


def _mvit(state: State, own: State) -> State | None:
    return from_pyslowfast.convert(renamed(state, _MVIT), own)


def _videomae(state: State, own: State) -> State:
    del own
    given = renamed(state, _VIDEOMAE)
    given.pop("net.videomae.embeddings.position_embeddings", None)  # fixed, computed here as well
    for name in [name for name in given if ".qkv." in name]:
        for part, tensor in zip(("query", "key", "value"), given.pop(name).chunk(3), strict=True):
            given[name.replace(".qkv.", f".{part}.")] = tensor
    return given


def _by(rules: Rules) -> Callable[[State, State], State]:
    return lambda state, own: renamed(state, rules)


# A tensor that only this family has, and how its tensors become ours.
_FAMILIES: dict[str, Callable[[State, State], State | None]] = {
    "backbone.conv1.conv.weight": _residual,
    "backbone.slow_path.conv1.conv.weight": _residual,
    "backbone.conv1_s.conv.weight": _residual,
    "backbone.layers.0.blocks.0.attn.relative_position_bias_table": _by(_SWIN),
    "backbone.blocks.0.attn.pool_q.weight": _mvit,
    "backbone.patch_embed1.proj.weight": _by(_UNIFORMER),
    "backbone.blocks.0.attn.q_bias": _videomae,
    "backbone.transformer_layers.layers.0.attentions.1.attn.in_proj_weight": _by(_TIMESFORMER),
}
