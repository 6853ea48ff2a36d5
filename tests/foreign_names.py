"""Our weights under the names that PySlowFast, Caffe2 and MMAction2 give them: maps turned round.

Written from those repositories, not from ours: each rule here is the inverse of one of theirs. That
the outcome is what they publish is tested against names read there, and against digests of the
tensor lists of MMAction2's own modules.
"""

import hashlib
import re

import torch
from torch import Tensor

State = dict[str, Tensor]
Pairs = tuple[tuple[str, str], ...]


def digest(state: State) -> str:
    """Returns a short digest of all names and shapes, in alphabetical order."""
    lines = sorted(f"{name} {tuple(tensor.shape)}" for name, tensor in state.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def apply(state: State, pairs: Pairs) -> State:
    """Renames by (pattern, replacement), all of them in order."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


_BLOCKS: Pairs = (
    (r"\.conv\.conv_t\.", ".stem.conv_xy."),  # X3D: (1, 3, 3) in spite of its name
    (r"\.conv\.conv_xy\.", ".stem.conv."),
    (r"\.norm_b\.0\.", ".norm_b."),
    (r"\.norm_b\.1\.block\.0\.", ".se.fc1."),
    (r"\.norm_b\.1\.block\.2\.", ".se.fc2."),
    (r"^(s\d)\.multipathway_fusion\.conv_fast_to_slow\.", r"\1_fuse.conv_f2s."),
    (r"^(s\d)\.multipathway_fusion\.norm\.", r"\1_fuse.bn."),
    (r"\.multipathway_blocks\.(\d)", r".pathway\1"),
    (r"^(s\d)\.(?!pathway|multi)", r"\1.pathway0."),
    (r"\.res_blocks\.", "_res"),
    (r"^(s1\.pathway\d)\.(stem\.)?", r"\1_stem."),
    (r"_stem\.norm\.", "_stem.bn."),
    (r"\.branch1_conv\.", ".branch1."),
    (r"\.branch1_norm\.", ".branch1_bn."),
    (r"\.conv_([abc])\.", r".\1."),
    (r"\.norm_([abc])\.", r".\1_bn."),
)
_HEAD: Pairs = (
    (r"\.pool\.pre_conv\.", ".conv_5."),
    (r"\.pool\.pre_norm\.", ".conv_5_bn."),
    (r"\.pool\.post_conv\.", ".lin_5."),
    (r"\.proj\.", ".projection."),
)


def pyslowfast(own: State) -> State:
    """A residual network of PyTorchVideo as PySlowFast names it."""
    numbers = sorted({int(name.split(".")[1]) for name in own})
    stages = {number: f"s{place + 1}" for place, number in enumerate(numbers)}
    stages[numbers[-1]] = "head"
    named: State = {}
    for name, tensor in own.items():
        _, number, rest = name.split(".", 2)
        stage = stages[int(number)]
        pairs = _HEAD if stage == "head" else _BLOCKS
        named |= apply({f"{stage}.{rest}": tensor}, pairs)
    if "head.conv_5.weight" in named:  # PySlowFast's X3D has a batch norm on every shortcut
        device = named["head.conv_5.weight"].device
        named |= norm("s2.pathway0_res0.branch1_bn.", 24, device=device)
    return named


def norm(prefix: str, width: int, *, device: torch.device) -> State:
    """Random weights of a batch norm."""
    names = ("weight", "bias", "running_mean", "running_var")
    state = {prefix + name: torch.rand(width, device=device) + 0.5 for name in names}
    return state | {f"{prefix}num_batches_tracked": torch.tensor(0, device=device)}


def caffe2(own: State) -> State:
    """A residual network of PyTorchVideo as the blobs of PySlowFast's .pkl files."""
    named = {key: value for key, value in pyslowfast(own).items() if "num_batches" not in key}
    return apply(named, (
        (r"^s1_fuse\.conv_f2s", "t_pool1_subsample"), (r"^s1_fuse\.bn", "t_pool1_subsample_bn"),
        (r"^s2_fuse", "t_res2_2_branch2c_bn_subsample"),
        (r"^s3_fuse", "t_res3_3_branch2c_bn_subsample"),
        (r"^s4_fuse", "t_res4_5_branch2c_bn_subsample"),
        (r"subsample\.conv_f2s", "subsample"), (r"subsample\.bn", "subsample_bn"),
        (r"^s1\.pathway0_stem\.conv", "conv1"), (r"^s1\.pathway0_stem\.bn", "res_conv1_bn"),
        (r"^s1\.pathway1_stem\.conv", "t_conv1"), (r"^s1\.pathway1_stem\.bn", "t_res_conv1_bn"),
        (r"^s(\d)\.pathway0_res(\d+)\.", r"res\1_\2_"),
        (r"^s(\d)\.pathway1_res(\d+)\.", r"t_res\1_\2_"),
        (r"branch2\.", "branch2"), (r"^head\.projection", "pred"),
        (r"bn\.weight$", "bn_s"), (r"bn\.bias$", "bn_b"),
        (r"bn\.running_mean$", "bn_rm"), (r"bn\.running_var$", "bn_riv"),
        (r"\.weight$", "_w"), (r"\.bias$", "_b"),
    ))  # fmt: skip


def mvit(own: State) -> State:
    """MViT of PyTorchVideo, or MViTv2 of torchvision, as PySlowFast names it."""
    named = apply(own, (
        (r"^patch_embed\.patch_model\.|^conv_proj\.", "patch_embed.proj."),
        (r"^cls_positional_encoding\.", ""), (r"^pos_encoding\.class_token$", "cls_token"),
        (r"^norm_embed\.", "norm."), (r"^head\.(proj|1)\.", "head.projection."),
        (r"\.project\.0\.", ".proj."), (r"\.project\.", ".proj."),
        (r"\.pool_([qkv])\.pool\.", r".pool_\1."), (r"\.pool_([qkv])\.norm_act\.0\.", r".norm_\1."),
        (r"\.mlp\.0\.", ".mlp.fc1."), (r"\.mlp\.3\.", ".mlp.fc2."),
    ))  # fmt: skip
    named["cls_token"] = named["cls_token"].reshape(1, 1, -1)
    for name in [name for name in named if ".attn.q." in name]:
        parts = [named.pop(name.replace(".q.", f".{letter}.")) for letter in "qkv"]
        named[name.replace(".q.", ".qkv.")] = torch.cat(parts)
    return named


def residual(own: State) -> State:
    """A residual network of PyTorchVideo as MMAction2 names it."""
    named = apply(pyslowfast(own), (
        (r"^s1\.pathway(\d)_stem\.(?!conv_xy)", r"pathway\1.conv1."),
        (r"^s1\.pathway0_stem\.conv_xy", "backbone.conv1_s.conv"),
        *((rf"^s{n}\.pathway(\d)_res(\d+)", rf"pathway\1.layer{n - 1}.\2") for n in range(2, 6)),
        (r"^s1_fuse\.", "pathway0.conv1_lateral."),
        *((rf"^s{n}_fuse\.", rf"pathway0.layer{n - 1}_lateral.") for n in range(2, 5)),
        (r"\.conv_f2s\.", ".conv."), (r"\.branch1\.", ".downsample.conv."),
        (r"\.branch1_bn\.", ".downsample.bn."), (r"\.branch2\.se\.", ".se_module."),
        (r"\.branch2\.b\.0\.", ".conv2.0.conv."), (r"\.branch2\.b\.1\.", ".conv2.0.bn."),
        (r"\.branch2\.b\.2\.", ".conv2.1.conv."),
        *((rf"\.branch2\.{a}\.", f".conv{n}.conv.") for a, n in zip("abc", "123", strict=True)),
        *((rf"\.branch2\.{a}_bn\.", f".conv{n}.bn.") for a, n in zip("abc", "123", strict=True)),
        (r"^head\.conv_5\.", "backbone.conv5.conv."), (r"^head\.conv_5_bn\.", "backbone.conv5.bn."),
        (r"^head\.lin_5\.", "cls_head.fc1."), (r"^head\.projection\.", "cls_head.fc_cls."),
    ))  # fmt: skip
    two = any(name.startswith("pathway1.") for name in named)
    named = apply(named, (
        (r"^pathway0\.", "backbone.slow_path." if two else "backbone."),
        (r"^pathway1\.", "backbone.fast_path."),
    ))  # fmt: skip
    if "backbone.conv1_s.conv.weight" in named:
        named = apply(named, ((r"backbone\.conv1\.", "backbone.conv1_t."), ("fc_cls", "fc2")))
        named["cls_head.fc1.weight"] = named["cls_head.fc1.weight"].flatten(1)
    return named


def c2d(own: State) -> State:
    """C2D: 2-D convolutions."""
    named = residual(own)
    return {key: value.squeeze(2) if value.ndim == 5 else value for key, value in named.items()}


def slowfast(own: State) -> State:
    """SlowFast: the classifier takes the fast channels first."""
    named = residual(own)
    slow, fast = named["cls_head.fc_cls.weight"].split([2048, 256], 1)
    return named | {"cls_head.fc_cls.weight": torch.cat([fast, slow], 1)}


def csn(own: State) -> State:
    """CSN: two convolutions in a row, or one, in the place of the second."""
    named = residual(own)
    second = ".conv2.1." if any(".conv2.0." in name for name in named) else ".conv2.0."
    return apply(named, ((r"\.conv2\.(?=conv|bn)", second),))


def image(own: State) -> State:
    """TSN: a ResNet of timm."""
    return apply(own, (
        (r"\.downsample\.0\.", ".downsample.conv."), (r"\.downsample\.1\.", ".downsample.bn."),
        (r"\.conv(\d)\.", r".conv\1.conv."), (r"\.bn(\d)\.", r".conv\1.bn."),
        (r"^head\.", "cls_head.fc_cls."),
    ))  # fmt: skip


def tsm(own: State) -> State:
    """TSM: what is shifted has a wrapper."""
    return apply(image(own), ((r"(?<=\d\.conv1\.conv\.)", "net."),))


def i3d(own: State) -> State:
    """I3D, of which GluonCV has the same network."""
    return image(apply(own, (
        (r"^first_stage\.0\.", "backbone.conv1."), (r"^first_stage\.1\.", "backbone.bn1."),
        *((rf"^res_layers\.{n}\.", f"backbone.layer{n + 1}.") for n in range(4)),
        (r"^fc\.", "head."),
    )))  # fmt: skip


def swin(own: State) -> State:
    """Video Swin: stages and the patch mergers between them."""
    return apply(own, (
        *((rf"^features\.{2 * n}\.", f"layers.{n}.blocks.") for n in range(4)),
        *((rf"^features\.{2 * n + 1}\.", f"layers.{n}.downsample.") for n in range(3)),
        (r"\.mlp\.0\.", ".mlp.fc1."), (r"\.mlp\.3\.", ".mlp.fc2."), (r"^norm\.", "norm3."),
        (r"^(?!head)", "backbone."), (r"^head\.", "cls_head.fc_cls."),
    ))  # fmt: skip


def mvit_v2(own: State) -> State:
    """MViTv2."""
    return apply(mvit(own), (
        (r"^patch_embed\.proj\.", "patch_embed.projection."), (r"^norm\.", "norm3."),
        (r"^(?!head)", "backbone."), (r"^head\.projection\.", "cls_head.fc_cls."),
    ))  # fmt: skip


def uniformer(own: State) -> State:
    """UniFormer."""
    return apply(own, ((r"^(?!head)", "backbone."), (r"^head\.", "cls_head.fc_cls.")))


_HUGGING_FACE: Pairs = (
    (r"^net\.(videomae|timesformer)\.", "backbone."), (r"^net\.fc_norm\.", "backbone.fc_norm."),
    (r"^net\.classifier\.", "cls_head.fc_cls."), (r"\.embeddings\.patch_emb\w+", ".patch_embed"),
    (r"\.embeddings\.position_embeddings", ".pos_embed"), (r"\.embeddings\.cls", ".cls"),
    (r"\.embeddings\.time_embeddings", ".time_embed"), (r"^backbone\.layernorm", "backbone.norm"),
)  # fmt: skip


def videomae(own: State) -> State:
    """VideoMAE: one projection for queries, keys and values, biases of two of them, positions."""
    named = apply(own, (
        *_HUGGING_FACE,
        (r"\.encoder\.layer\.", ".blocks."), (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."), (r"\.attention\.output\.dense\.", ".attn.proj."),
        (r"\.attention\.attention\.query\.bias", ".attn.q_bias"),
        (r"\.attention\.attention\.value\.bias", ".attn.v_bias"),
        (r"\.intermediate\.dense\.", ".mlp.layers.0.0."), (r"\.output\.dense\.", ".mlp.layers.1."),
    ))  # fmt: skip
    for name in [name for name in named if ".query." in name]:
        names = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        place = name.replace(".attention.attention.query.", ".attn.qkv.")
        named[place] = torch.cat([named.pop(part) for part in names])
    width = named["backbone.fc_norm.weight"].shape[0]
    return named | {"backbone.pos_embed": torch.empty(1, 1568, width, device="meta")}


def timesformer(own: State) -> State:
    """TimeSformer with divided attention."""
    layers = r"backbone\.encoder\.layer\.(\d+)"
    place = r"backbone.transformer_layers.layers.\1"
    return apply(own, (
        *_HUGGING_FACE,
        (layers + r"\.temporal_layernorm\.", place + ".attentions.0.norm."),
        (layers + r"\.temporal_dense\.", place + ".attentions.0.temporal_fc."),
        (layers + r"\.temporal_attention\.", place + ".attentions.0.attn."),
        (layers + r"\.layernorm_before\.", place + ".attentions.1.norm."),
        (layers + r"\.attention\.", place + ".attentions.1.attn."),
        (r"\.attn\.attention\.qkv\.", ".attn.in_proj_"),
        (r"\.attn\.output\.dense\.", ".attn.out_proj."),
        (layers + r"\.layernorm_after\.", place + ".ffns.0.norm."),
        (layers + r"\.intermediate\.dense\.", place + ".ffns.0.layers.0.0."),
        (layers + r"\.output\.dense\.", place + ".ffns.0.layers.1."),
    ))  # fmt: skip
