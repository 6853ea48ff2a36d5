"""TSN and TSM: the image networks they are made of, and the sizes that are published."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from conftest import REPO
from omegaconf import OmegaConf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from vidtrain.errors import UsageError
from vidtrain.export.formats import load_onnx, to_onnx
from vidtrain.models.c2d import c2d
from vidtrain.models.i3d import i3d
from vidtrain.models.resnet3d import resnet3d
from vidtrain.models.slow import slow
from vidtrain.models.slowfast import slowfast
from vidtrain.models.tsm import tsm
from vidtrain.models.tsn import tsn
from vidtrain.models.weights import from_images
from vidtrain.models.weights.loading import load_weights

NAMES = sorted(path.stem for path in (REPO / "conf" / "model").glob("ts[mn]_*.yaml"))


def load(name: str) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(OmegaConf.load(REPO / "conf" / "model" / f"{name}.yaml"))
    return plain


def build(name: str, num_classes: int, **overrides: Any) -> Any:
    arguments = load(name)["build"] | overrides
    builder = tsm if arguments.pop("_target_").endswith(".tsm") else tsn
    return builder(num_classes, **arguments)


def awaken(net: Any, inputs: Any) -> Any:
    """Gives norms and head what trained ones have: fresh norms close branches and hide errors."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.7, 1.3)
            nn.init.uniform_(part.bias, -0.2, 0.2)
            part.momentum = 1.0
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.05)
    net.train()(inputs)
    return net.eval()


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    assert wanted.std() > 1e-3
    assert (found - wanted).abs().max() <= 1e-5 * wanted.std()


@pytest.mark.parametrize("name", NAMES)
def test_any_number_of_segments_passes_and_the_classifier_comes_last(name: str) -> None:
    model = load(name)
    crop = model["input"]["crop_size"]
    with torch.device("meta"):
        net = build(name, 7, dropout=0.25)
        rates = [part.p for part in net.modules() if isinstance(part, nn.Dropout) and part.p]
        assert rates == [0.25]
        assert net(torch.empty(3, 3, model["input"]["num_frames"], crop, crop)).shape == (3, 7)
        assert net.eval()(torch.empty(1, 3, 1, crop, crop)).shape == (1, 7)
    weights = [weight for key, weight in net.named_parameters() if key.endswith("weight")]
    assert weights[-1].shape[0] == 7


def counted(net: Any, segments: int) -> tuple[int, float]:
    """Returns parameters, and billions of multiply-adds for a clip of 224 pixels."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net.eval()(torch.empty(1, 3, segments, 224, 224))
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops() / 2e9


@pytest.mark.parametrize(
    ("name", "segments", "millions", "gflops"),
    [
        # MMAction2, configs/recognition/tsn/README.md; 25 segments are its test clip.
        ("tsn_resnet50", 25, "24.33", 102.7),
        ("tsn_resnet101", 25, "43.32", 195.8),
        # MMAction2 0.x, configs/recognition/tsm/metafile.yml; FLOPs of its 1.x README.
        ("tsm_resnet50", 8, "24.33", 32.88),
        ("tsm_resnet50", 16, "24.33", 65.75),
    ],
)
def test_sizes_are_the_published_ones(
    name: str, segments: int, millions: str, gflops: float
) -> None:
    with torch.device("meta"):
        parameters, billions = counted(build(name, 400), segments)
    assert f"{parameters / 1e6:.2f}" == millions
    assert billions == pytest.approx(gflops, rel=0.02)


def test_tsm_has_the_exact_sizes_of_mmaction2() -> None:
    # Its 0.x metafile has 24327632 parameters for Kinetics-400 and 23606384 for Diving48. The
    # 23.87M of its 1.x README are those of 174 classes, rounded twice: 23.8646, 23.865, 23.87.
    with torch.device("meta"):
        sizes = {count: sum(p.numel() for p in tsm(count).parameters()) for count in (400, 174, 48)}
    assert (sizes[400], sizes[48]) == (24_327_632, 23_606_384)
    assert f"{sizes[174] / 1e6:.3f}" == "23.865"


@pytest.mark.parametrize("name", NAMES)
def test_digests_are_those_in_the_file_names(name: str) -> None:
    for entry in load(name)["published"]:
        if entry["sha256"]:  # MMAction2's; GluonCV's file names have the start of a SHA-1
            assert entry["url"].endswith(f"-{entry['sha256']}.pth")


@pytest.mark.parametrize(
    ("backbone", "original", "side"),
    [
        ("resnet18", models.resnet18, 32),
        ("googlenet", models.googlenet, 32),
        ("inception_v3", models.inception_v3, 75),
        pytest.param("vgg11", models.vgg11, 32, marks=pytest.mark.slow),  # half a gigabyte
    ],
)
@torch.no_grad()
def test_weights_of_torchvision_give_its_logits(backbone: str, original: Any, side: int) -> None:
    torch.manual_seed(0)
    plain = {} if backbone[:3] in ("res", "vgg") else {"init_weights": False, "aux_logits": False}
    raw = awaken(original(num_classes=7, **plain), torch.randn(8, 3, side, side))
    net = tsn(7, backbone=backbone).eval()
    report = load_weights(net, raw.state_dict(), origin="file.pth", keep_head=True)
    assert (report.naming, report.missing, report.unexpected) == ("image model", (), ())
    clip = torch.randn(2, 3, 3, side, side)
    close(net(clip), torch.stack([raw(frame) for frame in clip.unbind(2)]).mean(0))


def test_side_classifiers_and_other_classes_are_reported() -> None:
    raw = models.googlenet(weights=None, num_classes=5, init_weights=False)
    report = load_weights(
        tsn(7, backbone="googlenet"), raw.state_dict(), origin="file.pth", keep_head=False
    )
    assert report.matched == report.total
    assert report.head == "head replaced by a new one of 7 classes"
    assert {name.split(".")[0] for name in report.unexpected} == {"aux1", "aux2"}


@pytest.mark.parametrize(
    "backbone",
    ["resnet18", "inception_v3", "convnext_atto", "mobilenetv3_small_050", "vit_tiny_patch16_224"],
)
def test_weights_of_timm_fill_tsn_wholly(backbone: str) -> None:
    torch.manual_seed(0)
    raw = timm.create_model(backbone, pretrained=False)
    net: Any = tsn(7, backbone=backbone)
    report = load_weights(net, raw.state_dict(), origin="x", keep_head=False)
    assert (report.matched, report.missing, report.unexpected) == (report.total, (), ())
    assert report.head == "head replaced by a new one of 7 classes"
    given = raw.state_dict()
    for key, tensor in net.backbone.state_dict().items():
        assert torch.equal(tensor, given[key]), key


@torch.no_grad()
def test_a_frame_means_to_c2d_what_it_means_to_the_image_network() -> None:
    torch.manual_seed(0)
    raw = awaken(models.resnet50(num_classes=7), torch.randn(8, 3, 64, 64))
    net = c2d(7).eval()
    load_weights(net, raw.state_dict(), origin="file.pth", keep_head=True)
    frame = torch.randn(2, 3, 32, 32)
    close(net(frame.unsqueeze(2)), raw(frame))


@pytest.mark.parametrize(
    ("build_3d", "original"),
    [
        (c2d, models.resnet50),
        (i3d, models.resnet50),
        (slow, models.resnet50),
        (partial(resnet3d, version="r3d_18"), models.resnet18),
        (partial(resnet3d, version="mc3_18"), models.resnet18),
    ],
)
def test_image_weights_fill_3d_resnets_wholly(build_3d: Any, original: Any) -> None:
    with torch.device("meta"):
        own = build_3d(7).state_dict()
        given = from_images.convert(original(num_classes=7).state_dict(), own)
    assert given is not None and given.keys() == own.keys()
    for key, tensor in own.items():
        flat = tensor.shape[:2] + tensor.shape[3:] if tensor.ndim == 5 else tensor.shape
        assert given[key].shape == flat, key


def test_image_weights_reach_the_slow_pathway_of_slowfast() -> None:
    with torch.device("meta"):
        own = slowfast(7).state_dict()
        given = from_images.convert(models.resnet50().state_dict(), own)
    assert given is not None
    slow_keys = {key for key in own if ".multipathway_blocks.0." in key}
    assert {key for key in given if ".multipathway_blocks." in key} == slow_keys


class Shifted(nn.Module):
    """A convolution behind a shift among a fixed number of frames, written place by place."""

    def __init__(self, net: nn.Module, segments: int) -> None:
        super().__init__()
        self.net, self.segments = net, segments

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        frames = frames.clone()
        clips = frames.view(-1, self.segments, *frames.shape[1:])
        before = clips.clone()
        part = clips.shape[2] // 8
        for index in range(self.segments):
            last = index == self.segments - 1
            clips[:, index, :part] = 0 if last else before[:, index + 1, :part]
            clips[:, index, part : 2 * part] = before[:, index - 1, part : 2 * part] if index else 0
        return self.net(frames)


@torch.no_grad()
def test_tsm_shifts_in_every_block_by_any_number_of_frames() -> None:
    torch.manual_seed(0)
    raw: Any = awaken(torchvision.models.resnet50(num_classes=7), torch.randn(8, 3, 64, 64))
    net = tsm(7).eval()
    load_weights(net, raw.state_dict(), origin="file.pth", keep_head=True)
    another = copy.deepcopy(net)
    for segments in (3, 1, 5):
        original = copy.deepcopy(raw)
        for stage in (original.layer1, original.layer2, original.layer3, original.layer4):
            for block in stage:
                block.conv1 = Shifted(block.conv1, segments)
        clip = torch.randn(2, 3, segments, 32, 32)
        scores = original(clip.transpose(1, 2).flatten(0, 1)).view(2, segments, 7).mean(1)
        close(net(clip), scores)
        assert another(clip[:, :, :1]).shape == (2, 7)  # a copy does not share the length
        close(net(clip[:1]), scores[:1])


def test_tsm_learns_in_every_layer() -> None:
    torch.manual_seed(0)
    net = tsm(7)
    net(torch.randn(2, 3, 3, 32, 32)).square().sum().backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key


@pytest.mark.slow
@torch.no_grad()
def test_tsm_is_exported_for_any_number_of_segments(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = torch.randn(2, 3, 4, 32, 32)
    net = awaken(tsm(7), torch.randn(4, 3, 4, 64, 64))
    written = to_onnx(net, clip, tmp_path / "net.onnx", dynamic_time=True)
    assert written.dynamic_axes == ("batch", "time"), written.note
    run = load_onnx(tmp_path / "net.onnx")
    for length in (4, 5, 8):
        other = torch.randn(3, 3, length, 32, 32)
        torch.testing.assert_close(run(other), net(other), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tsm(7, shift_div=1), "shift_div=1 leaves no channel"),
        (lambda: tsm(7, dropout=1.0), "dropout=1.0 is no rate"),
    ],
)
def test_wrong_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
