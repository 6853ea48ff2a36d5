"""What torch.compile made of a network, in one line; and the options for speed all at once."""

import copy
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from conftest import REPO
from torch import nn

from vidtrain.models import memory
from vidtrain.training.precision import Precision

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch._dynamo.utils.clear_compilation_metrics()
    yield
    torch._dynamo.reset()


class Broken(nn.Module):
    """Looks at a value in the middle of its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = self.first(features)
        if features.sum().item() > 0:
            features = features + 1
        return self.second(features)


class Residual(nn.Module):
    """Two convolutions and what goes around them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv3d(8, 8, 3, padding=1) for _ in range(2))
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.second(torch.relu(self.norm(self.first(features))))


class Blocks(nn.Module):
    """A convolutional network with blocks and without batch norm, as small as there can be."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Residual(), Residual(), Residual())
        self.head = nn.Linear(8, 5)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(clips)).mean((2, 3, 4)))


def test_a_whole_graph_has_no_break() -> None:
    assert memory.graph_breaks().endswith("found nothing to compile")
    net = Residual()
    net.compile(backend="aot_eager")
    net(torch.ones(2, 8, 4, 4, 4)).sum().backward()
    assert memory.graph_breaks() == "torch.compile: 1 graphs, 0 graph breaks, 0 recompilations"


def test_breaks_and_recompilations_come_with_reasons() -> None:
    net = Broken()
    net.compile(backend="aot_eager")
    net(torch.ones(2, 4)).sum().backward()
    said = memory.graph_breaks()
    assert "2 graphs, 1 graph breaks (1 x Unsupported Tensor.item() call" in said
    assert said.endswith("0 recompilations") and "\n" not in said
    net(torch.ones(3, 4))
    said = memory.graph_breaks()
    assert "recompilations (" in said and "size mismatch at index 0. expected 2, actual 3" in said


def test_networks_of_pytorchs_own_layers_are_compiled_and_copies_keep_their_own_weights() -> None:
    layers = nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU())
    net = memory.apply(layers, channels_last=False, checkpointing=False, compile=True)
    clips = torch.ones(1, 3, 4, 4, 4)
    found = net(clips)
    assert memory.graph_breaks() == "torch.compile: 1 graphs, 0 graph breaks, 0 recompilations"
    other = copy.deepcopy(net)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    assert other(clips).abs().max() == 0 and torch.equal(net(clips), found)
    assert [*net.state_dict()] == ["0.weight", "0.bias"]


def test_importing_the_options_does_not_import_the_compiler() -> None:
    code = "import sys, vidtrain.models.memory; print('torch._dynamo.utils' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert done.stdout.strip() == "False"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_all_options_at_once_train_and_evaluate_as_none_do(name: str) -> None:
    torch.manual_seed(0)
    plain, clips = Blocks(), torch.randn(2, 3, 4, 8, 8)
    fast = memory.apply(copy.deepcopy(plain), channels_last=True, checkpointing=True, compile=True)
    assert [*fast.state_dict()] == [*plain.state_dict()]
    precision, exact = Precision(name, CPU), Precision("fp32", CPU)
    rtol, atol = (1e-3, 1e-5) if name == "fp32" else (0.1, 0.02)
    for _ in range(2):
        with exact.autocast():
            expected = plain(clips)
        with precision.autocast():
            found = fast(clips)
        torch.testing.assert_close(found.float(), expected, rtol=rtol, atol=atol)
        expected.square().sum().backward()
        found.float().square().sum().backward()
    grads = [torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
             for net in (plain, fast)]  # fmt: skip
    assert (grads[0] - grads[1]).norm() < (0.05 if name == "bf16" else 1e-4) * grads[0].norm()
    weight = fast.get_submodule("stem").weight
    assert isinstance(weight, torch.Tensor)
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode(), precision.autocast():
        out = fast.eval()(clips[:1])
    torch.testing.assert_close(out.float(), plain(clips[:1]).detach(), rtol=rtol, atol=atol)
    assert ", 0 graph breaks," in memory.graph_breaks()
