"""Weights under MMAction2's names reach their places, and compute what they did there."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import foreign_names as foreign
import pytest
import torch
from conftest import TESTS
from torch import nn
from torch.nn import functional as F

from vidtrain.models.c2d import c2d
from vidtrain.models.csn import csn
from vidtrain.models.i3d import i3d
from vidtrain.models.i3d_resnet import i3d_resnet
from vidtrain.models.mvit_v2 import mvit_v2
from vidtrain.models.slow import slow
from vidtrain.models.slowfast import slowfast
from vidtrain.models.swin3d import swin3d
from vidtrain.models.timesformer import timesformer
from vidtrain.models.tsm import tsm
from vidtrain.models.tsn import tsn
from vidtrain.models.uniformer import uniformer
from vidtrain.models.videomae import videomae
from vidtrain.models.weights.from_mmaction2 import convert
from vidtrain.models.weights.reshaping import reshaped
from vidtrain.models.x3d import x3d


class Family(NamedTuple):
    """A network, its names in MMAction2, their digest there, and a published config of it.

    The digests are of what the config files of MMAction2 1.2.0 build, run by MMAction2.
    """

    build: Callable[[], nn.Module]
    named: Callable[[foreign.State], foreign.State]
    digest: str
    config: str


FAMILIES = {
    "slow": Family(
        lambda: slow(400), foreign.residual, "05f9cba26af1e82f",
        "slowonly/slowonly_r50_8xb16-8x8x1-256e_kinetics400-rgb.py"),
    "c2d": Family(
        lambda: c2d(400), foreign.c2d, "369d6d80bebe81a6",
        "c2d/c2d_r50-in1k-pre_8xb32-8x8x1-100e_kinetics400-rgb.py"),
    "i3d": Family(
        lambda: i3d_resnet(400), foreign.i3d, "091267758bc2b41d",
        "i3d/i3d_imagenet-pretrained-r50_8xb8-32x2x1-100e_kinetics400-rgb.py"),
    "slowfast": Family(
        lambda: slowfast(400), foreign.slowfast, "27db39863278c535",
        "slowfast/slowfast_r50_8xb8-8x8x1-steplr-256e_kinetics400-rgb.py"),
    "x3d": Family(
        lambda: x3d(400, version="m"), foreign.residual, "11a9042787725d6c",
        "x3d/x3d_m_16x5x1_facebook-kinetics400-rgb.py"),
    "ircsn": Family(
        lambda: csn(400, depth=50), foreign.csn, "0a95dc540af3557b",
        "csn/ircsn_ig65m-pretrained-r50-bnfrozen_8xb12-32x2x1-58e_kinetics400-rgb.py"),
    "ipcsn": Family(
        lambda: csn(400, depth=152, interaction="preserved"), foreign.csn, "1b86d863493ade8e",
        "csn/ipcsn_r152_32x2x1-180e_kinetics400-rgb.py"),
    "tsn": Family(
        lambda: tsn(400, backbone="resnet50"), foreign.image, "369d6d80bebe81a6",
        "tsn/tsn_imagenet-pretrained-r50_8xb32-1x1x8-100e_kinetics400-rgb.py"),
    "tsm": Family(
        lambda: tsm(400), foreign.tsm, "036ebb3d72d4a6ed",
        "tsm/tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_kinetics400-rgb.py"),
    "swin": Family(
        lambda: swin3d(400), foreign.swin, "29abfc9b38e97c72",
        "swin/swin-tiny-p244-w877_in1k-pre_8xb8-amp-32x2x1-30e_kinetics400-rgb.py"),
    "mvit": Family(
        lambda: mvit_v2(400), foreign.mvit_v2, "551f26f276bc3a83",
        "mvit/mvit-small-p244_32xb16-16x4x1-200e_kinetics400-rgb.py"),
    "uniformer": Family(
        lambda: uniformer(400), foreign.uniformer, "5e6803619a55ca39",
        "uniformer/uniformer-small_imagenet1k-pre_16x4x1_kinetics400-rgb.py"),
    "videomae": Family(
        lambda: videomae(400), foreign.videomae, "ac630a8d72d541f5",
        "videomae/vit-base-p16_videomae-k400-pre_16x4x1_kinetics-400.py"),
    "videomae_v2": Family(
        lambda: videomae(400, version="s"), foreign.videomae, "078644e81df62150",
        "videomaev2/vit-small-p16_videomaev2-vit-g-dist-k710-pre_16x4x1_kinetics-400.py"),
    "timesformer": Family(
        lambda: timesformer(400), foreign.timesformer, "5d796f44f5b2786e",
        "timesformer/timesformer_divST_8xb8-8x32x1-15e_kinetics400-rgb.py"),
}  # fmt: skip


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def fitted(state: foreign.State, net: nn.Module) -> foreign.State:
    """What the network can load: all of it is known, and only axes of size 1 may differ."""
    own = net.state_dict()
    converted = convert(state, own)
    assert converted is not None and converted.keys() == own.keys()
    fits = {key: reshaped(tensor, own[key], key=key, net=net) for key, tensor in converted.items()}
    assert all(fit is not None and fit[1] is None for fit in fits.values())
    return {key: fit[0] for key, fit in fits.items() if fit is not None}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_published_weight_reaches_its_place(name: str) -> None:
    family = FAMILIES[name]
    net = on_meta(family.build)
    theirs = family.named(net.state_dict())
    assert foreign.digest(theirs) == family.digest
    assert fitted(theirs, net).keys() == net.state_dict().keys()


def test_the_classifier_of_slowfast_takes_slow_channels_first() -> None:
    own = on_meta(lambda: slowfast(2)).state_dict()
    state = foreign.slowfast(own)
    slow_first = torch.arange(2304.0).expand(2, -1)
    state["cls_head.fc_cls.weight"] = torch.cat([slow_first[:, 2048:], slow_first[:, :2048]], 1)
    converted = convert(state, own)
    assert converted is not None and torch.equal(converted["blocks.6.proj.weight"], slow_first)


def test_slowfast_without_norms_between_its_pathways_leaves_them_missing() -> None:
    own = on_meta(lambda: slowfast(400)).state_dict()
    state = {k: v for k, v in foreign.slowfast(own).items() if "_lateral.bn." not in k}
    assert foreign.digest(state) == "9d54b275ed0ebc41"  # as most configs build it
    converted = convert(state, own)
    assert converted is not None
    assert {key.rpartition(".")[0] for key in own.keys() - converted.keys()} == {
        f"blocks.{n}.multipathway_fusion.norm" for n in range(4)
    }


def test_variances_of_csn_make_up_for_another_epsilon() -> None:
    own = on_meta(lambda: csn(2, depth=50)).state_dict()
    name = "backbone.layer1.0.conv2.0.bn.running_var"
    converted = convert(foreign.csn(own) | {name: torch.full((64,), 0.01)}, own)
    assert converted is not None
    variance = converted["blocks.1.res_blocks.0.branch2.norm_b.running_var"]
    data, mean = torch.randn(2, 64), torch.zeros(64)
    torch.testing.assert_close(
        F.batch_norm(data, mean, variance, eps=1e-5),
        F.batch_norm(data, mean, torch.full((64,), 0.01), eps=1e-3),
    )


def test_queries_keys_and_values_of_videomae_come_from_one_projection() -> None:
    own = on_meta(lambda: videomae(2, version="s")).state_dict()
    rows = torch.arange(3 * 384.0)[:, None].expand(-1, 384)
    converted = convert(foreign.videomae(own) | {"backbone.blocks.3.attn.qkv.weight": rows}, own)
    assert converted is not None
    place = "net.videomae.encoder.layer.3.attention.attention."
    starts = [converted[f"{place}{part}.weight"][0, 0] for part in ("query", "key", "value")]
    assert starts == [0, 384, 768]


def test_an_i3d_that_halves_time_elsewhere_is_refused() -> None:
    theirs = foreign.i3d(on_meta(lambda: i3d_resnet(400)).state_dict())
    assert convert(theirs, on_meta(lambda: i3d(400)).state_dict()) is None


def test_non_local_blocks_keep_their_names() -> None:
    own = on_meta(lambda: slow(400)).state_dict()
    block = "backbone.layer2.1.non_local_block.g.weight"
    converted = convert(foreign.residual(own) | {block: torch.ones(1)}, own)
    assert converted is not None and len(converted.keys() - own.keys()) == 1


def test_other_names_are_left_to_others() -> None:
    own = on_meta(lambda: tsn(400, backbone="resnet50")).state_dict()
    for state in ({}, own, foreign.pyslowfast(on_meta(lambda: slow(400)).state_dict())):
        assert convert(state, own) is None


# Clips, settings of their backbone and our network where it has to be built for the clips.
SMALL: dict[str, tuple[list[int], dict[str, int], Callable[[], nn.Module] | None]] = {
    "slowfast": ([1, 3, 16, 64, 64], {}, None),
    "i3d": ([1, 3, 16, 64, 64], {}, None),
    "swin": ([1, 3, 20, 100, 100], {}, None),
    "mvit": ([1, 3, 8, 64, 64], {"spatial_size": 64, "temporal_size": 8},
             lambda: mvit_v2(400, num_frames=8, crop_size=64)),
    "videomae": ([1, 3, 8, 64, 64], {"img_size": 64, "num_frames": 8},
                 lambda: videomae(400, num_frames=8, crop_size=64)),
    "videomae_v2": ([1, 3, 8, 64, 64], {"img_size": 64, "num_frames": 8},
                    lambda: videomae(400, version="s", num_frames=8, crop_size=64)),
    "timesformer": ([1, 3, 4, 64, 64], {"img_size": 64, "num_frames": 4},
                    lambda: timesformer(400, num_frames=4, crop_size=64)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_mmaction2(name: str, tmp_path: Path) -> None:
    python = os.environ.get("VIDTRAIN_MMACTION2_PYTHON")
    if python is None:
        pytest.skip("VIDTRAIN_MMACTION2_PYTHON names no environment with MMAction2")
    shape, options, build = SMALL.get(name, ([1, 3, 8, 64, 64], {}, None))
    out = tmp_path / "out.pt"
    script = [str(TESTS / "mmaction2_logits.py"), FAMILIES[name].config]
    done = subprocess.run([python, *script, json.dumps(options), json.dumps(shape), str(out)],
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = torch.load(out, weights_only=True)
    net = (build or FAMILIES[name].build)().eval()
    net.load_state_dict(fitted(theirs["state"], net))
    if name == "c2d":  # its first pool has no padding there
        net.get_submodule("blocks.0").pool = nn.MaxPool3d((1, 3, 3), (1, 2, 2))
    with torch.no_grad():
        difference = net(theirs["clip"]) - theirs["logits"]
    spread = float(theirs["logits"].std())
    share = float(difference.abs().max()) / spread
    print(f"{name}: logits differ by {share:.1e} of their standard deviation")
    # LayerNorms of UniFormer have an epsilon of 1e-5 there, of 1e-6 where it was published.
    assert share < (1e-4 if name == "uniformer" else 1e-5)
