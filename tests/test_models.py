"""The model builders and the YAML files that name them."""

import copy
from importlib import import_module
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from pytorchvideo.layers import DropPath
from pytorchvideo.models import hub
from torch import nn

from vidtrain.errors import InputError, UsageError
from vidtrain.models.c3d import c3d
from vidtrain.models.mend import GlobalMean, mend
from vidtrain.models.mvit import mvit
from vidtrain.models.slow import slow
from vidtrain.models.slowfast import slowfast
from vidtrain.models.tsn import tsn
from vidtrain.models.x3d import x3d

CONF = Path(__file__).parents[1] / "conf" / "model"

# Millions of parameters with the 400 classes of Kinetics, as printed by PyTorchVideo's
# docs/source/model_zoo.md; TSN by MMAction2's configs/recognition/tsn/metafile.yml.

PUBLISHED_MPARAMS = {
    "c2d_r50": "24.33",
    "csn_r101": "22.21",
    "i3d_r50": "28.04",
    "mvit_base_16x4": "36.61",
    "r2plus1d_r50": "28.11",
    "slow_r50": "32.45",
    "slowfast_r101": "62.83",
    "slowfast_r50": "34.57",
    "tsn_resnet50": "24.33",
    "x3d_l": "6.15",
    "x3d_m": "3.79",
    "x3d_s": "3.79",
    "x3d_xs": "3.79",
}
CONVOLUTIONAL = sorted(PUBLISHED_MPARAMS.keys() - {"mvit_base_16x4"})


def load(name):
    tree = OmegaConf.create({"model": OmegaConf.load(CONF / f"{name}.yaml")})
    plain: Any = OmegaConf.to_container(tree, resolve=True)
    return plain["model"]


def build(name, num_classes=7, **overrides):
    arguments = load(name)["build"] | overrides
    module, _, function = arguments.pop("_target_").rpartition(".")
    return getattr(import_module(module), function)(num_classes=num_classes, **arguments)


def awaken(net, inputs=None):
    """Gives norms and head weights of a trained network's size, and norms the inputs' statistics.

    Fresh norms close residual branches (scale 0), behind which no error would show.
    """
    for part in net.modules():
        if isinstance(part, nn.BatchNorm3d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.7, 1.3)
            nn.init.uniform_(part.bias, -0.2, 0.2)
            part.momentum = 1.0
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.05)
    if inputs is not None:
        net.train()(inputs)
    return net


def test_every_yaml_has_a_published_size():
    ours = {"c3d_small"}  # for CPU trials; nobody has published it
    assert {path.stem for path in CONF.glob("*.yaml")} - ours == PUBLISHED_MPARAMS.keys()


def test_c3d_takes_any_clip_and_learns_in_every_layer():
    net = c3d(num_classes=5, width=4, dropout=0.2)
    for shape in ((2, 3, 8, 64, 64), (2, 3, 5, 24, 40)):
        assert net(torch.randn(shape)).shape == (2, 5)
    net(torch.randn(2, 3, 4, 16, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("name", PUBLISHED_MPARAMS)
def test_parameter_count_is_the_published_one(name):
    with torch.device("meta"):
        net = build(name, num_classes=400)
    assert all(tensor.is_meta for tensor in net.state_dict().values())
    millions = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    assert f"{millions:.2f}" == PUBLISHED_MPARAMS[name]


@pytest.mark.parametrize("name", PUBLISHED_MPARAMS)
def test_no_part_is_left_to_mend(name):
    with torch.device("meta"):
        net = build(name)
    for part in net.modules():
        assert not isinstance(part, nn.AvgPool3d | nn.AdaptiveAvgPool3d | nn.Softmax)
        assert type(part).__name__ != "Swish"
        for size in ("stride", "kernel_size", "padding", "dilation"):
            value = getattr(part, size, 0)
            items = value if isinstance(value, tuple | list) else (value,)
            assert not any(isinstance(item, np.integer) for item in items), (part, size)


@pytest.mark.parametrize("name", PUBLISHED_MPARAMS)
def test_input_spec_is_complete(name):
    model = load(name)
    spec = model["input"]
    assert model["name"] == name
    assert [*spec] == [
        "num_frames",
        "sampling_rate",
        "crop_size",
        "short_side",
        "eval_crop_size",
        "eval_short_side",
        "mean",
        "std",
    ]
    low, high = spec["short_side"]
    assert spec["crop_size"] <= low <= high
    assert spec["eval_crop_size"] <= spec["eval_short_side"]
    sampler = "tsn" if model["family"] == "TSN" else "dense"
    assert model["defaults"][0] == {"/clip_sampler@_global_.clip_sampler": sampler}


@pytest.mark.parametrize("name", PUBLISHED_MPARAMS)
def test_logits_in_train_and_eval_and_gradients_everywhere(name):
    torch.manual_seed(0)
    mvit = name.startswith("mvit")
    # Blocks that happen to be skipped get no gradient.
    small = {"num_frames": 4, "crop_size": 32, "drop_path": 0.0} if mvit else {}
    net = awaken(build(name, **small))
    video = torch.randn(2, 3, 4, 32, 32)

    net.eval()
    with torch.no_grad():
        logits = net(video)
    assert logits.shape == (2, 7)
    assert logits.isfinite().all()
    assert (logits.sum(1) - 1).abs().min() > 1e-3  # no softmax
    assert not torch.equal(logits[0], logits[1])

    net.train()
    logits = net(video)
    assert logits.shape == (2, 7)
    nn.functional.cross_entropy(logits, torch.tensor([0, 6])).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_convolutional_families_take_other_lengths_and_crops(name):
    net = build(name)
    for mode in (True, False):
        net.train(mode)
        with torch.no_grad():
            assert net(torch.randn(2, 3, 8, 64, 48)).shape == (2, 7)


@pytest.mark.parametrize(
    ("original", "num_frames", "crop_size"),
    [
        ("slow_r50", 8, 224),
        ("c2d_r50", 8, 224),
        ("i3d_r50", 8, 224),
        ("x3d_s", 13, 160),
        pytest.param("r2plus1d_r50", 16, 224, marks=pytest.mark.slow),
        pytest.param("csn_r101", 32, 224, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_mending_leaves_the_logits_as_they_were(original, num_frames, crop_size):
    torch.manual_seed(0)
    clip = torch.randn(1, 3, num_frames, crop_size, crop_size)
    raw = awaken(getattr(hub, original)(model_num_class=7), clip).eval()
    mended = mend(copy.deepcopy(raw))
    assert [*mended.state_dict()] == [*raw.state_dict()]
    raw.blocks[-1].activation = None  # the softmax of some
    logits = raw(clip)
    assert logits.std() > 1e-2
    torch.testing.assert_close(mended(clip), logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mending_and_packing_leave_slowfast_as_it_was():
    torch.manual_seed(0)
    clip = torch.randn(1, 3, 32, 224, 224)
    slow_frames = clip[:, :, [0, 4, 8, 12, 16, 20, 24, 28]]
    raw = awaken(hub.slowfast_r50(model_num_class=7), [slow_frames, clip]).eval()
    net = slowfast(7).eval()
    assert [*net.state_dict()] == [*raw.state_dict()]
    net.load_state_dict(raw.state_dict())
    logits = raw([slow_frames, clip])
    assert logits.std() > 1e-2
    torch.testing.assert_close(net(clip), logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_mending_leaves_mvit_as_it_was():
    torch.manual_seed(0)
    raw = awaken(hub.mvit_base_16x4(head_num_classes=7, temporal_size=4, spatial_size=64)).eval()
    net = mvit(7, num_frames=4, crop_size=64).eval()
    assert [*net.state_dict()] == [*raw.state_dict()]
    net.load_state_dict(raw.state_dict())
    clip = torch.randn(2, 3, 4, 64, 64)
    torch.testing.assert_close(net(clip), raw(clip), rtol=1e-5, atol=1e-5)


def test_mending_keeps_keys_and_works_twice():
    with torch.device("meta"):
        raw = hub.r2plus1d_r50()
    keys = [*raw.state_dict()]
    assert [*mend(mend(raw)).state_dict()] == keys
    assert raw.blocks[-1].activation is None
    assert isinstance(raw.blocks[-1].pool, GlobalMean)


def test_dropout_and_drop_path_arrive():
    with torch.device("meta"):
        nets = [build(name, dropout=0.25) for name in PUBLISHED_MPARAMS]
        skipping = mvit(7, drop_path=0.15)
    for net in nets:
        assert 0.25 in [part.p for part in net.modules() if isinstance(part, nn.Dropout)]
    rates = [part.drop_prob for part in skipping.modules() if isinstance(part, DropPath)]
    assert max(rates) == pytest.approx(0.15)


def test_tsn_averages_the_scores_of_its_frames():
    torch.manual_seed(0)
    net = awaken(tsn(5, backbone="resnet18")).eval()
    video = torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        alone = torch.stack([net(video[:, :, i : i + 1]) for i in range(3)])
        torch.testing.assert_close(net(video), alone.mean(0))


@pytest.mark.parametrize("backbone", ["mobilenetv3_small_050", "vgg11", "resnet18.a1_in1k"])
def test_tsn_takes_backbones_of_any_feature_length(backbone):
    with torch.device("meta"):
        net = tsn(5, backbone=backbone)
        assert net(torch.empty(2, 3, 4, 224, 224)).shape == (2, 5)


def test_tsn_names_the_nearest_backbones():
    with pytest.raises(UsageError, match=r"'resnt50': the nearest names are .*\bresnet50\b"):
        tsn(5, backbone="resnt50")
    with pytest.raises(UsageError, match=r"no image model named 'resnet50\.bogus'"):
        tsn(5, backbone="resnet50.bogus")


def test_tsn_refuses_weights_that_do_not_exist():
    with pytest.raises(UsageError, match="no weights for resnet50t"):
        tsn(5, backbone="resnet50t", pretrained=True)


def test_tsn_says_that_weights_could_not_be_had(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="weights of resnet18 cannot be downloaded"):
        tsn(5, backbone="resnet18", pretrained=True)


def test_slowfast_refuses_a_length_its_slow_pathway_cannot_divide():
    with torch.device("meta"):
        net = slowfast(7)
        with pytest.raises(UsageError, match=r"30 frames.*multiple of 4"):
            net(torch.empty(1, 3, 30, 64, 64))


@pytest.mark.parametrize("shape", [(8, 32, 32), (4, 64, 64), (4, 32, 36)])
def test_mvit_refuses_clips_of_another_size(shape):
    with torch.device("meta"):
        net = copy.deepcopy(mvit(7, num_frames=4, crop_size=32))
        with pytest.raises(UsageError, match="x".join(map(str, shape)) + r".*built for 4x32x32"):
            net(torch.empty(1, 3, *shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: slowfast(7, depth=18), "depth=18 does not exist: choose from 50, 101"),
        (lambda: x3d(7, version="xxl"), "version=xxl .* choose from xs, s, m, l"),
        (lambda: slow(7, dropout=-0.5), "dropout=-0.5 is no rate"),
        (lambda: mvit(7, drop_path=1.0), "drop_path=1.0 is no rate"),
        (lambda: mvit(7, num_frames=15), "15 frames at 224 pixels: set num_frames"),
        (lambda: mvit(7, crop_size=0), "16 frames at 0 pixels"),
        (lambda: tsn(7, backbone="resnet18", dropout=1.5), "dropout=1.5 is no rate"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
