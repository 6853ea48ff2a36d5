"""Layers of every network in the order of depth, and what fine-tuning makes of them."""

import copy
from itertools import pairwise
from typing import Any

import pytest
import torch
from conftest import REPO
from omegaconf import OmegaConf
from torch import nn
from torchvision.models import googlenet

from vidtrain.errors import UsageError
from vidtrain.models import anatomy
from vidtrain.models.c3d import c3d
from vidtrain.models.slowfast import slowfast
from vidtrain.models.tsn import tsn
from vidtrain.models.x3d import x3d
from vidtrain.targets import component

CONF = REPO / "conf" / "model"
# Stem, blocks as each paper counts them, what else, classifier.
COUNTS = {
    "c2d_r50": 1 + 16 + 1, "c3d_small": 4 + 1, "csn_r101": 1 + 33 + 1, "i3d_r50": 1 + 16 + 1,
    "mvit_base_16x4": 1 + 16 + 1, "r2plus1d_r50": 1 + 16 + 1, "slow_r50": 1 + 16 + 1,
    "slowfast_r50": 1 + 16 + 1, "slowfast_r101": 1 + 33 + 1, "tsn_resnet50": 1 + 16 + 1,
    "x3d_xs": 1 + 26 + 1 + 1, "x3d_l": 1 + 55 + 1 + 1,
}  # fmt: skip


def on_meta(name: str) -> nn.Module:
    tree = OmegaConf.create({"model": OmegaConf.load(CONF / f"{name}.yaml")})
    plain: Any = OmegaConf.to_container(tree, resolve=True)
    with torch.device("meta"):
        return component(plain["model"]["build"], "model.build", num_classes=11)


def check_layers(net: nn.Module) -> list[anatomy.Layer]:
    found = anatomy.layers(net)
    names = [name for layer in found for name in layer.parameters]
    assert sorted(names) == sorted(name for name, _ in net.named_parameters())
    parts = [path for layer in found for path in layer.parts]
    assert len(parts) == len(set(parts))
    assert len({layer.name for layer in found}) == len(found)
    assert all(set(layer.blocks) <= set(layer.parts) for layer in found)
    return found


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_parameter_of_every_model_is_in_one_layer(name: str) -> None:
    net = on_meta(name)
    found = check_layers(net)
    assert len(found) == COUNTS.get(name, len(found)) >= 5
    for parameter in anatomy.head(net):
        assert net.get_parameter(parameter).shape[0] == 11
    # Blocks of one container come in its order.
    for before, after in pairwise(found):
        (one, _, i), (two, _, j) = before.name.rpartition("."), after.name.rpartition(".")
        if one == two and i.isdecimal() and j.isdecimal():
            assert int(i) < int(j)


@pytest.mark.parametrize(
    ("backbone", "count"),
    [
        ("resnet18", 1 + 8 + 1), ("vgg11", 8 + 1 + 1), ("inception_v3", 1 + 11 + 1),
        ("convnext_atto", 1 + 12 + 1), ("vit_tiny_patch16_224", 1 + 12 + 1),
        ("hiera_tiny_224", 1 + 12 + 1), ("swin_tiny_patch4_window7_224", 1 + 12 + 1),
        ("densenet121", 1 + 58 + 1), ("efficientnet_b0", 1 + 16 + 1 + 1),
    ],
)  # fmt: skip
def test_image_backbones_of_any_kind(backbone: str, count: int) -> None:
    with torch.device("meta"):
        found = check_layers(tsn(11, backbone=backbone))
    assert len(found) == count
    assert any(layer.blocks for layer in found) != backbone.startswith("vgg")


def test_inception_modules_are_whole() -> None:
    with torch.device("meta"):
        found = check_layers(googlenet(aux_logits=False, init_weights=False))
    assert [layer.name for layer in found][:3] == ["stem", "inception3a", "inception3b"]
    assert len(found) == 1 + 9 + 1


def test_stem_norms_and_what_stands_between_go_where_they_belong() -> None:
    with torch.device("meta"):
        stem, *_, last, head = anatomy.layers(tsn(11, backbone="vit_tiny_patch16_224"))
        convnext = anatomy.layers(tsn(11, backbone="convnext_atto"))
        both = anatomy.layers(slowfast(11))
    assert {"backbone.pos_embed", "backbone.cls_token"} <= set(stem.parameters)
    assert "backbone.norm.weight" in last.parameters
    assert head.parameters == ("head.weight", "head.bias")
    first_of_stage = next(x for x in convnext if x.name == "backbone.stages.1.blocks.0")
    assert "backbone.stages.1.downsample.1.weight" in first_of_stage.parameters
    assert both[4].blocks == (
        "blocks.2.multipathway_blocks.0.res_blocks.0", "blocks.2.multipathway_blocks.1.res_blocks.0"
    )  # fmt: skip
    assert any("blocks.1.multipathway_fusion" in name for name in both[4].parameters)


def test_a_network_without_weights_is_refused() -> None:
    with pytest.raises(UsageError, match="no layer with a weight"):
        anatomy.layers(nn.Sequential(nn.ReLU(), nn.Flatten()))


def test_frozen_parts_neither_learn_nor_drift() -> None:
    torch.manual_seed(0)
    net = x3d(5, version="xs", dropout=0.5)
    anatomy.freeze(net, train_layers=1)  # the classifier, and the layer that X3D has before it
    trained = [name for name, parameter in net.named_parameters() if parameter.requires_grad]
    assert {name.split(".")[0] + name.split(".")[1] for name in trained} == {"blocks5"}
    net.train()
    copied = copy.deepcopy(net).train()  # as the average of the weights is
    before = {key: value.clone() for key, value in net.state_dict().items()}
    for one in (net, copied):
        optimizer = torch.optim.SGD([p for p in one.parameters() if p.requires_grad], lr=0.1)
        one(torch.randn(2, 3, 4, 32, 32)).square().mean().backward()
        optimizer.step()
        assert one.get_submodule("blocks.5.dropout").training
        assert not one.get_submodule("blocks.0").training
        changed = {key for key, value in one.state_dict().items() if not value.equal(before[key])}
        assert {key for key in changed if not key.startswith("blocks.5.")} == set()
        assert "blocks.5.pool.pre_norm.running_mean" in changed
        assert "blocks.5.proj.weight" in changed
    assert net.eval().training is False
    assert not net.get_submodule("blocks.5.dropout").training


def test_freezing_all_or_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"train_layers=4 freezes nothing.*4 layers below its"):
        anatomy.freeze(c3d(num_classes=3), train_layers=4)
    net = c3d(num_classes=3)
    anatomy.freeze(net, train_layers=0)
    with pytest.raises(UsageError, match=r"freeze_norm=true freezes nothing"):
        anatomy.freeze_norms(net)
    with pytest.raises(UsageError, match=r"layer_decay=0.5 has no effect"):
        anatomy.learning_rates(net, layer_decay=0.5, head_lr=1.0)


def test_norm_statistics_stay_and_their_scale_learns() -> None:
    net = c3d(num_classes=3, width=2)
    anatomy.freeze_norms(net)
    net.train()
    net(torch.randn(2, 3, 4, 16, 16)).sum().backward()
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm3d)]
    assert all(norm.running_mean is not None and not norm.running_mean.any() for norm in norms)
    assert all(norm.weight.grad is not None for norm in norms)
    assert net.training


def test_rates_fall_from_the_classifier_to_the_stem() -> None:
    net = c3d(num_classes=3, width=2)
    rates = anatomy.learning_rates(net, layer_decay=0.5, head_lr=10.0)
    assert rates["15.weight"] == rates["15.bias"] == 10.0
    assert [rates[f"{i}.weight"] for i in (9, 10, 6, 3, 1, 0)] == [
        0.5,
        0.5,
        0.25,
        0.125,
        *[2**-4] * 2,
    ]
    anatomy.freeze(net, train_layers=1)
    partly = anatomy.learning_rates(net, layer_decay=1.0, head_lr=3.0)
    assert partly == {"15.weight": 3, "15.bias": 3, "9.weight": 1, "10.weight": 1, "10.bias": 1}
