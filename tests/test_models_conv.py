"""The 3-D convolutional families: the library's own networks, for every clip."""

from functools import partial
from importlib import import_module
from typing import Any

import pytest
import torch
from conftest import REPO
from omegaconf import OmegaConf
from pytorchvideo.models import hub
from pytorchvideo.models.head import ResNetBasicHead
from pytorchvideo.models.hub import csn as hub_csn
from pytorchvideo.models.hub import r2plus1d as hub_r2plus1d
from pytorchvideo.models.hub import resnet as hub_resnet
from pytorchvideo.models.hub import slowfast as hub_slowfast
from pytorchvideo.models.hub import x3d as hub_x3d
from pytorchvideo.models.slowfast import PoolConcatPathway, create_slowfast
from pytorchvideo.models.x3d import ProjectedPool
from torch import nn
from torch.export import Dim
from torchvision.models import video

from vidtrain.errors import UsageError
from vidtrain.models.csn import csn
from vidtrain.models.resnet3d import resnet3d
from vidtrain.models.s3d import s3d
from vidtrain.models.slowfast import SlowFast, slowfast

PYTORCHVIDEO = {
    "c2d_r50": hub.c2d_r50,
    "csn_r101": partial(hub.csn_r101, dropout_rate=0.5),
    "i3d_r50": hub.i3d_r50,
    "r2plus1d_r50": hub.r2plus1d_r50,
    "slow_4x16_r50": hub.slow_r50,
    "slow_r50": hub.slow_r50,
    "x3d_l": hub.x3d_l,
    "x3d_m": hub.x3d_m,
    "x3d_s": hub.x3d_s,
    "x3d_xs": hub.x3d_xs,
}
SLOWFAST = {
    "slowfast_16x8_r101": hub.slowfast_16x8_r101_50_50,
    "slowfast_4x16_r50": partial(
        create_slowfast,
        slowfast_fusion_conv_kernel_size=(5, 1, 1),
        slowfast_fusion_conv_stride=(8, 1, 1),
    ),
    "slowfast_r101": hub.slowfast_r101,
    "slowfast_r50": hub.slowfast_r50,
}
TORCHVISION = {
    "mc3_18": (video.mc3_18, video.MC3_18_Weights.KINETICS400_V1),
    "r2plus1d_18": (video.r2plus1d_18, video.R2Plus1D_18_Weights.KINETICS400_V1),
    "r3d_18": (video.r3d_18, video.R3D_18_Weights.KINETICS400_V1),
    "s3d": (video.s3d, video.S3D_Weights.KINETICS400_V1),
}
SAME = {"slow_4x16_r50": "slow_r50", "x3d_s": "x3d_m", "x3d_xs": "x3d_m"}  # for other clips
NETWORKS = sorted({*PYTORCHVIDEO, *SLOWFAST, *TORCHVISION, "ipcsn_r101"} - SAME.keys())


def load(name: str) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(OmegaConf.load(REPO / "conf" / "model" / f"{name}.yaml"))
    return plain


def build(name: str, num_classes: int = 7, **overrides: Any) -> nn.Module:
    arguments = load(name)["build"] | overrides
    module, _, function = arguments.pop("_target_").rpartition(".")
    return getattr(import_module(module), function)(num_classes=num_classes, **arguments)


def awaken(net: Any, inputs: Any) -> Any:
    """Gives norms and head what trained ones have: fresh norms close branches and hide errors."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm3d):
            nn.init.uniform_(part.weight, 0.7, 1.3)
            nn.init.uniform_(part.bias, -0.2, 0.2)
            part.momentum = 1.0
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.05)
    net.train()(inputs)
    return net.eval()


def packed(clip: torch.Tensor, alpha: int) -> list[torch.Tensor]:
    """Splits a clip as the transform of PyTorchVideo's documentation does."""
    num_frames = clip.shape[2]
    index = torch.linspace(0, num_frames - 1, num_frames // alpha).long()
    return [clip.index_select(2, index), clip]


def fit_pools(raw: nn.Module, lengths: list[int]) -> None:
    """Sets the pools of PyTorchVideo's head to features of this length and one pixel."""
    pools: list[Any] = []
    for part in raw.modules():
        if isinstance(part, PoolConcatPathway) and part.pool is not None:
            pools += list(part.pool)
        elif isinstance(part, ResNetBasicHead | ProjectedPool):
            pools += [part.pool]
    pools = [pool for pool in pools if isinstance(pool, nn.AvgPool3d)]
    for pool, length in zip(pools, lengths, strict=True):
        pool.kernel_size = (length, 1, 1)


def same_network(ours: nn.Module, raw: Any, clip: torch.Tensor, inputs: Any) -> None:
    assert [*ours.state_dict()] == [*raw.state_dict()]
    ours.load_state_dict(raw.state_dict())
    if hasattr(raw, "blocks"):
        raw.blocks[-1].activation = None  # the softmax of some
    # In float64: over many layers and few pixels, rounding of float32 grows to 1e-3.
    inputs = [x.double() for x in inputs] if isinstance(inputs, list) else inputs.double()
    logits = raw.double()(inputs)
    assert logits.std() > 1e-2
    torch.testing.assert_close(ours.double().eval()(clip.double()), logits, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", sorted(PYTORCHVIDEO.keys() - SAME.keys()))
@torch.no_grad()
def test_logits_are_those_of_pytorchvideo(name: str) -> None:
    torch.manual_seed(0)
    clip = torch.randn(2, 3, 8, 32, 32)
    raw = PYTORCHVIDEO[name](model_num_class=7)
    fit_pools(raw, [{"c2d_r50": 4, "i3d_r50": 4, "csn_r101": 1, "r2plus1d_r50": 2}.get(name, 8)])
    same_network(build(name), awaken(raw, clip), clip, clip)


@pytest.mark.parametrize("name", SLOWFAST)
@torch.no_grad()
def test_slowfast_packs_and_scores_as_pytorchvideo_does(name: str) -> None:
    torch.manual_seed(0)
    alpha = 8 if name == "slowfast_4x16_r50" else 4
    clip = torch.randn(2, 3, 2 * alpha, 32, 32)
    raw = SLOWFAST[name](model_num_class=7)
    fit_pools(raw, [2, 2 * alpha])
    inputs = packed(clip, alpha)
    same_network(build(name), awaken(raw, [x.clone() for x in inputs]), clip, inputs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_frames", "crop_size"),
    [
        ("x3d_s", 13, 160),
        ("slow_r50", 8, 224),
        ("c2d_r50", 8, 224),
        ("i3d_r50", 8, 224),
        ("r2plus1d_r50", 16, 224),
        ("csn_r101", 32, 224),
    ],
)
@torch.no_grad()
def test_untouched_pools_of_the_published_size_agree(
    name: str, num_frames: int, crop_size: int
) -> None:
    torch.manual_seed(0)
    clip = torch.randn(1, 3, num_frames, crop_size, crop_size)
    raw = awaken(PYTORCHVIDEO[name](model_num_class=7), clip)
    same_network(build(name), raw, clip, clip)


@pytest.mark.parametrize("name", TORCHVISION)
@torch.no_grad()
def test_logits_are_those_of_torchvision(name: str) -> None:
    torch.manual_seed(0)
    clip = torch.randn(2, 3, 16 if name == "s3d" else 4, 32, 32)
    raw = TORCHVISION[name][0](num_classes=7)
    if name == "s3d":
        raw.avgpool.kernel_size = (2, 1, 1)
        nn.init.normal_(raw.classifier[1].weight, std=0.05)
    same_network(build(name), awaken(raw, clip), clip, clip)


@pytest.mark.parametrize("length", [2, 3, 8, 16])
def test_s3d_weighs_frames_as_the_sliding_pool_does(length: int) -> None:
    net: Any = s3d(7, dropout=0.0)
    features = torch.randn(2, 1024, length, 7, 7)
    slid = net.classifier(nn.AvgPool3d((2, 7, 7), stride=1)(features)).mean((2, 3, 4))
    ours = net.classifier(net.avgpool(features)).mean((2, 3, 4))
    torch.testing.assert_close(ours, slid, rtol=1e-5, atol=1e-6)
    plain = net.classifier(features.mean((2, 3, 4), keepdim=True)).flatten(1)
    assert torch.allclose(plain, slid, rtol=1e-5, atol=1e-6) == (length == 2)


class First(nn.Module):
    """Passes on what the slow pathway gets."""

    def forward(self, pathways: list[torch.Tensor]) -> torch.Tensor:
        return pathways[0]


@pytest.mark.parametrize(
    ("alpha", "of_32"), [(4, [0, 4, 8, 13, 17, 22, 26, 31]), (8, [0, 10, 20, 31])]
)
def test_slow_frames_are_spread_over_the_clip(alpha: int, of_32: list[int]) -> None:
    net = SlowFast(nn.ModuleList([First()]), alpha=alpha)
    for num_frames in range(alpha, 129, alpha):
        clip = torch.arange(float(num_frames)).view(1, 1, -1, 1, 1)
        assert torch.equal(net(clip), packed(clip, alpha)[0])
        assert num_frames != 32 or net(clip).flatten().tolist() == of_32


def exported(net: nn.Module, clip: torch.Tensor) -> nn.Module:
    axes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC},)
    return torch.export.export(net, (clip,), dynamic_shapes=axes).module()


def test_packing_is_exported_for_any_length() -> None:
    net = SlowFast(nn.ModuleList([First()]), alpha=4)
    program = exported(net, torch.randn(2, 3, 8, 2, 2))
    for num_frames in (8, 16, 32, 64):
        clip = torch.randn(3, 3, num_frames, 2, 2)
        assert torch.equal(program(clip), net(clip))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slowfast_r50", "slowfast_4x16_r50", "s3d", "ipcsn_r101"])
@torch.no_grad()
def test_networks_are_exported_for_any_length(name: str) -> None:
    torch.manual_seed(0)
    net = awaken(build(name), torch.randn(3, 3, 16, 32, 32))
    program = exported(net, torch.randn(2, 3, 16, 32, 32))
    for length in (16, 32):
        clip = torch.randn(3, 3, length, 32, 32)
        torch.testing.assert_close(program(clip), net(clip))


@pytest.mark.parametrize("name", NETWORKS)
def test_any_clip_passes_and_the_classifier_comes_last(name: str) -> None:
    alpha = {"slowfast_4x16_r50": 8}.get(name, 4) if name in SLOWFAST else 1
    dropout: dict[str, Any] = {"dropout": 0.25} if "dropout" in load(name)["build"] else {}
    assert bool(dropout) != (name in {"mc3_18", "r2plus1d_18", "r3d_18"})
    with torch.device("meta"):
        net = build(name, **dropout)
        rates = [part.p for part in net.modules() if isinstance(part, nn.Dropout)]
        assert rates == [*dropout.values()]
        assert all(tensor.is_meta for tensor in net.state_dict().values())
        assert net(torch.empty(3, 3, 3 * alpha, 50, 71)).shape == (3, 7)
        assert net.eval()(torch.empty(1, 3, alpha, 32, 32)).shape == (1, 7)
    weights = [weight for key, weight in net.named_parameters() if key.endswith("weight")]
    assert [index for index, weight in enumerate(weights) if len(weight) == 7] == [len(weights) - 1]


@pytest.mark.parametrize(
    ("depth", "interaction", "parameters"),
    [
        (50, "reduced", 13_131_152),
        (152, "reduced", 29_703_568),
        (152, "preserved", 33_016_592),
    ],
)
def test_csn_has_the_parameters_that_mmaction2_prints(
    depth: int, interaction: str, parameters: int
) -> None:
    with torch.device("meta"):
        net = csn(400, depth=depth, interaction=interaction)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision_entries_are_those_of_its_weights(name: str) -> None:
    model, weights = load(name), TORCHVISION[name][1]
    entry = model["published"][0]
    assert entry["url"] == weights.url
    assert weights.url.endswith(f"-{entry['sha256']}.pth")
    figures = weights.meta["_metrics"]["Kinetics-400"]
    assert (entry["top1"], entry["top5"]) == (figures["acc@1"], figures["acc@5"])
    chosen, clip = weights.transforms(), model["input"]
    assert [clip["crop_size"]] * 2 == [clip["eval_crop_size"]] * 2 == chosen.crop_size
    assert clip["eval_short_side"] == min(chosen.resize_size)
    assert (clip["mean"], clip["std"]) == (chosen.mean, chosen.std)


def test_pytorchvideo_entries_are_those_of_its_hub() -> None:
    urls: dict[str, str] = {}
    for module in (hub_csn, hub_r2plus1d, hub_resnet, hub_slowfast, hub_x3d):
        urls |= module.checkpoint_paths
    urls["slowfast_16x8_r101"] = urls["slowfast_16x8_r101_50_50"]
    for name in {*PYTORCHVIDEO, *SLOWFAST} & urls.keys():
        first = load(name)["published"][0]
        assert (first["url"], first["dataset"], first["num_classes"]) == (urls[name], "K400", 400)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: slowfast(7, depth=18), "depth=18 does not exist: choose from 50, 101"),
        (lambda: slowfast(7, depth=101, version="4x16"), "depth=101 .* choose from 50"),
        (lambda: slowfast(7, version="2x32"), "version=2x32 .* choose from 8x8, 4x16, 16x8"),
        (lambda: csn(7, depth=34), "depth=34 .* choose from 50, 101, 152"),
        (lambda: csn(7, interaction="none"), "interaction=none .* from reduced, preserved"),
        (lambda: resnet3d(7, version="r3d_34"), "version=r3d_34 .* r3d_18, mc3_18, r2plus1d_18"),
        (lambda: s3d(7, dropout=1.0), "dropout=1.0 is no rate"),
    ],
)
def test_wrong_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
