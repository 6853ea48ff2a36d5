"""repro=strict: flags, threads, and what is refused before training starts."""

import copy
import inspect
import itertools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_zoo import NAMES, node_of
from torch import nn
from torch.nn import functional

from vidtrain.config.train import PrecisionConfig, TrainConfig
from vidtrain.errors import UsageError
from vidtrain.models.deterministic import SeparatePool, separate_pools
from vidtrain.models.mend import FittedMaxPool
from vidtrain.running import strict
from vidtrain.targets import component

CLIP = (2, 3, 4, 16, 16)


def settings(**changes: Any) -> TrainConfig:
    return TrainConfig(name="n", run_dir="r", optimizer={}, schedule={}, **changes)


def flags() -> dict[str, Any]:
    return {
        "algorithms": torch.are_deterministic_algorithms_enabled(),
        "cudnn": (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark),
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "threads": torch.get_num_threads(),
    }


@pytest.mark.parametrize(("given", "threads"), [(None, 1), (3, 3)])
def test_flags_are_set_and_taken_back(given: int | None, threads: int) -> None:
    torch.set_num_threads(2)
    torch.backends.cudnn.benchmark = True
    before = flags()
    with strict.mode(settings(repro="strict", num_threads=given)):
        assert flags() == {
            "algorithms": True, "cudnn": (True, False), "tf32": (False, False),
            "workspace": ":4096:8", "threads": threads,
        }  # fmt: skip
    assert flags() == before
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(1)


def test_flags_are_taken_back_after_an_error() -> None:
    before = flags()
    with pytest.raises(KeyError), strict.mode(settings(repro="strict")):
        raise KeyError
    assert flags() == before


def test_default_leaves_everything_alone() -> None:
    before = flags()
    with strict.mode(settings()):
        assert flags() == before


def test_contradictions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for changes, message in (
        ({"repro": "exact"}, "repro=exact is unknown"),
        ({"repro": "strict", "precision": PrecisionConfig(tf32=True)}, "precision.tf32=false"),
    ):
        with pytest.raises(UsageError, match=message), strict.mode(settings(**changes)):
            pass
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with (
        pytest.raises(UsageError, match="unset the variable"),
        strict.mode(settings(repro="strict")),
    ):
        pass
    assert not torch.are_deterministic_algorithms_enabled()


class Resized(nn.Module):
    """A network whose second layer reads features at another size."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.stem, self.mode = nn.Conv3d(3, 4, 1), mode

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return functional.interpolate(self.stem(clips), scale_factor=2.0, mode=self.mode).mean(
            (2, 3, 4)
        )


def with_pool(pool: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv3d(3, 4, 1), nn.Sequential(nn.ReLU(), pool), nn.Flatten())


@pytest.mark.parametrize(
    ("network", "name", "layer"),
    [
        (with_pool(nn.MaxPool3d(2)), "torch.nn.MaxPool3d", "1.1"),
        (with_pool(nn.AvgPool3d(2)), "torch.nn.AvgPool3d", "1.1"),
        (with_pool(nn.AdaptiveAvgPool3d(2)), "torch.nn.AdaptiveAvgPool3d", "1.1"),
        (with_pool(nn.ReflectionPad3d(1)), "torch.nn.ReflectionPad3d", "1.1"),
        (with_pool(nn.FractionalMaxPool3d(2, 2)), "torch.nn.FractionalMaxPool3d", "1.1"),
        (Resized("trilinear"), "torch.nn.functional.interpolate", ""),
    ],
)
def test_kernels_and_their_layers_are_named(network: nn.Module, name: str, layer: str) -> None:
    (found,) = strict.unsupported(network, CLIP)
    assert found.startswith(f"{name} in {layer}" if layer else f"{name} (")
    assert re.search(r"\(\w+_backward\): \w+", found)


@pytest.mark.parametrize(
    "network",
    [
        with_pool(nn.AdaptiveAvgPool3d(1)),  # PyTorch takes a mean
        with_pool(SeparatePool(nn.MaxPool3d(3, 2, 1))),
        Resized("nearest"),
        nn.Sequential(nn.AvgPool3d(2), nn.Flatten(), nn.Linear(3 * 2 * 8 * 8, 2)),  # no gradient
    ],
)
def test_deterministic_kernels_are_not_named(network: nn.Module) -> None:
    assert strict.unsupported(network, CLIP) == []


def test_looking_leaves_the_network_as_it_is() -> None:
    network = with_pool(nn.MaxPool3d(2)).eval()
    before = copy.deepcopy(network.state_dict())
    strict.unsupported(network, CLIP)
    assert not network.training
    assert all(p.grad is None and p.device.type == "cpu" for p in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_every_kernel_that_pytorch_lists_is_known() -> None:
    """A failure means that a new PyTorch lists other kernels: bring strict.KERNELS up to date."""
    text = inspect.getdoc(torch.use_deterministic_algorithms) or ""
    listed = text.split("operations will throw a")[1].split("In addition")[0]
    names = set(re.findall(r"\* :(?:class|func):`([\w.]+)`", listed))
    assert len(names) > 15
    quantized = {"torch.Tensor.resize_"}
    older = {"torch.cumsum"}  # listed by PyTorch 2.11, not by 2.14; no network here uses it
    assert names - {kernel.name for kernel in strict.KERNELS} - older == quantized


def test_max_pools_still_need_an_exchange() -> None:
    """A failure means that PyTorch made `max_pool3d` deterministic: delete `SeparatePool`."""
    assert "deterministic" not in inspect.getsource(functional._max_pool3d)  # type: ignore[attr-defined]


KERNELS: list[Any] = [(1, 3, 3), 3, (2, 1, 1), (3, 2, 2)]
STRIDES: list[Any] = [None, 1, (1, 2, 2)]
PADDINGS: list[Any] = [0, (0, 1, 1)]
DILATIONS: list[Any] = [1, (1, 2, 2)]
POOLS = [
    nn.MaxPool3d(kernel, stride, padding, dilation, ceil_mode=ceil)
    for kernel, stride, padding, dilation, ceil in itertools.product(
        KERNELS, STRIDES, PADDINGS, DILATIONS, [False, True]
    )
    if padding == 0 or kernel != (2, 1, 1)  # padding is at most half the kernel
]


def test_pools_over_space_then_time_give_the_same_bits() -> None:
    rng = torch.Generator().manual_seed(0)
    assert len(POOLS) > 60
    for pool in POOLS:
        clips = torch.randn(2, 3, 7, 9, 8, generator=rng).requires_grad_()
        wanted, found = pool(clips), SeparatePool(pool)(clips)
        assert torch.equal(found, wanted), pool
        weight = torch.randn(wanted.shape, generator=rng)
        gradients = [torch.autograd.grad(out, clips, weight)[0] for out in (wanted, found)]
        torch.testing.assert_close(*gradients)  # sums of overlapping windows, in another order


def test_gradients_of_equal_values_go_to_the_same_place() -> None:
    """Of windows of one frame; zeros behind a ReLU are equal values."""
    clips = torch.relu(torch.randn(2, 3, 4, 9, 9, generator=torch.Generator().manual_seed(0)) - 1)
    clips.requires_grad_()
    pool = nn.MaxPool3d((1, 3, 3), (1, 3, 3))
    one, two = (torch.autograd.grad(p(clips).sum(), clips)[0] for p in (pool, SeparatePool(pool)))
    assert torch.equal(one, two)


@pytest.mark.parametrize("size", [(1, 5, 5), (2, 2, 2), (8, 9, 9)])
def test_fitted_pools_still_fit(size: tuple[int, ...]) -> None:
    pool = FittedMaxPool(nn.MaxPool3d((2, 3, 3), (2, 3, 3)))
    clips = torch.randn(2, 3, *size)
    assert torch.equal(SeparatePool(pool)(clips), pool(clips))


def test_a_pool_at_two_places_is_exchanged_at_both() -> None:
    pool = nn.Sequential(nn.MaxPool3d(2))
    network = nn.Sequential(pool, nn.Conv3d(3, 3, 1), pool, pool[0])
    separate_pools(network)
    assert not any(isinstance(part, nn.MaxPool3d) for part in network.modules())
    assert network(torch.randn(1, 3, 8, 8, 8)).shape == (1, 3, 1, 1, 1)


def test_channels_last_clips_are_pooled_in_the_usual_order() -> None:
    clips = torch.randn(2, 4, 4, 8, 8).to(memory_format=torch.channels_last_3d)
    pool = nn.MaxPool3d(3, 2, 1)
    assert torch.equal(SeparatePool(pool)(clips), pool(clips))


FEW = ("slowfast_r50", "mvit_v2_s", "s3d", "swin3d_t", "x3d_s")


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in NAMES]
)
def test_every_model_trains_under_strict(name: str) -> None:
    """By the operations of its training step; no CUDA device is needed, and none is used."""
    node = node_of(name)
    with torch.device("meta"):
        network = component(node["build"], "model.build", num_classes=400)
    inputs = node["input"]
    shape = (2, 3, inputs["num_frames"], inputs["crop_size"], inputs["crop_size"])
    before, keys = strict.unsupported(network, shape), set(network.state_dict())
    pools = separate_pools(network)
    assert [line.split()[0] for line in before] == ["torch.nn.MaxPool3d"] * bool(pools)
    assert strict.unsupported(network, shape) == []
    assert set(network.state_dict()) == keys


def test_a_strict_training(cli: Callable[..., int], small_run: tuple[str, ...]) -> None:
    before = flags()
    arguments = [word for word in small_run if not word.startswith("num_threads")]
    assert cli("train", *arguments, "repro=strict", "train.max_steps=3") == 0
    assert flags() == before
    record = json.loads(Path("runs/small/run.json").read_text())
    assert (record["deterministic"], record["threads"]) == (True, 1)
    assert record["environment"]["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    for other in ("num_threads=2", "repro=default"):
        assert cli("train", *arguments, "repro=strict", other) == 2
