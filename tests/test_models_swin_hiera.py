"""Video Swin and Hiera: the libraries' own networks, with logits of a mean that can learn."""

from typing import Any

import pytest
import torch
from timm.layers import DropPath
from timm.models.hiera import Hiera
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import video
from torchvision.ops import StochasticDepth

from vidtrain.errors import UsageError
from vidtrain.models.hiera import hiera
from vidtrain.models.swin3d import swin3d
from vidtrain.models.weights.from_hiera import convert

SWIN = {
    "t": (video.swin3d_t, video.Swin3D_T_Weights),
    "s": (video.swin3d_s, video.Swin3D_S_Weights),
    "b": (video.swin3d_b, video.Swin3D_B_Weights),
}
# Millions of parameters and GFLOPs of facebookresearch/hiera's own 16x224 networks (0.1.4), counted
# once; nothing but the names of some weights differs from timm's.
HIERA = {
    "base": (51.09256, 101.73),
    "base_plus": (69.39224, 132.30),
    "large": (213.0916, 412.13),
    "huge": (671.627664, 1157.80),
}
SMALL: dict[str, Any] = {"version": "tiny", "num_frames": 4, "crop_size": 64, "drop_path": 0.0}


@pytest.fixture
def meta():
    with torch.device("meta"):
        yield


def awaken(net):
    """Makes logits differ from clip to clip, as those of a trained network do."""
    for part in net.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.05)
    return net.eval()


def size(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("version", SWIN)
@pytest.mark.usefixtures("meta")
def test_swin_is_torchvisions(version):
    build, weights = SWIN[version]
    ours, library = swin3d(400, version=version), build()
    assert [*ours.state_dict()] == [*library.state_dict()]
    assert size(ours) == weights.DEFAULT.meta["num_params"]


@pytest.mark.parametrize("shape", [(1, 3, 4, 64, 64), (3, 3, 3, 36, 50), (1, 3, 18, 32, 32)])
@torch.no_grad()
def test_logits_of_swin_are_torchvisions_for_clips_of_any_size(shape):
    torch.manual_seed(0)
    library = awaken(video.swin3d_t(num_classes=7))
    net = swin3d(7).eval()
    net.load_state_dict(library.state_dict())
    clips = torch.randn(shape)
    logits = library(clips)
    assert logits.std() > 1e-2
    torch.testing.assert_close(net(clips), logits, rtol=1e-5, atol=1e-5)


def test_swin_learns_in_every_layer_and_has_no_pool():
    torch.manual_seed(0)
    net = awaken(swin3d(5, drop_path=0.0)).train()
    assert not any(isinstance(part, nn.AdaptiveAvgPool3d) for part in net.modules())
    nn.functional.cross_entropy(net(torch.randn(2, 3, 4, 64, 64)), torch.tensor([0, 4])).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.parametrize("version", HIERA)
@pytest.mark.usefixtures("meta")
def test_size_and_cost_of_hiera(version):
    mparams, gflops = HIERA[version]
    net = hiera(400, version=version).eval()
    assert size(net) / 1e6 == mparams
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, 16, 224, 224))
    assert counter.get_total_flops() / 2e9 == pytest.approx(gflops, rel=1e-3)


@torch.no_grad()
def test_logits_of_hiera_are_timms():
    torch.manual_seed(0)
    library = Hiera(
        img_size=(4, 64, 64), num_classes=7, stages=(1, 2, 7, 2), q_stride=(1, 2, 2),
        mask_unit_size=(1, 8, 8), patch_kernel=(3, 7, 7), patch_stride=(2, 4, 4),
        patch_padding=(1, 3, 3), sep_pos_embed=True,
    )  # fmt: skip
    awaken(library)
    net = hiera(7, **SMALL).eval()
    assert [*net.state_dict()] == [*library.state_dict()]
    net.load_state_dict(library.state_dict())
    for batch in (1, 3):
        clips = torch.randn(batch, 3, 4, 64, 64)
        logits = library(clips)
        assert logits.std() > 1e-2
        torch.testing.assert_close(net(clips), logits, rtol=1e-5, atol=1e-5)


def test_hiera_learns_in_every_layer():
    torch.manual_seed(0)
    net = awaken(hiera(5, **SMALL)).train()
    nn.functional.cross_entropy(net(torch.randn(2, 3, 4, 64, 64)), torch.tensor([0, 4])).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key


@pytest.mark.usefixtures("meta")
def test_names_of_the_authors_hiera_become_timms():
    net = hiera(7, **SMALL)
    own = net.state_dict()
    theirs = {
        "head.norm.weight": "norm.weight",
        "head.norm.bias": "norm.bias",
        "head.fc.weight": "head.projection.weight",
        "head.fc.bias": "head.projection.bias",
    }
    given = {theirs.get(key, key): tensor for key, tensor in own.items()}
    found = convert(given, own)
    assert found is not None
    assert found.keys() == own.keys()
    assert all(found[key] is own[key] for key in own)

    encoder = {key: tensor for key, tensor in own.items() if not key.startswith("head.")}
    encoder |= {
        "encoder_norm.weight": own["head.norm.weight"],
        "decoder_norm.weight": given["norm.weight"],
    }
    found = convert(encoder, own)
    assert found is not None
    assert found.keys() - own.keys() == {"decoder_norm.weight"}
    assert found["head.norm.weight"] is own["head.norm.weight"]

    assert convert(own, own) is None
    assert convert(swin3d(7).state_dict(), own) is None
    assert convert(given, swin3d(7).state_dict()) is None


@pytest.mark.usefixtures("meta")
def test_the_grid_of_tokens_is_that_of_hieras_positions():
    net: Any = hiera(7, version="tiny", num_frames=6, crop_size=96)
    frames, height, width = net.token_grid
    assert net.pos_embed_temporal.shape[1] == frames
    assert net.pos_embed_spatial.shape[1] == height * width


@pytest.mark.usefixtures("meta")
def test_rates_arrive():
    swin: Any = swin3d(7, drop_path=0.15, dropout=0.25)
    skipped = [part.p for part in swin.modules() if isinstance(part, StochasticDepth)]
    assert (min(skipped), max(skipped)) == (0, pytest.approx(0.15))
    net: Any = hiera(7, version="tiny", drop_path=0.15, dropout=0.25)
    skipped = [part.drop_prob for part in net.modules() if isinstance(part, DropPath)]
    assert max(skipped) == pytest.approx(0.15)
    for part in (swin.avgpool[-1], net.head.drop):
        assert part.p == 0.25


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: hiera(7, version="giant"),
            "version=giant does not exist: choose from tiny, small,",
        ),
        (
            lambda: hiera(7, crop_size=48),
            "Hiera cannot .* 48 pixels.*crop_size to a multiple of 32",
        ),
        (
            lambda: hiera(7, num_frames=3),
            "3 frames at 224 pixels: set num_frames to a multiple of 2",
        ),
        (lambda: hiera(7, drop_path=1.5), "drop_path=1.5 is no rate"),
        (lambda: swin3d(7, version="l"), "version=l does not exist: choose from t, s, b"),
        (lambda: swin3d(7, dropout=1.0), "dropout=1.0 is no rate"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


@pytest.mark.usefixtures("meta")
def test_hiera_refuses_clips_of_another_size():
    net = hiera(7, **SMALL)
    with pytest.raises(UsageError, match=r"Hiera got a clip of 8x64x64 .*built for 4x64x64"):
        net(torch.empty(1, 3, 8, 64, 64))
