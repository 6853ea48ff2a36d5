"""`vidtrain benchmark step`: the plain loop trains as ours does, and time is counted right."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import pytest
import torch
from torch import nn

from vidtrain import randomness
from vidtrain.benchmarking import step, step_peers
from vidtrain.benchmarking.step import Contender, Outside, interleaved, overhead, share_of_peak
from vidtrain.data.augment import to_input
from vidtrain.models.slow import slow
from vidtrain.models.slowfast import slowfast
from vidtrain.models.x3d import x3d
from vidtrain.training.precision import Precision

CPU = torch.device("cpu")
MEAN, STD = [0.45, 0.4, 0.5], [0.225, 0.2, 0.25]


@pytest.mark.parametrize(
    ("name", "build", "frames"),
    [
        ("x3d_xs", lambda: x3d(5, version="xs", dropout=0.0), 4),
        pytest.param("slow_r50", lambda: slow(5, dropout=0.0), 8, marks=pytest.mark.slow),
        pytest.param("slowfast_r50", lambda: slowfast(5, dropout=0.0), 32, marks=pytest.mark.slow),
    ],
)
def test_pytorchvideos_network_computes_what_ours_does(
    name: str, build: Callable[[], nn.Module], frames: int
) -> None:
    torch.manual_seed(0)
    ours, clips = build().eval(), torch.randn(1, 3, frames, 64, 64)
    found = step_peers.peer(name, ours, num_classes=5, num_frames=frames, crop_size=64)
    assert found is not None
    network, pack = found
    assert type(network).__module__.startswith("pytorchvideo.")
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(pack(clips)), ours(clips))


def test_networks_of_others_have_no_peer() -> None:
    assert step_peers.peer("s3d", nn.Linear(1, 1), num_classes=2, num_frames=4,
                           crop_size=32) is None  # fmt: skip


def test_the_plain_input_is_ours() -> None:
    clips = torch.arange(2 * 3 * 4 * 4 * 3, dtype=torch.uint8).view(2, 3, 4, 4, 3)
    torch.testing.assert_close(step.plain_input(clips, MEAN, STD),
                               to_input(clips, mean=MEAN, std=STD))  # fmt: skip


def test_contenders_take_turns_in_an_order_that_the_seed_decides() -> None:
    taken: list[str] = []
    contenders = [Contender(name, lambda name=name: taken.append(name)) for name in "abc"]  # type: ignore[misc]

    def run() -> dict[str, list[float]]:
        rng = randomness.generator(3, randomness.ORDER)
        return interleaved(contenders, rounds=4, repeat=2, rng=rng, device=CPU)

    seconds = run()
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 4)
    rounds = [taken[i : i + 6] for i in range(0, 24, 6)]
    assert all(sorted(turn) == list("aabbcc") for turn in rounds) and len({*map(str, rounds)}) > 1
    before = taken[:]
    run()
    assert taken[24:] == before
    faster = step.ratios({"a": [2.0, 3.0], "b": [1.0, 2.0]}, "a", "b")
    assert faster.values == (2.0, 1.5) and str(faster) == "1.75 [1.50-2.00]"


@dataclass
class Clock:
    """Stands still but where something is said to take time; a loss that takes some."""

    seconds: float = 0.0
    metric: str = "top1"

    def take(self, seconds: float) -> None:
        self.seconds += seconds

    def loss(self, network: nn.Module, clips: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        features = network(clips)
        features.register_hook(lambda grad: self.take(0.03))  # in the backward pass
        self.take(0.02)
        return features.sum()


def test_forward_backward_and_update_are_the_models_and_the_rest_is_outside() -> None:
    clock, network = Clock(), nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    outside = Outside(clock, clock=lambda: clock.seconds)
    assert outside.metric == "top1"
    outside.watch(optimizer)
    optimizer.register_step_pre_hook(lambda *_: clock.take(0.05))

    def one() -> None:
        clock.take(0.06)
        outside.loss(network, torch.ones(1, 2), torch.ones(1, 2)).backward()
        clock.take(0.04)
        optimizer.step()

    assert overhead(one, outside, steps=2) == pytest.approx([0.5, 0.5])


def test_share_of_peak_by_hand() -> None:
    # 100 GMACs forward, three times that in training, 8 clips in 0.01 s: 480 of 989 TFLOPS.
    share = share_of_peak(100, 8, [0.02, 0.01, 0.005], "NVIDIA H100 80GB HBM3")
    assert share == pytest.approx(480 / 989)
    assert share_of_peak(100, 8, [0.01], "NVIDIA H100 PCIe") == pytest.approx(480 / 756)
    assert share_of_peak(100, 8, [0.01], "Some other card") is None


def test_a_plain_step_lowers_the_loss_under_fp16_too() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 4 * 4, 3))
    before = copy.deepcopy(network.state_dict())
    precision = Precision("fp16", CPU)
    clips = torch.randint(0, 255, (2, 2, 4, 4, 3), dtype=torch.uint8)
    one = step.plain_step(
        network, torch.optim.SGD(network.parameters(), lr=0.01), clips, torch.tensor([0, 2]),
        autocast=precision.autocast, scaler=precision.scaler,
        prepare=lambda raw: step.plain_input(raw, MEAN, STD),
    )  # fmt: skip
    for _ in repeat(None, 3):
        one()
    assert not torch.equal(before["1.weight"], network.state_dict()["1.weight"])
    assert all(value.isfinite().all() for value in network.state_dict().values())


@pytest.mark.slow
def test_the_command_measures_and_writes(cli: Callable[..., int], tmp_path: Path) -> None:
    words = ("benchmark", "step", "models=[x3d_xs,c3d_small]", "batch_size=2", "crop_size=64",
             "rounds=2", "options=[channels_last]", "num_threads=1", "output=figures")  # fmt: skip
    assert cli(*words) == 0
    found = json.loads((tmp_path / "figures/step.json").read_text("utf-8"))
    first, second = found["models"]["x3d_xs"], found["models"]["c3d_small"]
    assert first["peer"] == "pytorchvideo" and second["peer"] == "the same network"
    for model in (first, second):
        assert set(model["seconds"]) == {"ours", "plain", "plain_same_kernels", "channels_last"}
        assert all(len(taken) == 2 and min(taken) > 0 for taken in model["seconds"].values())
        assert all(0 < share < 1 for share in model["outside"])
    shown = (tmp_path / "figures/step.txt").read_text("utf-8")
    assert "plain / ours" in shown and "outside the model" in shown
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("options=[compiled]", "options has 'compiled'"),
        ("models=[]", "models is empty"),
        ("dtype=int8", "dtype=int8 must be"),
        ("batch_size=0", "batch_size=0 must be at least 1"),
    ],
)
def test_wrong_settings_are_refused(
    cli: Callable[..., int], word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("benchmark", "step", word) == 2
    assert said in capsys.readouterr().err
