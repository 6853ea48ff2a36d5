"""Lengths of time and learning-rate schedules: against hand-made tables and torch's own."""

import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import REPO

from vidtrain.errors import UsageError
from vidtrain.targets import component
from vidtrain.training.schedules import Schedule, constant, cosine, linear, multistep, one_cycle
from vidtrain.training.timeline import Timeline, recurring

EVEN = Timeline((10, 10), 4)
UNEVEN = Timeline((2, 4, 8, 8), 4)  # as multigrid makes them: large batches first


def table(schedule: Schedule, steps: int) -> list[float]:
    return [schedule(step) for step in range(steps)]


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        ("1 epoch", 10), ("0.5 epochs", 5), (0.5, 5), (2, 20), ("2", 20), (" 1.5  epoch ", 15),
        ("0.05 epochs", 0), ("7 steps", 7), ("1 step", 1), ("2e1 samples", 5), ("18 samples", 4),
        ("30%", 6), ("100 %", 20), ("0 steps", 0), ("3 epochs", 30), ("1e3 steps", 1000),
    ],
)  # fmt: skip
def test_lengths_of_time_become_steps(length: str | float, steps: int) -> None:
    assert EVEN.steps(length, "x") == steps


@pytest.mark.parametrize(
    "length", ["", "epoch", "5 weeks", "-1 epochs", "nan", "1e999 steps", "1/0", "1 2", True, None]
)
def test_other_lengths_are_refused(length: Any) -> None:
    with pytest.raises(UsageError, match=r"save.every=.*is not a length of time; write '5 epochs'"):
        EVEN.steps(length, "save.every")


def test_a_step_is_at_its_epoch_and_back() -> None:
    assert [UNEVEN.epoch_of(step) for step in (0, 1, 2, 5, 6, 22, 26)] == [
        0, 0.5, 1, 1.75, 2, 4, 4.5
    ]  # fmt: skip
    assert [UNEVEN.step_at(epoch) for epoch in (0, 0.5, 1, 1.75, 2, 4, 4.5)] == [
        0, 1, 2, 5, 6, 22, 26
    ]  # fmt: skip
    assert UNEVEN.total_steps == 22
    for step in range(23):
        assert UNEVEN.step_at(UNEVEN.epoch_of(step)) == step
        assert EVEN.clock(step) == step
    assert [UNEVEN.clock(step) for step in (1, 2, 3, 7)] == [4, 8, 10, 17]
    thirds = Timeline((3, 3, 3), 1)
    assert [thirds.epoch_of(step) for step in range(10)] == [step / 3 for step in range(10)]
    assert thirds.step_at(Fraction(7, 3)) == 7


@pytest.mark.parametrize(
    ("timeline", "every", "start", "due"),
    [
        (EVEN, "1 epoch", 0, [0, 10, 20]),
        (EVEN, "0.25 epochs", 0, [0, 2, 5, 8, 10, 12, 15, 18, 20]),
        (EVEN, "7 steps", 0, [0, 7, 14]),
        (EVEN, "7 steps", 4, [4, 11, 18]),
        (EVEN, "24 samples", 0, [0, 6, 12, 18]),
        (EVEN, "25%", 5, [5, 10, 15, 20]),
        (EVEN, "5 epochs", 0, [0]),
        (UNEVEN, "1 epoch", 0, [0, 2, 6, 14, 22]),
        (UNEVEN, 2, 0, [0, 6, 22]),
        (UNEVEN, "1 epoch", 4, [4, 10, 18]),
    ],
)
def test_what_recurs(timeline: Timeline, every: str | float, start: int, due: list[int]) -> None:
    is_due = recurring(timeline, every, "save.every", start=start)
    assert [step for step in range(timeline.total_steps + 1) if is_due(step)] == due


@pytest.mark.parametrize("every", ["0 steps", 0, "0.3 epochs", "1 sample"])
def test_what_recurs_takes_a_step_at_least(every: str | float) -> None:
    with pytest.raises(UsageError, match=r"save.every=.* is less than one optimizer step"):
        recurring(UNEVEN, every, "save.every")


def before(step: int, total: int, warm: int, start: float, final: float) -> float:
    """The cosine as it stood before schedules became builders: its numbers must not move."""
    if step < warm:
        return start + (1.0 - start) * step / warm
    progress = (step - warm) / max(1, total - warm)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


@pytest.mark.parametrize(("warmup", "warm"), [(0.4, 4), ("0.37 epochs", 4), (0, 0), ("9 steps", 9)])
def test_cosine_has_the_numbers_it_had(warmup: str | float, warm: int) -> None:
    schedule = cosine(timeline=EVEN, warmup=warmup, warmup_start=0.03, final=0.2)
    assert table(schedule, 21) == [before(step, 20, warm, 0.03, 0.2) for step in range(21)]


def test_cosine_by_hand() -> None:
    rates = table(cosine(timeline=EVEN, warmup=0.4, warmup_start=0.1, final=0.2), 21)
    assert rates[:5] == pytest.approx([0.1, 0.325, 0.55, 0.775, 1.0])
    assert [rates[8], rates[12], rates[16], rates[20]] == pytest.approx(
        [0.2 + 0.8 * (2 + math.sqrt(2)) / 4, 0.6, 0.2 + 0.8 * (2 - math.sqrt(2)) / 4, 0.2]
    )


def test_cosine_from_the_start_as_in_pyslowfast() -> None:
    # SLOWFAST_8x8_R50: the warm-up rises to where the cosine of all epochs is by then.
    schedule = cosine(timeline=EVEN, warmup="10 steps", warmup_start=0.1, after_warmup=False)
    assert [schedule(step) for step in (0, 5, 10, 15)] == pytest.approx(
        [0.1, 0.3, 0.5, (2 - math.sqrt(2)) / 4]
    )


def test_linear_multistep_and_constant_by_hand() -> None:
    short = Timeline((4, 4), 1)
    warm: dict[str, Any] = {"timeline": short, "warmup": "2 steps", "warmup_start": 0.5}
    assert table(linear(**warm, final=0.4), 9) == pytest.approx(
        [0.5, 0.75, 1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4]
    )
    assert table(multistep(**warm, milestones=[1, "75%"], gamma=0.5), 8) == pytest.approx(
        [0.5, 0.75, 1, 1, 0.5, 0.5, 0.25, 0.25]
    )
    assert table(constant(**warm), 8) == pytest.approx([0.5, 0.75, *[1.0] * 6])


def test_one_cycle_by_hand() -> None:
    settings: dict[str, Any] = {
        "timeline": Timeline((4, 4), 1),
        "warmup": "4 steps",
        "warmup_start": 0.2,
    }
    straight = one_cycle(**settings, final=0.0)
    assert table(straight, 9) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1, 0.75, 0.5, 0.25, 0])
    root = math.sqrt(2)
    curved = one_cycle(**settings, final=0.0, anneal="cosine")
    assert table(curved, 9) == pytest.approx([
        0.2, 0.2 + 0.8 * (2 - root) / 4, 0.6, 0.2 + 0.8 * (2 + root) / 4, 1,
        (2 + root) / 4, 0.5, (2 - root) / 4, 0,
    ])  # fmt: skip


def test_where_epochs_differ_the_same_epoch_has_the_same_rate() -> None:
    even = Timeline((8, 8, 8, 8), 4)
    for build in (
        lambda t: cosine(timeline=t, warmup=1), lambda t: linear(timeline=t, warmup=1, final=0.1),
        lambda t: one_cycle(timeline=t, warmup=1), lambda t: constant(timeline=t, warmup=1),
        lambda t: multistep(timeline=t, warmup=1, milestones=[2, 3]),
    ):  # fmt: skip
        there, here = build(even), build(UNEVEN)
        for step in range(22):
            assert here(step) == pytest.approx(there(even.step_at(UNEVEN.epoch_of(step))))


def torch_factors(make: Any, steps: int, lr: float = 1.0) -> list[float]:
    """Learning rates of a torch scheduler, one before each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_schedules_agree_with_torch() -> None:
    torch_schedulers = torch.optim.lr_scheduler
    timeline = Timeline((10, 10, 10), 1)
    no_warmup: dict[str, Any] = {"timeline": timeline, "warmup": 0}
    assert table(cosine(**no_warmup, final=0.1), 30) == pytest.approx(
        torch_factors(lambda o: torch_schedulers.CosineAnnealingLR(o, T_max=30, eta_min=0.1), 30)
    )
    assert table(linear(**no_warmup, final=0.25), 30) == pytest.approx(torch_factors(
        lambda o: torch_schedulers.LinearLR(o, start_factor=1, end_factor=0.25, total_iters=30), 30
    ))  # fmt: skip
    assert table(multistep(**no_warmup, milestones=["7 steps", "20 steps"]), 30) == pytest.approx(
        torch_factors(lambda o: torch_schedulers.MultiStepLR(o, [7, 20], gamma=0.1), 30)
    )
    warm = constant(timeline=timeline, warmup="6 steps", warmup_start=0.1)
    assert table(warm, 30) == pytest.approx(torch_factors(
        lambda o: torch_schedulers.LinearLR(o, start_factor=0.1, end_factor=1, total_iters=6), 30
    ))  # fmt: skip


@pytest.mark.parametrize(("anneal", "name"), [("cosine", "cos"), ("linear", "linear")])
def test_one_cycle_agrees_with_torch(anneal: Any, name: Any) -> None:
    # OneCycleLR reaches its end at the last step, ours when the training ends: one step later.
    ours = one_cycle(timeline=Timeline((10, 10, 10), 1), warmup="9 steps", anneal=anneal)
    theirs = torch_factors(
        lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=1.0, total_steps=31, pct_start=10 / 31, anneal_strategy=name,
            cycle_momentum=False,
        ),
        30,
    )  # fmt: skip
    assert table(ours, 30) == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("build", [cosine, linear, constant, one_cycle])
def test_a_warm_up_longer_than_the_training_is_refused(build: Any) -> None:
    with pytest.raises(UsageError, match=r"schedule.warmup=3 epochs is 30 steps.*training has 20"):
        build(timeline=EVEN, warmup="3 epochs")
    with pytest.raises(UsageError, match=r"schedule.warmup='soon' is not a length of time"):
        build(timeline=EVEN, warmup="soon")


@pytest.mark.parametrize(
    ("milestones", "steps"),
    [([1, 1], "[10, 10]"), ([1.5, 1], "[15, 10]"), ([2], "[20]"), (["4 steps"], "[4]"), ([], "[]")],
)
def test_milestones_that_do_not_fit_are_refused(milestones: list, steps: str) -> None:
    with pytest.raises(UsageError, match=r"schedule.milestones=.*rise and lie between") as error:
        multistep(timeline=EVEN, milestones=milestones, warmup="5 steps")
    assert f"are steps {steps}; " in str(error.value)
    assert "warm-up (step 5) and of the training (step 20)" in str(error.value)


def test_negative_factors_are_refused() -> None:
    with pytest.raises(UsageError, match=r"schedule.final=-0.1 is a factor on the rate"):
        cosine(timeline=EVEN, final=-0.1)
    with pytest.raises(UsageError, match=r"schedule.warmup_start=nan is a factor"):
        constant(timeline=EVEN, warmup_start=math.nan)


@pytest.mark.parametrize("path", sorted((REPO / "conf" / "schedule").glob("*.yaml")), ids=str)
def test_yamls_make_schedules(path: Path) -> None:
    node = yaml.safe_load(path.read_text())
    rates = table(component(node, "schedule", timeline=Timeline((10,) * 10, 8)), 100)
    assert max(rates) == pytest.approx(1.0)
    assert 0 < rates[0] < 0.05 and min(rates) >= 0
    assert rates[-1] < 0.05 or path.stem == "constant"
