"""Which parameters are decayed, at which rate, and how gradients are clipped: by hand."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from vidtrain.errors import UsageError
from vidtrain.models.anatomy import learning_rates
from vidtrain.training.clipping import clip_gradients
from vidtrain.training.parameters import lr_factor, parameter_groups


class Transformer(nn.Module):
    """Every kind of parameter that recipes exempt from weight decay, by its usual name."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed_spatial = nn.Parameter(torch.zeros(1, 9, 4))
        self.position_embeddings = nn.Parameter(torch.zeros(1, 9, 4))
        self.time_embeddings = nn.Parameter(torch.zeros(1, 2, 4))
        self.query_tokens = nn.Parameter(torch.zeros(1, 1, 4))
        self.rel_pos_h = nn.Parameter(torch.zeros(7, 4))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(7, 2))
        self.pos_embed = nn.Conv1d(4, 4, 3)  # UniFormer's, which is a convolution
        self.in_proj_weight = nn.Parameter(torch.zeros(12, 4))
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.ones(()))
        self.odd = nn.Parameter(torch.zeros(2, 2))
        self.head = nn.Linear(4, 2)


def names_by_decay(model: nn.Module, *, off: bool = True) -> tuple[set[str], set[str]]:
    """Names of the parameters with the optimizer's weight decay, and of those without any."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, exempt = set[str](), set[str]()
    for group in parameter_groups(model, no_decay_norm_bias=off):
        (exempt if "weight_decay" in group else decayed).update(
            names[id(p)] for p in group["params"]
        )
    return decayed, exempt


def test_norms_biases_and_embeddings_go_without_decay() -> None:
    model = Transformer()
    decayed, _ = names_by_decay(model)
    assert decayed == {"pos_embed.weight", "in_proj_weight", "odd", "head.weight"}
    assert names_by_decay(model, off=False)[1] == set()
    model.no_weight_decay = lambda: {"odd", "head.*"}  # type: ignore[assignment]
    assert names_by_decay(model)[0] == {"pos_embed.weight", "in_proj_weight"}


def test_real_transformers_exempt_what_their_recipes_do() -> None:
    from torchvision.models.video import mvit_v1_b, swin3d_t

    with torch.device("meta"):
        mvit, swin = mvit_v1_b(weights=None), swin3d_t(weights=None)
    matrices = {name for name, parameter in mvit.named_parameters() if parameter.ndim > 1}
    assert matrices & names_by_decay(mvit)[1] == {
        "pos_encoding.spatial_pos", "pos_encoding.temporal_pos"
    }  # fmt: skip
    tables = {n for n, _ in swin.named_parameters() if n.endswith("relative_position_bias_table")}
    assert len(tables) == 12 and tables <= names_by_decay(swin)[1]


def test_a_network_whose_own_list_fails_is_grouped_by_names() -> None:
    from timm.models.hiera import Hiera

    with torch.device("meta"):
        model = Hiera(img_size=(16, 224, 224), patch_kernel=(3, 7, 7), patch_stride=(2, 4, 4),
                      patch_padding=(1, 3, 3), q_stride=(1, 2, 2), mask_unit_size=(1, 8, 8),
                      sep_pos_embed=True)  # fmt: skip
    assert {"pos_embed_spatial", "pos_embed_temporal"} <= names_by_decay(model)[1]
    assert "blocks.0.attn.qkv.weight" in names_by_decay(model)[0]


class Block(nn.Module):
    """A block of two weights, as anatomy knows one."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4)


def test_groups_of_layer_decay_by_hand() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(Block(), Block()), nn.LayerNorm(4),
                          nn.Linear(4, 2))  # fmt: skip
    rates = learning_rates(model, layer_decay=0.5, head_lr=10)
    groups = parameter_groups(model, no_decay_norm_bias=True, lr_scales=rates)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    table = [(group["lr_scale"], group.get("weight_decay"), [names[id(p)] for p in group["params"]])
             for group in groups]  # fmt: skip
    assert table == [
        (10, None, ["3.weight"]),
        (10, 0.0, ["3.bias"]),
        (0.5, None, ["1.1.up.weight", "1.1.down.weight"]),
        (0.5, 0.0, ["1.1.up.bias", "1.1.down.bias", "2.weight", "2.bias"]),
        (0.25, None, ["1.0.up.weight", "1.0.down.weight"]),
        (0.25, 0.0, ["1.0.up.bias", "1.0.down.bias"]),
        (0.125, None, ["0.weight"]),
        (0.125, 0.0, ["0.bias"]),
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.05)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.05, 0.0] * 4


def test_frozen_parameters_have_no_group() -> None:
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.Linear(4, 2))
    groups = parameter_groups(model, no_decay_norm_bias=True)
    assert [(len(g["params"]), g.get("weight_decay")) for g in groups] == [(2, None), (4, 0.0)]
    model[0].weight.requires_grad_(False)
    groups = parameter_groups(model, no_decay_norm_bias=False)
    assert [(len(g["params"]), g.get("weight_decay")) for g in groups] == [(5, None)]


def test_the_rate_follows_the_batch() -> None:
    assert lr_factor("linear", 64, 256) == 0.25
    assert lr_factor("sqrt", 64, 256) == 0.5
    assert lr_factor("linear", 64, None) == 1.0
    with pytest.raises(UsageError, match=r"lr_rule=sqrt changes nothing without train.lr_batch"):
        lr_factor("sqrt", 64, None)
    with pytest.raises(UsageError, match=r"train.lr_rule='cubic' is unknown; use linear or sqrt"):
        lr_factor("cubic", 64, 256)


def with_gradient(values: list, grad: list) -> nn.Parameter:
    parameter = nn.Parameter(torch.tensor(values))
    parameter.grad = torch.tensor(grad)
    return parameter


def test_clipping_by_norm_by_hand() -> None:
    def two() -> list[nn.Parameter]:
        return [with_gradient([1.0], [3.0]), with_gradient([[1.0]], [[4.0]]),
                nn.Parameter(torch.ones(2))]  # fmt: skip

    for norm, expected in ((1.0, [0.6, 0.8]), (10.0, [3.0, 4.0]), (None, [3.0, 4.0])):
        parameters = two()
        assert clip_gradients(iter(parameters), norm=norm).item() == pytest.approx(5.0)
        found = [p.grad.item() for p in parameters if p.grad is not None]
        assert found == pytest.approx(expected, rel=1e-6)
    assert clip_gradients([nn.Parameter(torch.ones(2))], norm=1.0).item() == 0.0


def test_adaptive_clipping_by_hand() -> None:
    def some() -> list[nn.Parameter]:
        # Two output channels with weight norms 5 and 0 (taken as 0.001), and a bias of norm 2.
        return [with_gradient([[3.0, 4.0], [0.0, 0.0]], [[0.0, 10.0], [0.6, 0.8]]),
                with_gradient([2.0], [0.01])]  # fmt: skip

    parameters = some()
    norm = clip_gradients(parameters, agc=0.1)
    assert norm.item() == pytest.approx(math.sqrt(100 + 1 + 0.0001), rel=1e-6)
    kernel, bias = (parameter.grad for parameter in parameters)
    assert kernel is not None and bias is not None
    assert kernel.flatten().tolist() == pytest.approx([0, 0.5, 0.6e-4, 0.8e-4], rel=1e-5)
    assert bias.tolist() == pytest.approx([0.01])
    left_alone = some()
    clip_gradients(left_alone, agc=0.1, unclipped=left_alone[:1])
    assert torch.equal(left_alone[0].grad, some()[0].grad)  # type: ignore[arg-type]


def test_one_way_of_clipping_at_a_time() -> None:
    with pytest.raises(UsageError, match=r"clip_grad_norm=1.0 and train.clip_grad_agc=0.1 are two"):
        clip_gradients([], norm=1.0, agc=0.1)


@pytest.mark.parametrize("way", [{}, {"norm": 1.0}, {"agc": 0.1}])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_told(way: dict[str, Any], value: float) -> None:
    parameters = [with_gradient([1.0], [value]), with_gradient([1.0], [1.0])]
    assert not clip_gradients(parameters, **way).isfinite()
