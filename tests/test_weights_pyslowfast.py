"""Weights under the names of PySlowFast and of its Caffe2 files reach their places."""

import foreign_names as foreign
import pytest
import torch
from torch import nn

from vidtrain.models.c2d import c2d
from vidtrain.models.i3d import i3d
from vidtrain.models.mvit import mvit
from vidtrain.models.mvit_v2 import mvit_v2
from vidtrain.models.slow import slow
from vidtrain.models.slowfast import slowfast
from vidtrain.models.weights import from_caffe2, from_pyslowfast
from vidtrain.models.x3d import x3d

BUILDERS = {
    "c2d": lambda: c2d(5), "i3d": lambda: i3d(5), "slow": lambda: slow(5),
    "slowfast": lambda: slowfast(5), "x3d": lambda: x3d(5, version="s"),
    "mvit": lambda: mvit(5, num_frames=4, crop_size=32),
    "mvit_v2": lambda: mvit_v2(5, num_frames=4, crop_size=32),
}  # fmt: skip
# Names as they follow from slowfast/models/*.py, and from the comments of c2_model_loading.py.
PUBLISHED = {
    "c2d": {
        "s3.pathway0_res0.branch1.weight": "blocks.3.res_blocks.0.branch1_conv.weight",
        "s5.pathway0_res2.branch2.c_bn.running_var":
            "blocks.5.res_blocks.2.branch2.norm_c.running_var",
        "head.projection.bias": "blocks.6.proj.bias",
    },
    "slow": {
        "s1.pathway0_stem.conv.weight": "blocks.0.conv.weight",
        "s1.pathway0_stem.bn.running_mean": "blocks.0.norm.running_mean",
        "s2.pathway0_res0.branch2.a.weight": "blocks.1.res_blocks.0.branch2.conv_a.weight",
        "s3.pathway0_res3.branch2.b_bn.weight": "blocks.2.res_blocks.3.branch2.norm_b.weight",
        "head.projection.weight": "blocks.5.proj.weight",
    },
    "slowfast": {
        "s1.pathway1_stem.bn.bias": "blocks.0.multipathway_blocks.1.norm.bias",
        "s1_fuse.conv_f2s.weight": "blocks.0.multipathway_fusion.conv_fast_to_slow.weight",
        "s4_fuse.bn.weight": "blocks.3.multipathway_fusion.norm.weight",
        "s4.pathway1_res5.branch2.c.weight":
            "blocks.3.multipathway_blocks.1.res_blocks.5.branch2.conv_c.weight",
        "head.projection.weight": "blocks.6.proj.weight",
    },
    "x3d": {
        "s1.pathway0_stem.conv_xy.weight": "blocks.0.conv.conv_t.weight",
        "s1.pathway0_stem.conv.weight": "blocks.0.conv.conv_xy.weight",
        "s2.pathway0_res0.branch2.se.fc1.weight":
            "blocks.1.res_blocks.0.branch2.norm_b.1.block.0.weight",
        "s2.pathway0_res1.branch2.b_bn.bias": "blocks.1.res_blocks.1.branch2.norm_b.0.bias",
        "head.conv_5_bn.weight": "blocks.5.pool.pre_norm.weight",
        "head.lin_5.weight": "blocks.5.pool.post_conv.weight",
    },
    "mvit": {
        "patch_embed.proj.weight": "patch_embed.patch_model.weight",
        "pos_embed_spatial": "cls_positional_encoding.pos_embed_spatial",
        "blocks.1.attn.pool_q.weight": "blocks.1.attn.pool_q.weight",
        "blocks.0.proj.weight": "blocks.0.proj.weight",
        "norm.weight": "norm_embed.weight",
    },
    "mvit_v2": {
        "cls_token": "pos_encoding.class_token",
        "blocks.0.attn.rel_pos_t": "blocks.0.attn.rel_pos_t",
        "blocks.1.attn.norm_q.bias": "blocks.1.attn.pool_q.norm_act.0.bias",
        "blocks.1.attn.proj.weight": "blocks.1.attn.project.0.weight",
        "blocks.1.proj.weight": "blocks.1.project.weight",
        "blocks.0.mlp.fc2.weight": "blocks.0.mlp.3.weight",
        "head.projection.weight": "head.1.weight",
    },
}  # fmt: skip
PUBLISHED_BLOBS = {
    "conv1_w": "blocks.0.multipathway_blocks.0.conv.weight",
    "res_conv1_bn_s": "blocks.0.multipathway_blocks.0.norm.weight",
    "t_conv1_w": "blocks.0.multipathway_blocks.1.conv.weight",
    "t_pool1_subsample_w": "blocks.0.multipathway_fusion.conv_fast_to_slow.weight",
    "t_pool1_subsample_bn_rm": "blocks.0.multipathway_fusion.norm.running_mean",
    "t_res4_5_branch2c_bn_subsample_bn_b": "blocks.3.multipathway_fusion.norm.bias",
    "res4_0_branch1_w": "blocks.3.multipathway_blocks.0.res_blocks.0.branch1_conv.weight",
    "res4_0_branch1_bn_riv":
        "blocks.3.multipathway_blocks.0.res_blocks.0.branch1_norm.running_var",
    "t_res2_0_branch2a_bn_b": "blocks.1.multipathway_blocks.1.res_blocks.0.branch2.norm_a.bias",
    "pred_w": "blocks.6.proj.weight",
    "pred_b": "blocks.6.proj.bias",
}  # fmt: skip


def own_weights(name: str) -> foreign.State:
    with torch.device("meta"):
        return BUILDERS[name]().state_dict()


def sizes(state: foreign.State) -> dict[str, list[int]]:
    """Shapes without axes of size 1, which are put in when weights are loaded."""
    return {key: [n for n in tensor.shape if n > 1] for key, tensor in state.items()}


@pytest.mark.parametrize("name", BUILDERS)
def test_every_weight_of_pyslowfast_reaches_its_place(name: str) -> None:
    own = own_weights(name)
    theirs = foreign.mvit(own) if "mvit" in name else foreign.pyslowfast(own)
    converted = from_pyslowfast.convert(theirs, own)
    assert converted is not None and sizes(converted) == sizes(own)
    for published, ours in PUBLISHED.get(name, {}).items():
        assert converted[ours] is theirs[published]


def test_every_blob_of_caffe2_reaches_its_place() -> None:
    own = own_weights("slowfast")
    theirs = foreign.caffe2(own)
    rest = {f"{name}_momentum": tensor for name, tensor in theirs.items()}
    rest |= {"lr": torch.ones(1), "model_iter": torch.ones(1)}
    converted = from_caffe2.convert(rest | theirs, own)
    assert converted is not None
    given = {name: tensor for name, tensor in own.items() if "num_batches" not in name}
    assert sizes(converted) == sizes(given)
    for blob, ours in PUBLISHED_BLOBS.items():
        assert converted[ours] is theirs[blob]


def test_queries_keys_and_values_come_from_one_projection() -> None:
    own = own_weights("mvit")
    theirs = foreign.mvit(own) | {"blocks.0.attn.qkv.bias": torch.arange(288)}
    converted = from_pyslowfast.convert(theirs, own)
    assert converted is not None
    starts = [int(converted[f"blocks.0.attn.{part}.bias"][0]) for part in "qkv"]
    assert starts == [0, 96, 192]
    # Models of PyTorchVideo have three projections, and so have PySlowFast's with SEPARATE_QKV.
    apart = {name: tensor for name, tensor in theirs.items() if ".qkv." not in name}
    apart |= {name: tensor for name, tensor in own.items() if ".attn.v." in name}
    converted = from_pyslowfast.convert(apart, own)
    assert converted is not None and "blocks.0.attn.v.weight" in converted


def test_the_norm_that_our_x3d_lacks_is_merged_into_its_neighbours() -> None:
    torch.manual_seed(0)
    net, theirs = x3d(5, version="xs").eval(), x3d(5, version="xs").eval()
    block = theirs.get_submodule("blocks.1.res_blocks.0")
    assert block.branch1_norm is None
    block.branch1_norm = nn.BatchNorm3d(24).eval()
    norm = foreign.norm("s2.pathway0_res0.branch1_bn.", 24, device=torch.device("cpu"))
    block.branch1_norm.load_state_dict({key.split(".")[-1]: norm[key] for key in norm})
    named = foreign.pyslowfast(net.state_dict()) | norm
    theirs.load_state_dict(net.state_dict(), strict=False)
    converted = from_pyslowfast.convert(named, net.state_dict())
    assert converted is not None
    net.load_state_dict(converted)
    clip = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        merged, with_norm = net(clip), theirs(clip)
        block.branch1_norm = None
        without_norm = theirs(clip)
    size = with_norm.abs().max()
    assert (
        (merged - with_norm).abs().max()
        < 1e-4 * size
        < 1e-3 * (without_norm - with_norm).abs().max()
    )


def test_what_pyslowfast_built_with_pytorchvideo_loses_its_prefix() -> None:
    own = own_weights("slow")
    wrapped = {f"model.{name}": tensor for name, tensor in own.items()}
    assert from_pyslowfast.convert(wrapped, own) == own


def test_non_local_blocks_keep_their_names() -> None:
    own = own_weights("i3d")
    block = "s3.pathway0_nonlocal1.conv_theta.weight"
    converted = from_pyslowfast.convert(foreign.pyslowfast(own) | {block: torch.ones(1)}, own)
    assert converted is not None and converted.keys() - own.keys() == {block}
    blobs = foreign.caffe2(own) | {"nonlocal_conv3_1_theta_w": torch.ones(1)}
    converted = from_caffe2.convert(blobs, own)
    assert converted is not None and converted.keys() - own.keys() == {block}


@pytest.mark.parametrize("name", BUILDERS)
def test_other_names_are_left_to_others(name: str) -> None:
    own = own_weights(name)
    others = [own, {}, {"backbone.conv1.conv.weight": torch.ones(1)}]
    if "mvit" not in name:
        others.append(foreign.residual(own))
    for state in others:
        assert from_pyslowfast.convert(state, own) is None
        assert from_caffe2.convert(state, own) is None
    image = {"layer1.0.conv1.weight": torch.ones(1)}
    assert from_pyslowfast.convert(foreign.pyslowfast(own_weights("slow")), image) is None
