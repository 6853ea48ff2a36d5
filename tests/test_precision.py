"""fp32, tf32, bf16 and fp16, and the switches for TF32 that PyTorch has two sets of."""

import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from conftest import REPO
from omegaconf import OmegaConf
from torch import nn

from vidtrain.errors import UsageError
from vidtrain.training.precision import DTYPES, Precision, allow_tf32

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _as_before() -> object:
    yield
    allow_tf32(False)


@pytest.mark.parametrize("allowed", [True, False])
def test_both_sets_of_switches_say_the_same_and_none_warns(allowed: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):  # a sweep sets them again in one process
            Precision("fp32", CPU, tf32=not allowed)
            Precision("fp32", CPU, tf32=allowed)
        assert torch.backends.cuda.matmul.allow_tf32 is allowed
        assert torch.backends.cudnn.allow_tf32 is allowed
        assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        cudnn: Any = torch.backends.cudnn
        places: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn]
        assert {place.fp32_precision == "tf32" for place in places} == {allowed}


def test_fp32_is_not_changed_on_a_cpu() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(64, 64), torch.randn(64, 64)
    expected = left @ right
    with Precision("fp32", CPU, tf32=True).autocast():
        assert torch.equal(left @ right, expected)


def test_every_yaml_is_a_precision() -> None:
    for path in sorted((REPO / "conf" / "precision").glob("*.yaml")):
        config = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(config, dict) and config["dtype"] in DTYPES, path
        assert config.get("tf32", False) is (path.stem == "tf32")
        assert path.read_text("utf-8").startswith("# ")


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_autocast_computes_in_its_type_and_keeps_weights(name: str) -> None:
    precision = Precision(name, CPU)
    layer = nn.Linear(8, 8)
    with precision.autocast():
        out = layer(torch.ones(2, 8))
    assert out.dtype == DTYPES[name] and layer.weight.dtype == torch.float32
    precision.scaler.scale(out.float().sum()).backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
    assert precision.scaler.is_enabled() is (name == "fp16")


def test_the_probe_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    Precision("bf16", CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UsageError, match="dtype='tf32' is unknown"):
        Precision("tf32", CPU)


@pytest.mark.slow
def test_compiling_works_under_every_setting() -> None:
    code = """
import torch, sys, warnings
from vidtrain.training.precision import Precision
precision = Precision(sys.argv[1], torch.device("cpu"), tf32=sys.argv[2] == "True")
warnings.simplefilter("error", UserWarning)
net = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3), torch.nn.Flatten(), torch.nn.LazyLinear(2))
clips = torch.randn(2, 3, 4, 6, 6)
net(clips)
net.compile(backend="aot_eager")
with precision.autocast():
    loss = net(clips).float().sum()
precision.scaler.scale(loss).backward()
"""
    for name, tf32 in (("fp32", False), ("fp32", True), ("bf16", True), ("fp16", False)):
        done = subprocess.run([sys.executable, "-c", code, name, str(tf32)], cwd=REPO,
                              capture_output=True, text=True, check=False)  # fmt: skip
        assert done.returncode == 0, done.stderr
