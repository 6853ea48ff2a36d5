"""Averages of the weights: against hand-made tables, over a stop, and on a real network."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPO
from torch import nn

from vidtrain.errors import UsageError
from vidtrain.models.anatomy import freeze
from vidtrain.targets import component
from vidtrain.training.averaging import Ema, Swa, ema, swa
from vidtrain.training.timeline import Timeline

TIMELINE = Timeline((2, 4, 4), 8)


def one_weight() -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def set_weight(model: nn.Linear, value: float) -> None:
    nn.init.constant_(model.weight, value)


def value(average: Ema | Swa) -> float:
    return next(average.module.parameters()).item()


def small_net() -> Any:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.Flatten(), nn.Linear(32, 2))


def train_step(model: nn.Module, step: int) -> None:
    """Changes weights and statistics as a step does: a function of the step alone."""
    rng = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng))
    model.train()(torch.randn(4, 3, 2, 2, 2, generator=rng))


def test_ema_by_hand() -> None:
    model = one_weight()
    average = ema(model, timeline=TIMELINE, decay=0.5, warmup=False)
    assert average.ready and value(average) == 0
    found = []
    for step, weight in enumerate([8.0, 4.0, 2.0, 0.0]):
        set_weight(model, weight)
        average.update(model, step=step)
        found.append(value(average))
    # timm lets steps 0 and 1 replace the average, which would be the weights from the seed.
    assert found == [8, 4, 3, 1.5]


def test_ema_warms_up_by_hand() -> None:
    model = one_weight()
    average = ema(model, timeline=TIMELINE, decay=0.6)
    expected = [1.0, 2.0]
    # Decay of step t: 1 - t^(-2/3), at most 0.6: 0.370, 0.519, 0.6, 0.6
    for weight, decay in ((3, 1 - 2 ** (-2 / 3)), (4, 1 - 3 ** (-2 / 3)), (5, 0.6), (6, 0.6)):
        expected.append(decay * expected[-1] + (1 - decay) * weight)
    for step in range(6):
        set_weight(model, step + 1.0)
        average.update(model, step=step)
        assert value(average) == pytest.approx(expected[step], rel=1e-6)


def test_ema_at_its_full_decay() -> None:
    model = one_weight()
    average = ema(model, timeline=TIMELINE, decay=0.99)
    set_weight(model, 1.0)
    average.update(model, step=0)
    set_weight(model, 0.0)
    for step in range(100_000, 100_010):  # warmed up
        average.update(model, step=step)
    assert value(average) == pytest.approx(0.99**10, rel=1e-5)


@pytest.mark.parametrize("decay", [0, 1, -0.1, 1.5])
def test_ema_refuses_a_decay_that_is_none(decay: float) -> None:
    with pytest.raises(UsageError, match=r"average.decay=.* must lie between 0 and 1"):
        ema(one_weight(), timeline=TIMELINE, decay=decay)


@pytest.mark.parametrize(
    ("start", "every", "taken"),
    [
        ("1 epoch", "1 epoch", [2, 6, 10]),  # after steps 2, 6 and 10: ends of epochs
        ("50%", "1 epoch", [4, 8]),  # 1.5 and 2.5 epochs
        ("7 steps", "1 step", [7, 8, 9, 10]),
        ("100%", "1 epoch", [10]),
    ],
)
def test_swa_by_hand(start: str, every: str, taken: list[int]) -> None:
    model = one_weight()
    average = swa(model, timeline=TIMELINE, start=start, every=every)
    for step in range(10):
        set_weight(model, float((step + 1) ** 2))
        average.update(model, step=step)
        so_far = [n**2 for n in taken if n <= step + 1]
        assert average.ready == bool(so_far)
        if so_far:
            assert value(average) == pytest.approx(sum(so_far) / len(so_far), rel=1e-6)


def test_swa_refuses_a_start_outside_the_training() -> None:
    with pytest.raises(UsageError, match=r"average.start=11 steps is step 11, .* has 10; nothing"):
        swa(one_weight(), timeline=TIMELINE, start="11 steps")
    with pytest.raises(UsageError, match=r"average.every='now' is not a length"):
        swa(one_weight(), timeline=TIMELINE, every="now")


def test_statistics_are_averaged_by_ema_and_copied_by_swa() -> None:
    model = small_net()
    averages: dict[str, Any] = {"ema": ema(model, timeline=TIMELINE, decay=0.5, warmup=False),
                "swa": swa(model, timeline=TIMELINE, start="1 step", every="1 step")}  # fmt: skip
    means = []
    for step in range(4):
        train_step(model, step)
        means.append(model[1].running_mean.clone())
        for average in averages.values():
            average.update(model, step=step)
    by_hand = 0.5 * (0.5 * means[1] + 0.5 * means[2]) + 0.5 * means[3]
    assert torch.allclose(averages["ema"].module[1].running_mean, by_hand)
    assert torch.equal(averages["swa"].module[1].running_mean, means[3])
    for average in averages.values():
        assert average.module[1].num_batches_tracked == 4
        assert not any(part.training for part in average.module.modules())


MAKERS: dict[str, Callable[[nn.Module], Any]] = {
    "ema": lambda model: ema(model, timeline=TIMELINE, decay=0.9),
    "swa": lambda model: swa(model, timeline=TIMELINE, start="3 steps", every="2 steps"),
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("stop", [0, 2, 3, 4, 7])
def test_an_average_goes_on_exactly_where_it_stood(kind: str, stop: int, tmp_path: Path) -> None:
    whole = small_net()
    average = MAKERS[kind](whole)
    for step in range(10):
        if step == stop:
            torch.save((whole.state_dict(), average.module.state_dict(), average.state_dict()),
                       tmp_path / "state")  # fmt: skip
        train_step(whole, step)
        average.update(whole, step=step)
    model = small_net()
    resumed = MAKERS[kind](model)
    weights, averaged, state = torch.load(tmp_path / "state", weights_only=True)
    model.load_state_dict(weights)
    if resumed.ready or state["averaged"]:  # what is not ready is not saved
        resumed.module.load_state_dict(averaged)
    resumed.load_state_dict(state)
    for step in range(stop, 10):
        train_step(model, step)
        resumed.update(model, step=step)
    assert resumed.ready and average.ready
    for key, tensor in average.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[key]), key


@pytest.mark.parametrize("kind", MAKERS)
def test_the_copy_is_apart_from_the_network_and_frozen_alike(kind: str) -> None:
    blocks = [
        nn.Sequential(nn.Conv3d(3, 3, 1), nn.BatchNorm3d(3), nn.Conv3d(3, 3, 1)) for _ in range(3)
    ]
    model: Any = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(24, 2))
    freeze(model, train_layers=2)
    average = MAKERS[kind](model)
    before = copy.deepcopy(model.state_dict())
    for step in range(5):
        train_step(model, step)
        average.update(model, step=step)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in average.module.parameters()}
    average.module.train()  # as precise statistics do
    assert not average.module[0][1].training and average.module[2][1].training
    assert not model[0][1].training
    for key, tensor in average.module.state_dict().items():
        if key.startswith(("0.", "1.")):
            assert torch.equal(tensor, before[key]), key
    assert not torch.equal(average.module[-1].weight, before["4.weight"])


@pytest.mark.parametrize("name", ["ema", "swa"])
def test_yamls_make_averages(name: str) -> None:
    node: dict[str, Any] = yaml.safe_load((REPO / f"conf/average/{name}.yaml").read_text())
    average = component(node, "average", one_weight(), timeline=TIMELINE)
    for step in range(10):
        average.update(one_weight(), step=step)
    assert average.ready
