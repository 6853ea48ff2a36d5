"""The YAML files of conf/model and what they have in common, and TSN on any image backbone."""

import re

import numpy as np
import pytest
import timm
import torch
from omegaconf import OmegaConf
from pytorchvideo.models import hub
from test_zoo import NAMES, node_of
from torch import nn

from vidtrain.config.model import InputConfig
from vidtrain.errors import UsageError
from vidtrain.models.c3d import c3d
from vidtrain.models.mend import GlobalMean, mend
from vidtrain.models.tsn import tsn
from vidtrain.models.weights.loading import load_weights
from vidtrain.targets import component

INPUT = ["num_frames", "sampling_rate", "crop_size", "short_side", "eval_crop_size",
         "eval_short_side", "mean", "std"]  # fmt: skip
PUBLISHED = {"dataset", "top1", "top5", "views", "url", "sha256", "num_classes", "source",
             "licence", "note"}  # fmt: skip


def meta(name):
    with torch.device("meta"):
        return component(node_of(name)["build"], "model.build", num_classes=7)


@pytest.mark.parametrize("name", NAMES)
def test_input_spec_is_complete(name):
    model = node_of(name)
    spec = model["input"]
    assert model["name"] == name
    assert [key for key in spec if key not in ("crop_area", "crop_aspect")] == INPUT
    low, high = spec["short_side"]
    assert spec["crop_size"] <= low <= high
    assert spec["eval_crop_size"] <= spec["eval_short_side"]
    sampler = model["defaults"][0]["/clip_sampler@_global_.clip_sampler"]
    assert sampler in {"dense", "tsn", "uniform"}
    assert (sampler == "tsn") == (model["family"] in ("TSN", "TSM"))


@pytest.mark.parametrize("name", NAMES)
def test_published_results_are_whole(name):
    for entry in node_of(name).get("published") or []:
        assert entry.keys() <= PUBLISHED
        assert entry["dataset"] and entry["source"]
        assert entry.get("num_classes", 400) > 1
        for key in ("top1", "top5"):
            assert entry.get(key) is None or 1 < entry[key] <= 100
        url, digest = entry.get("url"), entry.get("sha256")
        assert url is None or re.match(r"https://[\w.-]+/\S+$|hf:[\w.-]+/[\w.-]+", url)
        assert digest is None or re.fullmatch("[0-9a-f]{8,64}", digest)


def test_what_notes_say_can_be_set():
    notes = [entry["note"] for name in NAMES for entry in node_of(name).get("published") or []
             if entry.get("note")]  # fmt: skip
    given = [note.partition(";")[0].split()[1:] for note in notes if note.startswith("set ")]
    assert len(given) > 20
    for settings in given:
        spec = [text.removeprefix("model.input.") for text in settings if "model.input." in text]
        OmegaConf.merge(OmegaConf.structured(InputConfig), OmegaConf.from_dotlist(spec))
        others = {text for text in settings if not text.startswith("model.input.")}
        assert others <= {"clip_sampler=tsn"}
        assert not others or "sampling_rate=1" in spec


IMAGES = [(name, entry) for name in NAMES for entry in node_of(name).get("published") or []
          if (entry["url"] or "").startswith("hf:timm/")]  # fmt: skip


@pytest.mark.parametrize(("name", "entry"), IMAGES, ids=[name for name, _ in IMAGES])
def test_image_weights_fit_their_network(name, entry):
    repo = entry["url"].removeprefix("hf:")
    published = timm.get_pretrained_cfg(node_of(name)["build"].get("backbone", repo[5:]))
    assert published is not None
    assert (published.hf_hub_id, published.num_classes) == (repo, entry["num_classes"])
    assert published.license == entry["licence"].lower()
    with torch.device("meta"):
        state = timm.create_model(repo.removeprefix("timm/"), pretrained=False).state_dict()
        report = load_weights(meta(name), state, origin="x", keep_head=False)
    assert all(".nonlocal_block." in key for key in report.missing)
    assert bool(report.missing) == ("_nl" in name) and not report.unexpected
    assert report.head == "head replaced by a new one of 7 classes"


@pytest.mark.parametrize("name", NAMES)
def test_parts_are_exportable_and_the_pool_reproducible(name):
    for part in meta(name).modules():
        assert not isinstance(part, nn.Softmax) or "attention" in type(part).__module__
        assert type(part).__name__ != "Swish"
        # CUDA has a deterministic backward of these only where they are a mean.
        if isinstance(part, nn.AdaptiveAvgPool3d | nn.AdaptiveAvgPool2d):
            assert part.output_size in (1, (1, 1), (1, 1, 1))
        for size in ("stride", "kernel_size", "padding", "dilation"):
            value = getattr(part, size, 0)
            items = value if isinstance(value, tuple | list) else (value,)
            assert not any(isinstance(item, np.integer) for item in items), (part, size)


@pytest.mark.parametrize("name", [n for n in NAMES if "dropout" in node_of(n)["build"]])
def test_dropout_arrives(name):
    with torch.device("meta"):
        arguments = node_of(name)["build"] | {"dropout": 0.25}
        net = component(arguments, "model.build", num_classes=7)
    assert 0.25 in [part.p for part in net.modules() if isinstance(part, nn.Dropout)]


def awaken(net):
    """Gives norms and head weights of a trained network's size."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm3d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.7, 1.3)
            nn.init.uniform_(part.bias, -0.2, 0.2)
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.05)
    return net


def test_c3d_takes_any_clip_and_learns_in_every_layer():
    net = c3d(num_classes=5, width=4, dropout=0.2)
    for shape in ((2, 3, 8, 64, 64), (2, 3, 5, 24, 40)):
        assert net(torch.randn(shape)).shape == (2, 5)
    net(torch.randn(2, 3, 4, 16, 16)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_mending_keeps_keys_and_works_twice():
    with torch.device("meta"):
        raw = hub.r2plus1d_r50()
    keys = [*raw.state_dict()]
    assert [*mend(mend(raw)).state_dict()] == keys
    assert raw.blocks[-1].activation is None
    assert isinstance(raw.blocks[-1].pool, GlobalMean)


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
    with pytest.raises(UsageError, match=r"'resnt50'; did you mean .*\bresnet50\b"):
        tsn(5, backbone="resnt50")
    with pytest.raises(UsageError, match=r"no image model named 'resnet50\.bogus'"):
        tsn(5, backbone="resnet50.bogus")
    with pytest.raises(UsageError, match=r"'zzzzzzzzz'; see timm\.list_models"):
        tsn(5, backbone="zzzzzzzzz")
