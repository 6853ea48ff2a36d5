"""The inflated networks: what they compute on a still clip, and the sizes that are published."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from conftest import REPO
from omegaconf import OmegaConf
from torch import nn
from torch.export import Dim
from torch.utils.flop_counter import FlopCounterMode

from vidtrain.errors import UsageError
from vidtrain.export.formats import load_onnx, to_onnx
from vidtrain.models.i3d_inception import SamePad, i3d_inceptionv1, i3d_inceptionv3
from vidtrain.models.i3d_resnet import NonLocal, i3d_resnet
from vidtrain.models.weights.loading import load_weights

RESNETS = {
    f"i3d_{f'nl{blocks}_' if blocks else ''}resnet{depth}": (depth, blocks)
    for depth in (50, 101)
    for blocks in (0, 5, 10)
}
BUILDERS = {"i3d_inceptionv1": i3d_inceptionv1, "i3d_inceptionv3": i3d_inceptionv3}


def load(name: str) -> dict[str, Any]:
    plain: Any = OmegaConf.to_container(OmegaConf.load(REPO / "conf" / "model" / f"{name}.yaml"))
    return plain


def awaken(net: Any, inputs: Any) -> Any:
    """Gives norms and head what trained ones have: fresh norms close branches and hide errors."""
    for part in net.modules():
        if isinstance(part, nn.BatchNorm3d | nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.7, 1.3)
            nn.init.uniform_(part.bias, -0.2, 0.2)
            part.momentum = 1.0
        elif isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.05)
    net.train()(inputs)
    return net.eval()


def still(image: torch.Tensor, length: int) -> torch.Tensor:
    """(B, C, H, W) -> (B, C, length, H, W)."""
    return image.unsqueeze(2).expand(-1, -1, length, -1, -1)


def close(found: torch.Tensor, wanted: torch.Tensor, rel: float = 1e-4) -> None:
    assert wanted.std() > 1e-3
    assert (found - wanted).abs().max() <= rel * wanted.std()


def walk(flat: list[nn.Module], deep: Iterator[nn.Module], image: torch.Tensor) -> torch.Tensor:
    """Feeds each layer a still clip of the image layer's input; returns the last image features.

    The clip is long enough for its middle not to see its ends; an odd length keeps the middle of
    a layer that halves it in place.
    """
    for layer_2d, layer_3d in zip(flat, deep, strict=True):
        clip = still(image, 25)
        image = layer_2d(image)
        found = layer_3d(clip)
        close(found[:, :, found.shape[2] // 2], image)
    return image


@torch.no_grad()
def test_inception_v1_is_the_image_network_on_a_still_clip() -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 64, 64)
    flat: Any = torchvision.models.googlenet(
        weights=None, aux_logits=False, init_weights=False, num_classes=7
    )
    stem = flat.conv1.conv
    stem.padding = 0  # of TensorFlow's padding for even sizes the larger part goes behind
    flat.conv1 = nn.Sequential(nn.ZeroPad2d((2, 3, 2, 3)), flat.conv1)
    awaken(flat, image)
    state = {key.replace("conv1.1.", "conv1."): t for key, t in flat.state_dict().items()}
    net = i3d_inceptionv1(7).eval()
    report = load_weights(net, state, origin="googlenet.pth", keep_head=True)
    assert (report.naming, report.missing, report.unexpected) == ("image model", (), ())

    names = ["avgpool", "dropout", "fc", "aux1", "aux2"]
    layers = [part for name, part in flat.named_children() if name not in names]
    body, head = [*net.children()][:-3], [*net.children()][-3:]
    features = walk(layers, iter(body), image)
    logits = flat.fc(features.mean((2, 3)))
    close(nn.Sequential(*head)(still(features, 4)), logits)


def test_inception_v1_has_the_names_of_its_published_file() -> None:
    with torch.device("meta"):
        shapes = {key: tuple(t.shape) for key, t in i3d_inceptionv1(400).state_dict().items()}
    units = ["Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"]
    for mixed in ("3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"):
        units += [f"Mixed_{mixed}.{part}" for part in ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    keys = {f"{unit}.conv3d.weight" for unit in units}
    keys |= {f"{unit}.bn.{key}" for unit in units for key in norm}
    assert shapes.keys() == keys | {"logits.conv3d.weight", "logits.conv3d.bias"}
    assert shapes["Conv3d_1a_7x7.conv3d.weight"] == (64, 3, 7, 7, 7)
    assert shapes["Mixed_4e.b2b.conv3d.weight"] == (64, 32, 3, 3, 3)
    assert shapes["logits.conv3d.weight"] == (400, 1024, 1, 1, 1)


@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 2), (2, 2), (3, 1)])
def test_padding_covers_every_place_as_tensorflow_does(kernel: int, stride: int) -> None:
    pad = SamePad((kernel,) * 3, (stride,) * 3)
    for size in range(3, 9):
        padded = pad(torch.ones(1, 1, size, size, 4))
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        row = padded[0, 0, :, padded.shape[3] // 2, padded.shape[4] // 2].tolist()
        assert row == [0] * (total // 2) + [1] * size + [0] * (total - total // 2)
        assert nn.MaxPool3d(kernel, stride=stride)(padded).shape[2] == -(-size // stride)


@torch.no_grad()
def test_inception_v3_is_the_image_network_on_a_still_clip() -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 75, 75)
    flat: Any = timm.create_model("inception_v3", num_classes=7)
    awaken(flat, image)
    net = i3d_inceptionv3(7).eval()
    report = load_weights(net, flat.state_dict(), origin="inception_v3.pth", keep_head=True)
    assert (report.missing, report.unexpected) == ((), ())

    names = ["global_pool", "head_drop", "fc"]
    layers = [part for name, part in flat.named_children() if name not in names]
    body, head = [*net.children()][:-4], [*net.children()][-4:]
    features = walk(layers, iter(body), image)
    close(nn.Sequential(*head)(still(features, 3)), flat.fc(features.mean((2, 3))))


@torch.no_grad()
def test_a_resnet_is_the_image_network_on_a_still_clip() -> None:
    torch.manual_seed(0)
    image = torch.randn(2, 3, 32, 32)
    flat: Any = awaken(torchvision.models.resnet50(num_classes=7), torch.randn(8, 3, 64, 64))
    net: Any = i3d_resnet(7, depth=50).eval()
    report = load_weights(net, flat.state_dict(), origin="resnet50.pth", keep_head=True)
    assert (report.naming, report.missing, report.unexpected) == ("image model", (), ())
    seen: list[torch.Tensor] = []
    flat.layer4.register_forward_hook(lambda *call: seen.append(call[-1]))
    net.res_layers[3].register_forward_hook(lambda *call: seen.append(call[-1]))
    image = image.double()  # rounding of float32 grows over so many layers
    flat.double()(image)
    net.double()(still(image, 144))  # the middle of the last stage sees 125 frames
    close(seen[1][:, :, seen[1].shape[2] // 2], seen[0])


@torch.no_grad()
def test_fresh_non_local_blocks_change_nothing() -> None:
    torch.manual_seed(0)
    clip = torch.randn(2, 3, 8, 32, 32)
    plain = awaken(i3d_resnet(7), clip)
    net = i3d_resnet(7, non_local=5).eval()
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(".nonlocal_block." in key for key in missing)
    torch.testing.assert_close(net(clip), plain(clip))


@torch.no_grad()
def test_non_local_blocks_attend_to_all_places() -> None:
    torch.manual_seed(0)
    block = awaken(NonLocal(8), torch.randn(3, 8, 2, 3, 4))
    features = torch.randn(2, 8, 2, 3, 4)
    theta, phi, g = (part(features).flatten(2) for part in (block.theta, block.phi, block.g))
    scores = torch.einsum("bct,bcs->bts", theta, phi) / 4**0.5
    mixed = torch.einsum("bts,bcs->bct", scores.softmax(-1), g).view(2, 4, 2, 3, 4)
    torch.testing.assert_close(block(features), block.bn(block.W(mixed)) + features)


@pytest.mark.parametrize(("name", "kind"), RESNETS.items())
def test_non_local_blocks_stand_where_gluoncv_has_them(name: str, kind: tuple[int, int]) -> None:
    depth, blocks = kind
    with torch.device("meta"):
        net: Any = i3d_resnet(400, depth=depth, non_local=blocks)
    places = [
        (stage, index)
        for stage, layers in enumerate(net.res_layers)
        for index, block in enumerate(layers)
        if block.nonlocal_block is not None
    ]
    third = {
        (50, 5): [1, 3, 5], (50, 10): [*range(6)],
        (101, 5): [6, 13, 20], (101, 10): [2, 6, 10, 14, 18, 22],
    }.get(kind, [])  # fmt: skip
    second = {5: [1, 3], 10: [0, 1, 2, 3]}.get(blocks, [])
    assert places == [(1, index) for index in second] + [(2, index) for index in third]
    inflated = [[block.conv1.kernel_size[0] == 3 for block in layers] for layers in net.res_layers]
    assert inflated[0] == [True] * 3 and inflated[3] == [False, True, False]
    assert inflated[1] == [True, False] * 2
    assert inflated[2] == [index % 2 == 0 for index in range(6 if depth == 50 else 23)]


def test_sizes_are_the_published_ones() -> None:
    # MMAction2, configs/recognition/i3d/README.md, has the same networks: 28.0M and 43.5 GFLOPs,
    # with five non-local blocks 35.4M. Its FLOPs are those of the test crop of 256 pixels.
    with torch.device("meta"):
        net, attentive = i3d_resnet(400).eval(), i3d_resnet(400, non_local=5)
        with FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 32, 256, 256))
    millions = [sum(p.numel() for p in each.parameters()) / 1e6 for each in (net, attentive)]
    assert [f"{number:.1f}" for number in millions] == ["28.0", "35.4"]
    assert counter.get_total_flops() / 2e9 == pytest.approx(43.5, rel=0.02)


@pytest.mark.parametrize("name", [*RESNETS, *BUILDERS])
def test_any_clip_passes_and_the_classifier_comes_last(name: str) -> None:
    model = load(name)
    arguments = {key: value for key, value in model["build"].items() if key != "_target_"}
    builder: Any = BUILDERS.get(name, i3d_resnet)
    assert model["build"]["_target_"] == f"{builder.__module__}.{builder.__name__}"
    side = 75 if name == "i3d_inceptionv3" else 32
    with torch.device("meta"):
        net: Any = builder(7, **arguments | {"dropout": 0.25})
        assert [part.p for part in net.modules() if isinstance(part, nn.Dropout)] == [0.25]
        for length in (1, 5, 16):
            assert net(torch.empty(3, 3, length, side, side + 9)).shape == (3, 7)
        assert net.eval()(torch.empty(1, 3, 8, side, side)).shape == (1, 7)
    weights = [weight for key, weight in net.named_parameters() if key.endswith("weight")]
    assert [index for index, weight in enumerate(weights) if len(weight) == 7] == [len(weights) - 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [lambda: i3d_inceptionv1(7), lambda: i3d_resnet(7, non_local=5)],
    ids=["inceptionv1", "nl5_resnet50"],
)
@torch.no_grad()
def test_networks_are_exported_for_any_length(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    net = build()
    clip = torch.randn(2, 3, 16, 32, 32)
    awaken(net, torch.randn(4, 3, 16, 64, 64))
    axes = ({0: Dim.DYNAMIC, 2: Dim.DYNAMIC},)
    program = torch.export.export(net, (clip,), dynamic_shapes=axes).module()
    written = to_onnx(net, clip, tmp_path / "net.onnx", dynamic_time=True)
    assert written.dynamic_axes == ("batch", "time"), written.note
    run = load_onnx(tmp_path / "net.onnx")
    for length in (16, 24, 30):
        other = torch.randn(3, 3, length, 32, 32)
        close(program(other), net(other), rel=1e-3)
        close(run(other), net(other), rel=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: i3d_resnet(7, depth=18), "depth=18 does not exist: choose from 50, 101"),
        (lambda: i3d_resnet(7, non_local=3), "non_local=3 does not exist: choose from 0, 5, 10"),
        (lambda: i3d_resnet(7, dropout=1.0), "dropout=1.0 is no rate"),
        (lambda: i3d_inceptionv1(7, dropout=-0.1), "dropout=-0.1 is no rate"),
        (lambda: i3d_inceptionv3(7, dropout=2.0), "dropout=2.0 is no rate"),
    ],
)
def test_wrong_arguments_are_refused(call: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        call()
