"""Checkpoints of GluonCV's PyTorch models: published names, and its own modules if installed."""

import importlib
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from vidtrain.models.i3d_resnet import i3d_resnet
from vidtrain.models.resnet3d import resnet3d
from vidtrain.models.slow import slow
from vidtrain.models.slowfast import slowfast
from vidtrain.models.tsn import tsn
from vidtrain.models.weights import from_gluoncv
from vidtrain.models.weights.loading import LoadReport, load_weights
from vidtrain.models.weights.reading import read_weights

State = dict[str, torch.Tensor]
# Our names in GluonCV's words, replaced in order.
RESIDUAL = {
    ".res_blocks.": ".", ".branch1_conv.": ".downsample.0.", ".branch1_norm.": ".downsample.1.",
    ".branch2.conv_a.": ".conv1.", ".branch2.norm_a.": ".bn1.",
    ".branch2.conv_b.": ".conv2.", ".branch2.norm_b.": ".bn2.",
    ".branch2.conv_c.": ".conv3.", ".branch2.norm_c.": ".bn3.",
}  # fmt: skip
I3D_SLOW = {
    **RESIDUAL, "blocks.0.conv.": "conv1.", "blocks.0.norm.": "bn1.", "blocks.5.proj.": "fc.",
    **{f"blocks.{stage}.": f"layer{stage}." for stage in range(1, 5)},
}  # fmt: skip
SLOWFAST = {
    "blocks.0.multipathway_fusion.": "lateral_p1.",
    **{f"blocks.{stage}.multipathway_fusion.": f"lateral_res{stage + 1}." for stage in (1, 2, 3)},
    ".conv_fast_to_slow.": ".0.", "lateral_p1.norm.": "lateral_p1.1.",
    **{f"lateral_res{stage}.norm.": f"lateral_res{stage}.1." for stage in (2, 3, 4)},
    "blocks.0.multipathway_blocks.0.conv.": "slow_conv1.",
    "blocks.0.multipathway_blocks.0.norm.": "slow_bn1.",
    "blocks.0.multipathway_blocks.1.conv.": "fast_conv1.",
    "blocks.0.multipathway_blocks.1.norm.": "fast_bn1.",
    **{f"blocks.{stage}.multipathway_blocks.{way}": f"{word}_res{stage + 1}"
       for stage in range(1, 5) for way, word in enumerate(("slow", "fast"))},
    "blocks.6.proj.": "fc.", **RESIDUAL,
}  # fmt: skip
LAYERS = [f"layer{stage}.{index}" for stage in range(1, 5) for index in (0, 1)]
R2PLUS1D = {
    "stem.0.": "conv1.", "stem.1.": "bn1.", "stem.3.": "conv2.", "stem.4.": "bn2.",
    **{f"{layer}.conv{n}.{old}": f"{layer}.{new}" for layer in LAYERS for n in (1, 2)
       for old, new in (("1.", f"bn{n}."), ("0.0.", f"conv{n}.conv1."), ("0.1.", f"conv{n}.bn1."),
                        ("0.3.", f"conv{n}.conv2."))},
}  # fmt: skip
TSN = {"backbone.": "", "head.": "fc."}


def awaken(net: Any) -> Any:
    """Gives every tensor other values, as far from 0 and 1 as those of trained networks."""
    for key, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            low, high = (0.7, 1.3) if key.endswith("running_var") else (-0.2, 0.2)
            noise = torch.empty_like(tensor).uniform_(low, high)
            tensor.copy_(noise if tensor.ndim == 1 else tensor + 0.1 * noise)
    return net.eval()


def words(state: State, table: dict[str, str]) -> State:
    renamed = {}
    for name, tensor in state.items():
        for old, new in table.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


def doubled(state: State) -> State:
    """As GluonCV writes I3D: the head and the ends of non-local blocks under two names."""
    twice = {key.replace("fc.", "head.1."): t for key, t in state.items() if key[:3] == "fc."}
    for old, new in (("W.", "W_bn.0."), ("bn.", "W_bn.1.")):
        name = f".nonlocal_block.{old}"
        pairs = {key.replace(name, f".nonlocal_block.{new}"): t for key, t in state.items()
                 if name in key}  # fmt: skip
        twice |= pairs
    return state | twice


# Network, its checkpoint under GluonCV's names, length of a clip, and names that must be in it.
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[State], State], int, str]] = {
    "tsn_resnet18": (
        lambda: tsn(7, backbone="resnet18"), lambda state: words(state, TSN), 3,
        "conv1.weight layer4.1.bn2.running_var layer2.0.downsample.1.weight fc.bias",
    ),
    "i3d_slow_resnet50": (
        lambda: slow(7), lambda state: words(state, I3D_SLOW), 4,
        "conv1.weight bn1.bias layer1.0.downsample.0.weight layer3.5.conv3.weight fc.weight",
    ),
    "slowfast_4x16_resnet50": (
        lambda: slowfast(7, version="4x16"), lambda state: words(state, SLOWFAST), 16,
        "slow_conv1.weight fast_bn1.running_mean lateral_p1.0.weight lateral_res4.1.bias "
        "slow_res2.0.downsample.1.weight fast_res5.2.bn3.weight fc.weight",
    ),
    "r2plus1d_v1_resnet18": (
        lambda: resnet3d(7, version="r2plus1d_18"), lambda state: words(state, R2PLUS1D), 4,
        "conv1.weight bn2.weight layer1.0.conv1.conv1.weight layer1.1.conv2.bn1.bias "
        "layer2.0.bn1.weight layer4.0.conv1.conv2.weight layer2.0.downsample.0.weight fc.bias",
    ),
    "i3d_nl5_resnet50_v1": (
        lambda: i3d_resnet(7, non_local=5), doubled, 8,
        "first_stage.0.weight first_stage.1.bias res_layers.3.2.bn3.bias head.1.weight fc.weight "
        "res_layers.1.1.nonlocal_block.theta.bias res_layers.2.5.nonlocal_block.W_bn.1.weight",
    ),
}  # fmt: skip


def loaded(net: nn.Module, state: State, path: Path) -> LoadReport:
    torch.save(state, path)
    return load_weights(net.eval(), read_weights(path), origin=path.name, keep_head=True)


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert wanted.std() > 1e-3
    assert (found - wanted).abs().max() <= 1e-5 * wanted.std()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_published_names_give_the_same_logits(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, publish, length, examples = CASES[name]
    original, net = awaken(build()), build()
    state = publish(original.state_dict())
    assert set(examples.split()) <= state.keys()
    report = loaded(net, state, tmp_path / f"{name}.pth")
    assert (report.matched, report.missing) == (report.total, ())
    assert report.head == "head taken over"
    clip = torch.randn(2, 3, length, 32, 32)
    close(net(clip), original(clip))


def test_what_stands_twice_in_the_file_is_taken_once() -> None:
    with torch.device("meta"):
        own = i3d_resnet(7, non_local=5).state_dict()
    given = from_gluoncv.convert(doubled(own), own)
    assert given is not None and given.keys() == own.keys()


def test_other_names_are_left_to_other_maps() -> None:
    with torch.device("meta"):
        own = slow(7).state_dict()
        for build in (lambda: resnet3d(7, version="r3d_18"), lambda: tsn(7, backbone="resnet18")):
            assert from_gluoncv.convert(build().state_dict(), own) is None


@pytest.fixture
def gluoncv(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Imports single files of GluonCV: the package itself refuses PyTorch 2 on import."""
    spec = find_spec("gluoncv")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("gluoncv is not installed")
    root = Path(spec.submodule_search_locations[0])
    package = "gluoncv.torch.model_zoo.action_recognition"
    for name in ("gluoncv", "gluoncv.torch", "gluoncv.torch.model_zoo", package,
                 "gluoncv.torch.utils"):  # fmt: skip
        module = ModuleType(name)
        module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, module)
    return lambda file: importlib.import_module(f"{package}.{file}")


@pytest.mark.parametrize(
    ("file", "function", "build", "length"),
    [
        ("slowfast", "slowfast_4x16_resnet50_kinetics400",
         lambda: slowfast(7, version="4x16"), 16),
        ("slowfast", "slowfast_8x8_resnet50_kinetics400", lambda: slowfast(7), 16),
        ("slowfast", "slowfast_8x8_resnet101_kinetics400", lambda: slowfast(7, depth=101), 16),
        ("i3d_slow", "i3d_slow_resnet50_f8s8_kinetics400", lambda: slow(7), 8),
        ("r2plus1dv1", "r2plus1d_v1_resnet18_kinetics400",
         lambda: resnet3d(7, version="r2plus1d_18"), 8),
        ("actionrec_resnetv1b", "resnet50_v1b_kinetics400",
         lambda: tsn(7, backbone="resnet50"), 3),
        ("i3d_resnet", "i3d_resnet50_v1_kinetics400", lambda: i3d_resnet(7), 16),
        ("i3d_resnet", "i3d_nl5_resnet101_v1_kinetics400",
         lambda: i3d_resnet(7, depth=101, non_local=5), 16),
    ],
)  # fmt: skip
@torch.no_grad()
def test_logits_are_those_of_gluoncv(
    file: str,
    function: str,
    build: Callable[[], Any],
    length: int,
    gluoncv: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    module = gluoncv(file)
    if file == "i3d_resnet":
        module.I3D_ResNetV1.inflate_weights = lambda net: None  # it downloads image weights
    no = dict.fromkeys(
        ("PRETRAINED", "PRETRAINED_BASE", "BN_EVAL", "PARTIAL_BN", "BN_FROZEN"), False
    )
    config = SimpleNamespace(
        MODEL=SimpleNamespace(**no),
        DATA=SimpleNamespace(NUM_CLASSES=7, NUM_SEGMENT=1, NUM_CROP=1),
        INFERENCE=SimpleNamespace(FEAT=False),
    )
    original, net = awaken(getattr(module, function)(SimpleNamespace(CONFIG=config))), build()
    report = loaded(net, original.state_dict(), tmp_path / "file.pth")
    assert (report.matched, report.missing) == (report.total, ())
    clip = torch.randn(2, 3, length, 32, 32)
    logits = original(clip)
    if file == "slowfast":  # its slow pathway gets other frames
        pathways: Any = [clip[:, :, :: net.alpha], clip]
        for block in net.blocks:
            pathways = block(pathways)
        close(pathways, logits)
    else:
        close(net(clip), logits)
