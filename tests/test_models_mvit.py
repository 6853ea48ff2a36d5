"""MViT and MViTv2: the libraries' own networks, for clips of one size."""

import copy
from typing import Any

import pytest
import torch
from pytorchvideo.layers import DropPath
from pytorchvideo.models import hub
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.video import MViT_V2_S_Weights, mvit_v2_s
from torchvision.ops import StochasticDepth

from vidtrain.errors import UsageError
from vidtrain.models.clip_size import fix_clip_size
from vidtrain.models.mvit import mvit
from vidtrain.models.mvit_v2 import mvit_v2

SMALL: dict[str, Any] = {"num_frames": 4, "crop_size": 32, "drop_path": 0.0, "dropout": 0.0}
EXACT = MViT_V2_S_Weights.KINETICS400_V1.meta["num_params"]


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


@pytest.mark.usefixtures("meta")
def test_sizes_are_the_published_ones():
    assert size(mvit_v2(400)) == EXACT
    for net, mparams in (
        (mvit(400), "36.61"),  # PyTorchVideo docs/source/model_zoo.md
        (mvit(400, num_frames=32), "36.61"),
        (mvit_v2(174), "34.4"),  # PySlowFast projects/mvitv2/README.md
        (mvit_v2(400, version="b", num_frames=32), "51.2"),
        (mvit_v2(174, version="b", num_frames=32), "51.1"),
    ):
        digits = len(mparams.partition(".")[2])
        assert f"{size(net) / 1e6:.{digits}f}" == mparams


@pytest.mark.usefixtures("meta")
def test_cost_of_mvit_v2_b_is_the_published_one():
    net = mvit_v2(400, version="b", num_frames=32).eval()
    with FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, 32, 224, 224))
    assert counter.get_total_flops() / 2e9 == pytest.approx(225, rel=0.01)


@torch.no_grad()
def test_logits_of_mvit_are_pytorchvideos():
    torch.manual_seed(0)
    library = hub.mvit_base_32x3(head_num_classes=7, temporal_size=4, spatial_size=32)
    net = mvit(7, **SMALL).eval()
    assert [*net.state_dict()] == [*library.state_dict()]
    net.load_state_dict(awaken(library).state_dict())
    assert_same_logits(net, library)


@torch.no_grad()
def test_logits_of_mvit_v2_are_torchvisions():
    torch.manual_seed(0)
    library = awaken(mvit_v2_s(num_classes=7))  # it can only be built for clips of 16x224x224
    library.pos_encoding.temporal_size, library.pos_encoding.spatial_size = 2, (8, 8)
    net = mvit_v2(7, **SMALL).eval()
    own, weights = net.state_dict(), library.state_dict()
    assert [*own] == [*weights]
    for key in [key for key in own if "rel_pos" in key]:  # torchvision does so in each forward
        table = functional.interpolate(weights[key].T[None], len(own[key]), mode="linear")
        weights[key] = table[0].T
    net.load_state_dict(weights)
    assert_same_logits(net, library)


def assert_same_logits(net, library):
    for batch in (1, 3):
        clips = torch.randn(batch, 3, 4, 32, 32)
        logits = library(clips)
        assert logits.std() > 1e-2
        torch.testing.assert_close(net(clips), logits, rtol=1e-5, atol=1e-5)


def test_two_lengths_of_mvit_are_one_network():
    same = hub.mvit_base_16x4(temporal_size=32).state_dict()
    library = hub.mvit_base_32x3().state_dict()
    assert {k: v.shape for k, v in same.items()} == {k: v.shape for k, v in library.items()}


@pytest.mark.parametrize("version", ["s", "b"])
def test_mvit_v2_learns_in_every_layer(version):
    torch.manual_seed(0)
    net = awaken(mvit_v2(5, version=version, num_frames=2, crop_size=64, drop_path=0.0)).train()
    functional.cross_entropy(net(torch.randn(2, 3, 2, 64, 64)), torch.tensor([0, 4])).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    # Only the class token leaves the last block, and neither pool nor positions act on it.
    idle = {key for key, parameter in net.named_parameters() if not parameter.grad.any()}
    last = f"blocks.{len(net.blocks) - 1}.attn"
    assert idle == {f"{last}.pool_q.pool.weight", *(f"{last}.rel_pos_{axis}" for axis in "hwt")}


@pytest.mark.parametrize("shape", [(8, 32, 32), (4, 64, 64), (4, 32, 36)])
@pytest.mark.parametrize("builder", [mvit, mvit_v2])
def test_clips_of_another_size_are_refused(builder, shape):
    with torch.device("meta"):
        net = copy.deepcopy(builder(7, **SMALL))
        with pytest.raises(UsageError, match="x".join(map(str, shape)) + r".*built for 4x32x32"):
            net(torch.empty(1, 3, *shape))


def test_the_message_names_the_family_and_nothing_is_stored():
    net = nn.Identity()
    fix_clip_size(net, num_frames=2, crop_size=8, family="Some family")
    assert not net.state_dict()
    assert net(torch.ones(3, 3, 2, 8, 8)).shape == (3, 3, 2, 8, 8)
    with pytest.raises(UsageError, match=r"^Some family got a clip of 2x8x9 .*num_frames and crop"):
        net(torch.ones(3, 3, 2, 8, 9))


@pytest.mark.usefixtures("meta")
def test_rates_arrive():
    v1 = mvit(7, num_frames=4, crop_size=32, drop_path=0.15, dropout=0.25)
    v2 = mvit_v2(7, num_frames=4, crop_size=32, drop_path=0.15, dropout=0.25)
    skipped = [part.drop_prob for part in v1.modules() if isinstance(part, DropPath)]
    assert max(skipped) == pytest.approx(0.15)
    skipped = [part.p for part in v2.modules() if isinstance(part, StochasticDepth)]
    assert (min(skipped), max(skipped)) == (0, pytest.approx(0.15))
    for net in (v1, v2):
        assert 0.25 in [part.p for part in net.modules() if isinstance(part, nn.Dropout)]


@pytest.mark.usefixtures("meta")
def test_the_grid_of_tokens_is_that_of_the_positions():
    net: Any = mvit(7, num_frames=6, crop_size=40)
    frames, height, width = net.token_grid
    positions = net.cls_positional_encoding
    assert positions.pos_embed_temporal.shape[1] == frames
    assert positions.pos_embed_spatial.shape[1] == height * width


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mvit(7, drop_path=1.0), "drop_path=1.0 is no rate"),
        (lambda: mvit(7, num_frames=15), "MViT cannot .* 15 frames at 224 pixels: set num_frames"),
        (lambda: mvit(7, crop_size=0), "16 frames at 0 pixels"),
        (lambda: mvit_v2(7, version="l"), "version=l does not exist: choose from s, b"),
        (
            lambda: mvit_v2(7, crop_size=30),
            "MViTv2 cannot .* 30 pixels.*crop_size to a multiple of 4",
        ),
        (lambda: mvit_v2(7, dropout=-0.1), "dropout=-0.1 is no rate"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
