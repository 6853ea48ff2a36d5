"""A checkpoint's tensors in a network: fitted, reported, or refused."""

import pytest
import torch
from torch import nn

from vidtrain.errors import InputError
from vidtrain.models import anatomy
from vidtrain.models.c3d import c3d
from vidtrain.models.mvit import mvit
from vidtrain.models.mvit_v2 import mvit_v2
from vidtrain.models.slow import slow
from vidtrain.models.tsn import tsn
from vidtrain.models.weights.loading import load_weights
from vidtrain.models.weights.reshaping import reshaped
from vidtrain.models.x3d import x3d


def load(net: nn.Module, state: dict[str, torch.Tensor], *, keep_head: bool = False):
    return load_weights(net, state, origin="file.pt", keep_head=keep_head)


def test_the_same_network_is_taken_over_wholly() -> None:
    given, net = c3d(num_classes=4), c3d(num_classes=4)
    report = load(net, given.state_dict(), keep_head=True)
    assert report.matched == report.total == 20
    assert (report.missing, report.unexpected, report.reshaped) == ((), (), ())
    assert report.head == "head taken over"
    clips = torch.randn(2, 3, 4, 16, 16)
    assert torch.equal(net.eval()(clips), given.eval()(clips))


def test_another_number_of_classes_replaces_the_head_and_nothing_else() -> None:
    given, net = c3d(num_classes=4), c3d(num_classes=7)
    fresh = {key: net.state_dict()[key].clone() for key in anatomy.head(net)}
    report = load(net, given.state_dict())
    assert report.head == "head replaced by a new one of 7 classes"
    assert report.matched == report.total
    for key, tensor in net.state_dict().items():
        expected = fresh[key] if key in fresh else given.state_dict()[key]
        assert torch.equal(tensor, expected)
    with pytest.raises(InputError, match=r"does not fill the network: head replaced"):
        load(c3d(num_classes=7), given.state_dict(), keep_head=True)


def test_what_is_missing_and_what_is_too_much_is_reported() -> None:
    state = c3d(num_classes=4).state_dict()
    del state["1.weight"]
    state["extra.weight"] = torch.zeros(3)
    net = c3d(num_classes=4)
    before = net.state_dict()["1.weight"].clone()
    report = load(net, state)
    assert (report.missing, report.unexpected) == (("1.weight",), ("extra.weight",))
    assert torch.equal(net.state_dict()["1.weight"], before)
    assert any("1 missing, stay random: 1.weight" in line for line in report.lines())
    with pytest.raises(InputError, match=r"does not fill the network: it lacks 1\.weight"):
        load(net, state, keep_head=True)


def test_another_family_is_refused_and_named() -> None:
    with torch.device("meta"):
        state = x3d(400, version="s").state_dict()
    with pytest.raises(InputError, match=r"looks like X3D \(PyTorchVideo names\)"):
        load(slow(400), {key: torch.zeros(tensor.shape) for key, tensor in state.items()})
    net = c3d(num_classes=4)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(InputError, match=r"fills 0 of the network's 20 tensors.*no known family"):
        load(net, {"some.weight": torch.zeros(3)})
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("small", "large"),
    [
        (lambda: tsn(4, backbone="resnet18"), lambda: tsn(4, backbone="resnet34")),
        (lambda: x3d(4, version="s"), lambda: x3d(4, version="l")),
    ],
)
@pytest.mark.parametrize("keep_head", [True, False])
def test_a_deeper_network_of_the_family_is_refused(small, large, keep_head: bool) -> None:
    with pytest.raises(InputError, match="of a larger network of this family"):
        load(small(), large().state_dict(), keep_head=keep_head)


def test_much_that_has_no_place_is_refused_where_nothing_is_trained() -> None:
    state = c3d(num_classes=4).state_dict() | {"predictor.weight": torch.zeros(400, 400)}
    assert load(c3d(num_classes=4), state).unexpected == ("predictor.weight",)
    with pytest.raises(InputError, match=r"% of its numbers have no place .* predictor\.weight"):
        load(c3d(num_classes=4), state, keep_head=True)


def test_kernels_of_images_are_inflated() -> None:
    torch.manual_seed(0)
    flat, deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv3d(3, 4, (5, 3, 3), padding=(0, 1, 1))
    fitted = reshaped(flat.weight.detach(), deep.weight, key="weight", net=deep)
    assert fitted is not None
    assert fitted[1] == "inflated over 5 frames"
    image = torch.randn(2, 3, 8, 8)
    clip = image[:, :, None].expand(-1, -1, 5, -1, -1)
    found = nn.functional.conv3d(clip, fitted[0], flat.bias, padding=(0, 1, 1))
    torch.testing.assert_close(found[:, :, 0], flat(image))


def test_axes_of_one_come_and_go() -> None:
    linear = torch.randn(4, 6)
    fitted = reshaped(linear, torch.empty(4, 6, 1, 1, 1), key="w", net=nn.Identity())
    assert fitted is not None and torch.equal(fitted[0].flatten(1), linear)
    assert reshaped(linear, torch.empty(6, 4), key="w", net=nn.Identity()) is None


@pytest.mark.parametrize(
    ("have", "want", "words"),
    [
        ((8, 14, 14), (16, 14, 14), "8x14x14 to 16x14x14"),
        ((8, 14, 14), (8, 7, 7), "8x14x14 to 8x7x7"),
        ((1, 14, 14), (1, 16, 16), "1x14x14 to 1x16x16"),
        ((8, 1, 1), (4, 1, 1), "8x1x1 to 4x1x1"),
        ((16, 14, 14), (8, 7, 7), "16x14x14 to 8x7x7"),
    ],
)
@pytest.mark.parametrize("class_token", [0, 1])
def test_positions_follow_the_clip_size(
    have: tuple[int, int, int], want: tuple[int, int, int], words: str, class_token: int
) -> None:
    net = nn.Identity()
    joint = {(16, 14, 14), (8, 7, 7)}
    net.token_grid = want if want in joint else (4, 16, 16)  # type: ignore[assignment]
    ramp = torch.linspace(0, 1, have[0] * have[1] * have[2])[None, :, None].expand(-1, -1, 6)
    special = torch.full((1, class_token, 6), 7.0)
    size = want[0] * want[1] * want[2] + class_token
    fitted = reshaped(torch.cat([special, ramp], 1), torch.empty(1, size, 6), key="pos_embed",
                      net=net)  # fmt: skip
    assert fitted is not None
    tensor, how = fitted
    assert how == f"positions {words}"
    assert tensor.shape == (1, size, 6)
    assert (tensor[:, :class_token] == 7).all()
    places = tensor[0, class_token:, 0].reshape(want)
    assert places.min() >= 0 and places.max() <= 1
    assert places.flatten()[0] < 0.2 and places.flatten()[-1] > 0.8  # the ramp still rises


def test_positions_of_an_unknown_grid_do_not_fit() -> None:
    net = nn.Identity()
    assert reshaped(torch.empty(1, 10, 6), torch.empty(1, 12, 6), key="pos", net=net) is None


def test_relative_positions_are_resized_along_their_axis() -> None:
    table = torch.arange(7.0)[:, None].expand(7, 2)
    fitted = reshaped(table, torch.empty(13, 2), key="attn.rel_pos_h", net=nn.Identity())
    assert fitted is not None
    assert fitted[0].shape == (13, 2)
    assert (fitted[0][1:, 0] >= fitted[0][:-1, 0]).all()


@pytest.mark.parametrize("family", ["mvit", "mvit_v2"])
def test_a_transformer_takes_weights_of_another_clip_size(family: str) -> None:
    build = {"mvit": mvit, "mvit_v2": mvit_v2}[family]
    torch.manual_seed(0)
    given = build(4, num_frames=4, crop_size=64, drop_path=0.0).eval()
    net = build(4, num_frames=8, crop_size=96, drop_path=0.0).eval()
    report = load(net, given.state_dict(), keep_head=True)
    assert report.matched == report.total
    assert report.reshaped
    assert all("position" in words for words in report.reshaped)
    assert net(torch.randn(1, 3, 8, 96, 96)).isfinite().all()
    # Sizes that agree leave nothing to fit.
    again = build(4, num_frames=4, crop_size=64, drop_path=0.0).eval()
    assert not load(again, given.state_dict()).reshaped
    clip = torch.randn(1, 3, 4, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(clip), given(clip))
