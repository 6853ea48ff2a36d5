"""Batch-norm statistics taken anew: against the exact ones, fvcore's, and over real processes."""

import copy
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vidtrain.distributed import World
from vidtrain.errors import UsageError
from vidtrain.models.anatomy import freeze, freeze_norms
from vidtrain.training.averaging import swa
from vidtrain.training.batch_norm import precise_statistics, synchronised
from vidtrain.training.timeline import Timeline

CPU = World(rank=0, size=1, device=torch.device("cpu"))


def net() -> Any:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.BatchNorm3d(3), nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(),
        nn.Dropout(0.5), nn.Conv3d(4, 4, 1), nn.BatchNorm3d(4), nn.AdaptiveAvgPool3d(1),
        nn.Flatten(), nn.Linear(4, 2),
    )  # fmt: skip


def clips(count: int, size: int = 4) -> list[torch.Tensor]:
    """Batches whose means differ much: an average of their variances would miss that."""
    rng = torch.Generator().manual_seed(5)
    return [5 * index + torch.randn(size, 3, 2, 4, 4, generator=rng) for index in range(count)]


def norms(network: nn.Module) -> list[Any]:
    return [part for part in network.modules() if isinstance(part, nn.BatchNorm3d)]


def test_statistics_are_those_of_the_whole_set() -> None:
    network, batches = net(), clips(6)
    assert precise_statistics(network, iter(batches), num_batches=6) == 3
    everything = torch.cat(batches).double()
    first = norms(network)[0]
    assert torch.allclose(first.running_mean, everything.mean((0, 2, 3, 4)).float())
    variance = everything.var((0, 2, 3, 4), correction=0)
    assert torch.allclose(first.running_var, variance.float(), rtol=1e-6)


def test_of_one_batch_every_layer_has_the_exact_ones() -> None:
    network, (batch,) = net(), clips(1, size=8)
    precise_statistics(network, iter([batch]), num_batches=1)
    value: Any = batch
    for part in network.eval():  # evaluated with them, each layer's outputs are standardised
        value = part(value)
        if isinstance(part, nn.BatchNorm3d):
            assert torch.allclose(value.mean((0, 2, 3, 4)), torch.zeros(1), atol=1e-5)
            assert torch.allclose(value.var((0, 2, 3, 4), correction=0), torch.ones(1), rtol=1e-3)


def test_fvcore_finds_the_same() -> None:
    ours, theirs, batches = net(), net(), clips(5)
    precise_bn = pytest.importorskip("fvcore.nn.precise_bn")
    theirs[4].eval()  # ours has dropout off
    precise_bn.update_bn_stats(theirs, batches, num_iters=5)
    precise_statistics(ours, iter(batches), num_batches=5)
    for one, other in zip(norms(ours), norms(theirs), strict=True):
        assert torch.allclose(one.running_mean, other.running_mean, rtol=1e-4, atol=1e-6)
        assert torch.allclose(one.running_var, other.running_var, rtol=1e-4)


@pytest.mark.parametrize("mode", [True, False])
def test_nothing_else_changes(mode: bool) -> None:
    network = net().train(mode)
    network[4].eval()
    norms(network)[1].momentum = None
    flags = [part.training for part in network.modules()]
    before, buffers = copy.deepcopy(network.state_dict()), {id(b) for b in network.buffers()}
    torch.manual_seed(9)
    state = torch.get_rng_state()
    precise_statistics(network, iter(clips(3)), num_batches=3)
    assert torch.equal(torch.get_rng_state(), state), "dropout is off"
    assert [part.training for part in network.modules()] == flags
    assert [norm.momentum for norm in norms(network)] == [0.1, None, 0.1]
    assert {id(buffer) for buffer in network.buffers()} == buffers, "DDP holds on to them"
    assert not any(part._forward_pre_hooks for part in network.modules())
    for key, tensor in network.state_dict().items():
        moved = "running" in key
        assert torch.equal(tensor, before[key]) != moved, key


def test_a_failure_leaves_the_network_as_it_was() -> None:
    def broken() -> Iterator[torch.Tensor]:
        yield clips(1)[0]
        raise OSError("gone")

    network = net()
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(OSError, match="gone"):
        precise_statistics(network, broken(), num_batches=2)
    assert all(part.training for part in network.modules())
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert [norm.momentum for norm in norms(network)] == [0.1] * 3


def test_only_so_many_batches_are_taken() -> None:
    network, few, batches = net(), net(), iter(clips(6))
    precise_statistics(network, batches, num_batches=2)
    assert len(list(batches)) == 4
    precise_statistics(few, iter(clips(2)), num_batches=2)
    assert torch.equal(norms(network)[2].running_var, norms(few)[2].running_var)


def test_frozen_layers_keep_their_statistics() -> None:
    network = nn.Sequential(nn.Sequential(nn.Conv3d(3, 3, 1), nn.BatchNorm3d(3), nn.ReLU()),
                            nn.Sequential(nn.Conv3d(3, 3, 1), nn.BatchNorm3d(3), nn.ReLU()),
                            nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 2))  # fmt: skip
    freeze(network, train_layers=1)
    assert precise_statistics(network, iter(clips(2)), num_batches=2) == 1
    assert torch.equal(norms(network)[0].running_mean, torch.zeros(3))
    assert not torch.equal(norms(network)[1].running_mean, torch.zeros(3))
    freeze_norms(network)
    unread = iter(clips(2))
    assert precise_statistics(network, unread, num_batches=2) == 0
    assert len(list(unread)) == 2


def test_a_layer_that_no_clip_reaches_keeps_its_statistics() -> None:
    class Auxiliary(nn.Module):
        """As in GoogLeNet: a second classifier that only training runs."""

        def __init__(self) -> None:
            super().__init__()
            self.main, self.aside = nn.BatchNorm3d(3), nn.BatchNorm3d(3)

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            return self.main(values) + (self.aside(values) if self.training else 0)

    network: Any = Auxiliary()
    precise_statistics(network, iter(clips(2)), num_batches=2)
    assert torch.equal(network.aside.running_var, torch.ones(3))
    assert network.main.running_mean.mean() == pytest.approx(2.5, abs=0.2)


def test_a_layer_used_twice_has_the_statistics_of_both() -> None:
    shared: Any = nn.BatchNorm3d(3)
    network = nn.Sequential(shared, nn.ConstantPad3d((4, 0, 0, 0, 0, 0), 8.0), shared)
    (batch,) = clips(1, size=8)
    precise_statistics(network, iter([batch]), num_batches=1)
    second = network[1](nn.BatchNorm3d(3)(batch))
    both = torch.cat([batch.flatten(3), second.detach().flatten(3)], dim=3)
    assert torch.allclose(shared.running_mean, both.mean((0, 2, 3)), rtol=1e-5)
    assert torch.allclose(shared.running_var, both.var((0, 2, 3), correction=0), rtol=1e-5)


def test_statistics_of_averaged_weights() -> None:
    model = net()
    average: Any = swa(model, timeline=Timeline((3,), 1), start="1 step", every="1 step")
    for step in range(3):
        with torch.no_grad():
            model[1].weight += 0.3 * step
        average.update(model, step=step)
    precise_statistics(average.module, iter(clips(4)), num_batches=4)
    alike = net()
    alike[1].weight.data.copy_(average.module[1].weight)
    precise_statistics(alike, iter(clips(4)), num_batches=4)
    assert torch.equal(norms(average.module)[2].running_var, norms(alike)[2].running_var)
    assert not average.module.training


def test_under_autocast() -> None:
    network, exact = net(), net()
    precise_statistics(
        network, iter(clips(2)), num_batches=2,
        autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    )  # fmt: skip
    precise_statistics(exact, iter(clips(2)), num_batches=2)
    last, reference = norms(network)[2], norms(exact)[2]
    assert not torch.equal(last.running_var, reference.running_var)
    assert torch.allclose(last.running_var, reference.running_var, rtol=0.05)


class Whole(nn.Sequential):
    """PyTorch 2.11 compiles no forward pass of its own classes."""

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        return super().forward(clips)


def test_a_compiled_network_is_not_compiled_again() -> None:
    network, plain, graphs = Whole(*net()), net(), []

    def compiler(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append(graph)
        return graph.forward

    network.compile(backend=compiler)
    network(clips(1)[0])
    before = len(graphs)
    assert before
    precise_statistics(network, iter(clips(2)), num_batches=2)
    precise_statistics(plain, iter(clips(2)), num_batches=2)
    assert torch.equal(norms(network)[2].running_mean, norms(plain)[2].running_mean)
    network(clips(1)[0])
    assert len(graphs) == before


PROCESS = """
import sys, torch
from test_batch_norm import clips, net, norms
from vidtrain import distributed
from vidtrain.training.batch_norm import precise_statistics, synchronised
from vidtrain.errors import UsageError

with distributed.session("cpu", num_threads=1) as world:
    network, own = net(), clips(4)[world.rank :: world.size]
    mean = lambda values: distributed.mean(values, world)
    precise_statistics(network, iter(own), num_batches=len(own), mean=mean)
    torch.save([norm.running_var for norm in norms(network)], f"rank{world.rank}")
    try:
        synchronised(network, world)
    except UsageError as error:
        print(error)
"""


@pytest.mark.dist
@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "process.py").write_text(PROCESS)
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "process.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SyncBatchNorm runs on CUDA only, and the 2 processes are on cpu") == 2
    network = net()
    precise_statistics(network, iter(clips(4)), num_batches=4)
    for rank in range(2):
        for found, norm in zip(torch.load(tmp_path / f"rank{rank}"), norms(network), strict=True):
            assert torch.allclose(found, norm.running_var, rtol=1e-6)


def test_synchronised_batch_norm() -> None:
    network = net()
    assert synchronised(network, CPU) is network
    with pytest.raises(UsageError, match=r"train.sync_bn=true changes nothing: Linear has no"):
        synchronised(nn.Linear(2, 2), CPU)
    # Converting alone needs no GPU; running it does.
    gpus = World(rank=0, size=2, device=torch.device("cuda", 0))
    converted = synchronised(network, gpus)
    assert sum(isinstance(part, nn.SyncBatchNorm) for part in converted.modules()) == 3
    assert list(converted.state_dict()) == list(net().state_dict())
    assert {id(p) for p in converted.parameters()} == {id(p) for p in network.parameters()}
    evaluated = converted.eval()(clips(1)[0])
    assert torch.equal(evaluated, net().eval()(clips(1)[0]))
