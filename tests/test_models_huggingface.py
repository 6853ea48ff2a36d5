"""TimeSformer, ViViT, VideoMAE and V-JEPA 2: sizes, clips, gradients, drop path and export."""

import copy
from typing import NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from timm.layers import DropPath
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vidtrain.errors import UsageError
from vidtrain.models import huggingface
from vidtrain.models.timesformer import timesformer
from vidtrain.models.videomae import videomae
from vidtrain.models.vivit import vivit
from vidtrain.models.vjepa2 import vjepa2

BUILDERS = [timesformer, vivit, videomae, vjepa2]
DYNAMIC_BATCH = ({0: torch.export.Dim.DYNAMIC},)


class Figure(NamedTuple):
    """Parameters in millions and GFLOPs of a view, as printed; None: not printed."""

    builder: object
    version: str
    num_classes: int
    clip: tuple[int, int]
    mparams: str
    gflops: str | None


FIGURES = [
    # The paper's 121.4 is met with the 174 classes of SSv2; GFLOPs are those of MMAction2's
    # configs/recognition/timesformer/metafile.yml.
    Figure(timesformer, "b", 174, (8, 224), "121.4", "196"),
    Figure(vivit, "b", 400, (32, 224), "89", None),
    Figure(videomae, "s", 400, (16, 224), "22", "57"),  # VideoMAE, NeurIPS 2022
    Figure(videomae, "b", 400, (16, 224), "87", "180"),
    Figure(videomae, "l", 400, (16, 224), "304", "597"),  # printed 305
]


@pytest.fixture
def tiny(monkeypatch):
    """Adds a size that is quick to run."""
    monkeypatch.setitem(huggingface.SIZES, "tiny", (24, 2, 2, 48))


def build(builder, num_classes=5, **overrides):
    """Returns a tiny network of trained-like weights for clips of 4 frames at 32 pixels."""
    torch.manual_seed(0)
    small = {"version": "tiny", "num_frames": 4, "crop_size": 32, "drop_path": 0.0}
    net = builder(num_classes, **small | overrides)
    for part in net.modules():
        if isinstance(part, nn.LayerNorm):
            nn.init.uniform_(part.weight, 0.7, 1.3)
        else:
            for name, parameter in part.named_parameters(recurse=False):
                if name != "bias":  # else a skipped branch still adds its bias
                    nn.init.normal_(parameter, std=0.3)
    return net


def layers_of(net):
    inner = net.net
    if hasattr(inner, "vivit"):
        return inner.vivit, "layers"
    return getattr(inner, inner.base_model_prefix).encoder, "layer"


@pytest.mark.parametrize("figure", FIGURES, ids=lambda f: f"{f.builder.__name__}_{f.version}")
def test_size_is_the_published_one(figure):
    num_frames, crop_size = figure.clip
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net = figure.builder(figure.num_classes, version=figure.version)
        net(torch.empty(1, 3, num_frames, crop_size, crop_size))
    assert all(tensor.is_meta for tensor in net.state_dict().values())
    millions = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    decimals = len(figure.mparams.partition(".")[2])
    assert f"{millions:.{decimals}f}" == figure.mparams
    if figure.gflops is not None:
        assert f"{counter.get_total_flops() / 2e9:.0f}" == figure.gflops


def test_vjepa2_has_encoder_and_probe_alone():
    with torch.device("meta"):
        net = vjepa2(174).get_submodule("net")
    millions = {
        name: round(sum(p.numel() for p in part.parameters()) / 1e6)
        for name, part in net.named_children()
    }
    assert millions == {"vjepa2": 304, "pooler": 49, "classifier": 0}  # README: ViT-L/16 300M


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("builder", BUILDERS)
def test_logits_and_gradients_everywhere(builder):
    net = build(builder)
    video = torch.randn(3, 3, 4, 32, 32)
    with torch.no_grad():
        alike = net.eval()(video)
        torch.testing.assert_close(net(video[1:2]), alike[1:2], rtol=1e-4, atol=1e-5)
    assert alike.shape == (3, 5)
    assert (alike.sum(1) - 1).abs().min() > 1e-3  # no softmax
    logits = net.train()(video)
    torch.testing.assert_close(logits, alike, rtol=1e-4, atol=1e-5)
    nn.functional.cross_entropy(logits, torch.tensor([0, 4, 2])).backward()
    for key, parameter in net.named_parameters():
        # What is added to all keys of a softmax cancels out.
        if not key.endswith(("key.bias", "k_proj.bias")):
            assert parameter.grad is not None and parameter.grad.any(), key


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("builder", BUILDERS)
def test_frames_and_places_are_told_apart(builder):
    net = build(builder).eval()
    video = torch.randn(1, 3, 4, 32, 32)
    with torch.no_grad():
        for axis in (2, 3, 4):
            assert (net(video) - net(video.flip(axis))).abs().max() > 1e-3


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("builder", BUILDERS)
def test_classifier_is_the_last_leaf(builder):
    with torch.device("meta"):
        net = build(builder)
    leaves = [name for name, part in net.named_modules() if "weight" in part._parameters]
    assert leaves[-1] == "net.classifier"


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("builder", BUILDERS)
def test_drop_path_skips_the_last_layer(builder):
    net = build(builder, drop_path=0.999999)
    without = copy.deepcopy(net).eval()
    owner, name = layers_of(without)
    setattr(owner, name, getattr(owner, name)[:1])
    video = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net.train()(video), without(video), rtol=1e-4, atol=1e-5)
        assert (net.eval()(video) - without(video)).abs().max() > 1e-3


@pytest.mark.parametrize("builder", [timesformer, vivit, videomae])
def test_drop_path_grows_linearly(builder, monkeypatch):
    monkeypatch.setitem(huggingface.SIZES, "tiny", (24, 5, 2, 48))
    owner, name = layers_of(build(builder, drop_path=0.25))
    for layer, rate in zip(getattr(owner, name), [0, 0.0625, 0.125, 0.1875, 0.25], strict=True):
        assert {p.drop_prob for p in layer.modules() if isinstance(p, DropPath)} == {rate}


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("builder", BUILDERS)
def test_dropout_acts_before_the_classifier_and_in_copies_alone(builder):
    net = build(builder, dropout=0.999999).train()
    video = torch.randn(2, 3, 4, 32, 32)
    copied = copy.deepcopy(net).eval()
    with torch.no_grad():
        torch.testing.assert_close(net(video), net.net.classifier.bias.expand(2, -1))
        assert (copied(video) - copied.net.classifier.bias).abs().max() > 1e-3


@pytest.mark.usefixtures("tiny")
def test_videomae_keeps_its_position_table_out_of_the_weights():
    net = build(videomae)
    key = "net.videomae.embeddings.position_embeddings"
    assert dict(net.named_buffers())[key].shape == (1, 8, 24)
    assert key not in net.state_dict()


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("shape", [(2, 32, 32), (4, 48, 48), (4, 32, 48)])
@pytest.mark.usefixtures("tiny")
def test_clips_of_another_size_are_refused(builder, shape):
    with torch.device("meta"):
        net = build(builder)
        with pytest.raises(UsageError, match="x".join(map(str, shape)) + r".*built for 4x32x32"):
            net(torch.empty(1, 3, *shape))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: videomae(7, version="xl"), "version=xl does not exist: choose from s, b"),
        (lambda: videomae(7, num_frames=15), "15 frames at 224 pixels: .* multiple of 2"),
        (lambda: vivit(7, crop_size=100), "ViViT cannot be .* 100 pixels: .* multiple of 16"),
        (lambda: timesformer(7, num_frames=0), "0 frames at 224 pixels: .* multiple of 1 "),
        (lambda: timesformer(7, drop_path=1.0), "drop_path=1.0 is no rate"),
        (lambda: vjepa2(7, drop_path=-0.1), "drop_path=-0.1 is no rate"),
        (lambda: vivit(7, dropout=1.5), "dropout=1.5 is no rate"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with torch.device("meta"), pytest.raises(UsageError, match=message):
        call()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("builder", BUILDERS)
def test_exported_programs_take_other_batches(builder):
    net = build(builder).eval()
    video = torch.randn(3, 3, 4, 32, 32)
    program = torch.export.export(net, (video[:2],), dynamic_shapes=DYNAMIC_BATCH)
    with torch.no_grad():
        for batch in (1, 3):
            expected = net(video[:batch])
            torch.testing.assert_close(
                program.module()(video[:batch]), expected, rtol=1e-4, atol=1e-5
            )


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("builder", BUILDERS)
def test_onnx_files_take_other_batches(builder, tmp_path):
    net = build(builder).eval()
    video = torch.randn(3, 3, 4, 32, 32)
    program = torch.export.export(net, (video[:2],), dynamic_shapes=DYNAMIC_BATCH)
    file = tmp_path / "net.onnx"
    torch.onnx.export(program, (), file, input_names=["video"], verbose=False)
    session = onnxruntime.InferenceSession(file)
    for batch in (1, 3):
        (logits,) = session.run(None, {"video": video[:batch].numpy()})
        with torch.no_grad():
            expected = net(video[:batch]).numpy()
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
