"""Every model of conf/model: it learns, keeps its weights, takes odd batches, and is exported."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import REPO
from omegaconf import OmegaConf
from torch import nn

from vidtrain.errors import InputError
from vidtrain.export.formats import FORMATS
from vidtrain.export.parity import compare, parity_batches
from vidtrain.models import anatomy
from vidtrain.targets import component

CONF = REPO / "conf" / "model"
NAMES = sorted(path.stem for path in CONF.glob("*.yaml"))
# Clips (frames, pixels) that are small and yet keep every stage of a network alive; (4, 32) else.
SMALL = {
    "hiera": (4, 64), "i3d_inceptionv3": (4, 96), "s3d": (16, 64), "slowfast_4x16": (8, 32),
    "timesformer": (2, 32), "tsn_inception_v3": (2, 96), "tsn_timm": (2, 64), "uniformer": (4, 64),
}  # fmt: skip
LARGE = 70e6  # parameters; what is above is left to `make test-all`
# Formats that a model cannot be written in, with what the exporter says.
CANNOT = {("hiera_huge", "onnx"): "one ONNX file holds 2 GiB at most"}


def node_of(name: str) -> dict[str, Any]:
    tree = OmegaConf.create({"model": OmegaConf.load(CONF / f"{name}.yaml")})
    plain: Any = OmegaConf.to_container(tree, resolve=True)
    return plain["model"]


def small_size(name: str) -> tuple[int, int]:
    matching = [size for start, size in SMALL.items() if name.startswith(start)]
    return matching[0] if matching else (4, 32)


def small(
    name: str, num_classes: int = 5, *, num_frames: int | None = None
) -> tuple[nn.Module, torch.Tensor]:
    """Returns a network of full depth and width for a small clip, and three such clips.

    Its batch norms have the statistics of these clips: with those of a fresh network, features can
    fade to nothing on their way.
    """
    frames, pixels = small_size(name)
    frames = num_frames or frames
    arguments = node_of(name)["build"]
    wanted = {"num_frames": frames, "crop_size": pixels, "drop_path": 0.0, "dropout": 0.0}
    arguments |= {key: value for key, value in wanted.items() if key in arguments}
    torch.manual_seed(0)
    net = component(arguments, "model.build", num_classes=num_classes)
    clips = torch.randn(3, 3, frames, pixels, pixels)
    norms = [part for part in net.modules() if isinstance(part, nn.BatchNorm2d | nn.BatchNorm3d)]
    for norm in norms:
        norm.momentum = 1.0
    if norms:
        with torch.no_grad():
            net.train()(clips)
    return net, clips


def sizes() -> dict[str, float]:
    with torch.device("meta"):
        return {name: sum(p.numel() for p in component(node_of(name)["build"], "model.build",
                                                       num_classes=400).parameters())
                for name in NAMES}  # fmt: skip


PARAMETERS = sizes()


def by_size(names: list[str]) -> list[Any]:
    """Large networks go to `make test-all`."""
    return [pytest.param(n, marks=pytest.mark.slow) if PARAMETERS[n] > LARGE else n for n in names]


@pytest.mark.parametrize("name", by_size(NAMES))
def test_a_step_lowers_the_loss_and_weights_make_the_round_trip(name: str) -> None:
    net, clips = small(name)
    labels = torch.tensor([0, 3, 4])
    for batch in (1, 3):
        net.eval()
        with torch.no_grad():
            logits = net(clips[:batch])
        assert logits.shape == (batch, 5)
        assert logits.isfinite().all()
    twin, _ = small(name)
    twin.load_state_dict(copy.deepcopy(net.state_dict()))
    twin.eval()
    with torch.no_grad():
        assert torch.equal(twin(clips), net(clips))
    del twin
    # In eval mode, where batch norm does not depend on the batch: the same function twice.
    before = nn.functional.cross_entropy(net(clips), labels)
    before.backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    gradients = [(p, p.grad) for p in net.parameters() if p.grad is not None]
    squares = sum(float(gradient.square().sum()) for _, gradient in gradients)
    with torch.no_grad():
        for parameter, gradient in gradients:
            parameter.sub_(0.05 * before.detach() / squares * gradient)
        assert nn.functional.cross_entropy(net(clips), labels) < before
    net.train()
    assert net(clips).shape == (3, 5)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch_export"])
@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_exported_or_says_why_not(name: str, format: str, tmp_path: Path) -> None:
    # Built for one clip size, or for any. Of a few frames an inner axis of time is left with one,
    # which exporters take for a constant.
    fixed = "num_frames" in node_of(name)["build"]
    net, clips = small(name, num_frames=None if fixed or name.startswith("swin3d") else 16)
    net.eval()
    with torch.no_grad():  # a fresh classifier may answer everything alike
        for key in anatomy.head(net):
            nn.init.normal_(net.get_parameter(key), std=0.1)
    path, chosen = tmp_path / f"model{FORMATS[format].suffix}", FORMATS[format]
    if (name, format) in CANNOT:
        with pytest.raises(InputError, match=CANNOT[name, format]):
            chosen.write(net, clips[:2], path, dynamic_time=True)
        return
    exported = chosen.write(net, clips[:2], path, dynamic_time=True)
    free = "time" in exported.dynamic_axes
    parity = compare(net, chosen.load(path), parity_batches(clips, dynamic_time=free))
    print(f"{name} {format}: {parity.max_rel:.1e} {exported.dynamic_axes} {exported.note or ''}")
    assert parity.max_rel < 1e-3
    assert exported.dynamic_axes == (("batch",) if fixed else ("batch", "time"))
