"""Checkpoints of PySlowFast -> the names of PyTorchVideo and, for MViTv2, of torchvision."""

import re

import torch
from torch import Tensor

from vidtrain.models.weights.renaming import Rules, renamed

State = dict[str, Tensor]
# Parts of a residual network, behind the stage and the pathway that they belong to.
_PARTS: Rules = (
    (r"_fuse\.conv_f2s\.", ".multipathway_fusion.conv_fast_to_slow."),
    (r"_fuse\.bn\.", ".multipathway_fusion.norm."),
    (r"(pathway\d)_stem\.bn\.", r"\1.norm."),
    (r"(pathway\d)_stem\.conv\.", r"\1.conv."),
    (r"(pathway\d)_res(\d+)\.", r"\1.res_blocks.\2."),
    (r"\.branch1\.", ".branch1_conv."),
    (r"\.branch1_bn\.", ".branch1_norm."),
    (r"\.branch2\.([abc])\.", r".branch2.conv_\1."),
    (r"\.branch2\.([abc])_bn\.", r".branch2.norm_\1."),
)
# PyTorchVideo calls X3D's spatial stem convolution conv_t and its temporal one conv_xy.
_X3D: Rules = (
    (r"pathway0_stem\.conv\.", "pathway0.conv.conv_xy."),
    (r"pathway0_stem\.conv_xy\.", "pathway0.conv.conv_t."),
    (r"\.branch2\.b_bn\.", ".branch2.norm_b.0."),
    (r"\.branch2\.se\.fc1\.", ".branch2.norm_b.1.block.0."),
    (r"\.branch2\.se\.fc2\.", ".branch2.norm_b.1.block.2."),
    (r"^head\.conv_5\.", "head.pool.pre_conv."),
    (r"^head\.conv_5_bn\.", "head.pool.pre_norm."),
    (r"^head\.lin_5\.", "head.pool.post_conv."),
    (r"^head\.lin_5_bn\.", "head.pool.post_norm."),
)
_MVIT_PYTORCHVIDEO: Rules = (
    (r"^patch_embed\.proj\.", "patch_embed.patch_model."),
    (r"^(cls_token|pos_embed\w*)$", r"cls_positional_encoding.\1"),
    (r"^norm\.", "norm_embed."),
    (r"^head\.projection\.", "head.proj."),
)
_MVIT_TORCHVISION: Rules = (
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^cls_token$", "pos_encoding.class_token"),
    (r"\.attn\.proj\.", ".attn.project.0."),
    (r"\.attn\.pool_([qkv])\.", r".attn.pool_\1.pool."),
    (r"\.attn\.norm_([qkv])\.", r".attn.pool_\1.norm_act.0."),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    (r"^(blocks\.\d+)\.proj\.", r"\1.project."),
    (r"^head\.projection\.", "head.1."),
)
_NORM_EPS = 1e-5  # of all batch norms, there and here


def convert(state: State, own: State) -> State | None:
    """Returns the weights of a residual network or an MViT under the network's names.

    Non-local blocks, which no network here has, keep their names.

    Args:
        state: Checkpoint: C2D, I3D, Slow, SlowFast, X3D, MViT, or what PySlowFast built with
            PyTorchVideo.
        own: Weights of the network they are for.

    Returns:
        The same tensors, but `qkv` of MViT as three where the network has three, and a batch norm
        that the network lacks on its first shortcut (X3D) merged into its neighbours, which
        leaves the output in eval mode as it was. None where the names are not PySlowFast's.

    Source: facebookresearch/SlowFast, slowfast/models: video_model_builder.py, stem_helper.py,
    resnet_helper.py, head_helper.py, attention.py, ptv_model_builder.py.
    """
    if any(name.startswith("s1.pathway0_stem.") for name in state):
        return _residual(state, own)
    if "patch_embed.proj.weight" in state and "cls_token" in state:
        return _mvit(state, own)
    unwrapped = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return unwrapped if unwrapped.keys() & own.keys() and unwrapped.keys() != state.keys() else None


def _residual(state: State, own: State) -> State | None:
    numbers = {int(name.split(".")[1]) for name in own if re.match(r"blocks\.\d+\.", name)}
    if not numbers:
        return None
    # A pool behind the first stage counts as a block, and has no tensors.
    pooled = 2 not in numbers
    several = any(".multipathway_" in name for name in own)

    def stage(found: re.Match[str]) -> str:
        number = int(found[1]) - 1
        return f"blocks.{number + (pooled and number > 1)}."

    pathway = r".multipathway_blocks.\1." if several else "."
    rules: Rules = (
        *(_X3D if "blocks.0.conv.conv_t.weight" in own else ()),
        *_PARTS,
        (r"^s(\d)\.(?=pathway\d\.|multipathway_)", stage),
        (r"\.pathway(\d)\.", pathway),
        (r"^head\.projection\.", "head.proj."),
        (r"^head\.", f"blocks.{max(numbers)}."),
    )
    return _without_shortcut_norms(renamed(state, rules), own)


def _without_shortcut_norms(state: State, own: State) -> State:
    """Merges batch norms of shortcuts into the convolution before and the sum behind them.

    PyTorchVideo's X3D has none where a shortcut keeps the number of channels.
    """
    for conv in [name for name in state if name.endswith("branch1_conv.weight")]:
        norm = conv.replace("branch1_conv.weight", "branch1_norm.")
        if f"{norm}weight" in own or f"{norm}weight" not in state:
            continue
        bias = conv.replace("branch1_conv.weight", "branch2.norm_c.bias")
        state.pop(f"{norm}num_batches_tracked", None)
        weight, shift, mean, var = (
            state.pop(norm + key) for key in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / torch.sqrt(var + _NORM_EPS)
        state[conv] = state[conv] * scale[:, None, None, None, None]
        state[bias] = state[bias] + shift - mean * scale
    return state


def _mvit(state: State, own: State) -> State | None:
    if "conv_proj.weight" in own:
        return renamed(state, _MVIT_TORCHVISION)
    if "cls_positional_encoding.cls_token" not in own:
        return None
    given = renamed(state, _MVIT_PYTORCHVIDEO)
    for name in [name for name in given if ".attn.qkv." in name]:
        for letter, part in zip("qkv", given.pop(name).chunk(3), strict=True):
            given[name.replace(".qkv.", f".{letter}.")] = part
    return given
