"""`vidtrain benchmark scaling`: its arithmetic, against values worked out by hand."""

import math

import numpy as np
import pytest

from vidtrain.benchmarking import scaling_model as model
from vidtrain.benchmarking.scaling_figures import Measured, Place, assumptions, checks, link
from vidtrain.benchmarking.scaling_model import Bucket, Network, Step

NETWORK = Network(bandwidth=10e9, node_bandwidth=100e9, latency=20e-6, node_latency=5e-6)
STEP = Step(seconds=0.4, backward=0.5, buckets=(Bucket(80e6, 0.5), Bucket(40e6, 1.0)))


def test_a_ring_by_hand() -> None:
    # 6 hops of 10 us and of a quarter of 8 MB at 1 GB/s each.
    assert model.ring(8e6, 4, 1e9, 10e-6) == pytest.approx(6 * (10e-6 + 2e-3))
    seconds = model.ring(8e6, 4, 1e9, 0.0)
    assert model.bus_bandwidth(8e6, seconds, 4) == pytest.approx(1e9)


def test_small_sums_go_over_a_tree_and_large_ones_around_a_ring() -> None:
    # 512 places: 9 levels up and down, or 1022 hops around.
    assert model.flat_all_reduce(4, 512, 10e9, 20e-6) == pytest.approx(18 * 20e-6, rel=1e-3)
    assert model.flat_all_reduce(10e9, 4, 10e9, 20e-6) == model.ring(10e9, 4, 10e9, 20e-6)
    assert model.flat_all_reduce(10e9, 1, 10e9, 20e-6) == 0.0


def test_two_nodes_of_eight_add_up_within_and_then_between() -> None:
    within = 14 * (5e-6 + 80e6 / 8 / 100e9)
    between = 2 * (20e-6 + 80e6 / 2 / 10e9)
    assert model.all_reduce(80e6, 16, NETWORK) == pytest.approx(within + between)
    assert model.all_reduce(80e6, 8, NETWORK) == pytest.approx(within)
    assert model.all_reduce(80e6, 1, NETWORK) == 0.0


def test_buckets_travel_one_after_the_other_while_the_backward_pass_goes_on() -> None:
    buckets = (Bucket(1.0, 0.25), Bucket(2.0, 0.5), Bucket(0.5, 1.0))
    # Backward of 4 s, a second for each byte: 1 to 2, 2 to 4, 4 to 4.5.
    assert model.exposed(buckets, 4.0, lambda size: size) == pytest.approx(0.5)
    # Twice as slow: 1 to 3, 3 to 7, 7 to 8.
    assert model.exposed(buckets, 4.0, lambda size: 2 * size) == pytest.approx(4.0)
    # The backward pass goes on after the last of them.
    assert model.exposed(buckets[:1], 4.0, lambda size: size) == 0.0


def test_gradients_fill_buckets_in_the_order_in_which_they_come() -> None:
    gradients = [(3, 0.1), (3, 0.3), (9, 0.2), (1, 0.9)]
    assert model.filled(gradients, 5) == (Bucket(6, 0.3), Bucket(9, 0.2), Bucket(1, 0.9))


def test_a_prediction_by_hand() -> None:
    found = model.predict(STEP, NETWORK, 16)
    first, second = (model.all_reduce(size, 16, NETWORK) for size in (80e6, 40e6))
    # The first goes from 0.1 s on and is long there at 0.2 s, when the second may go.
    assert found.exposed == pytest.approx(second)
    assert found.exchange == pytest.approx(first + second)
    assert found.seconds == pytest.approx(0.4 + second)
    assert found.efficiency == pytest.approx(0.4 / (0.4 + second))
    assert found.efficiency_uncovered == pytest.approx(0.4 / (0.4 + first + second))


@pytest.mark.parametrize("processes", [8, 64, 512])
def test_what_is_known_without_a_model(processes: int) -> None:
    no_cost = Network(math.inf, math.inf, latency=0.0, node_latency=0.0)
    assert model.predict(STEP, no_cost, processes).efficiency == 1.0
    late = Step(0.4, 0.5, (Bucket(120e6, 1.0),))
    nothing_covered = model.predict(late, NETWORK, processes)
    assert nothing_covered.exposed == pytest.approx(nothing_covered.exchange)
    assert nothing_covered.efficiency == pytest.approx(nothing_covered.efficiency_uncovered)
    slow = Network(0.0001, 0.0001, latency=20e-6)
    assert model.predict(STEP, slow, processes).efficiency < 1e-6


def test_one_process_waits_for_nothing() -> None:
    found = model.predict(Step(0.4, 0.5, STEP.buckets, jitter=0.1), NETWORK, 1)
    assert found.seconds == found.seconds_uncovered == 0.4 and found.efficiency == 1.0


def test_a_shared_batch_leaves_each_process_less_to_compute() -> None:
    strong = model.predict(Step(0.4, 0.5, STEP.buckets, strong=True), NETWORK, 16)
    assert strong.computing == pytest.approx(0.4 / 16)
    assert strong.exchange == model.predict(STEP, NETWORK, 16).exchange
    assert strong.efficiency < model.predict(STEP, NETWORK, 16).efficiency


def test_the_slowest_of_many_is_later_by_what_draws_show() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 512))
    for number in (1, 2, 8, 64, 512):
        mean = draws[:, :number].max(axis=1).mean()
        assert model.expected_maximum(number) == pytest.approx(mean, abs=0.05)
    jittery = model.predict(Step(0.4, 0.5, (), jitter=0.05), NETWORK, 64)
    assert jittery.waiting == pytest.approx(0.4 * 0.05 * model.expected_maximum(64))
    assert jittery.seconds == pytest.approx(0.4 + jittery.waiting)


def test_the_spread_is_a_standard_deviation_that_outliers_do_not_move() -> None:
    times = list(np.random.default_rng(0).normal(2.0, 0.1, size=2000))
    assert model.spread(times) == pytest.approx(0.05, rel=0.1)
    assert model.spread([*times, *[40.0] * 20]) == pytest.approx(model.spread(times), rel=0.05)
    assert model.spread([2.0, 2.0, 2.0]) == 0.0


def measured(processes: int, seconds: list[float], apart: list[float], sums: float) -> Measured:
    rounds = len(seconds)
    return Measured(processes, seconds, apart, [sums] * rounds,
                    [0.004 * (processes - 1)] * rounds, [0.5 * processes] * rounds, seconds,
                    seconds)  # fmt: skip


def test_shares_of_measured_steps_by_hand() -> None:
    one, two = measured(1, [1.0, 1.2], [1.0, 1.2], 0.0), measured(2, [1.6, 2.0], [1.2, 1.6], 0.8)
    assert two.exposed.values == pytest.approx((0.25, 0.2))
    assert two.overlap == pytest.approx(0.5) and one.overlap is None
    assert not two.inconclusive
    assert measured(2, [1.6, 1.5], [1.2, 1.6], 0.8).inconclusive
    assert two.efficiency(one, strong=False).values == pytest.approx((0.625, 0.6))
    assert two.efficiency(one, strong=True).values == pytest.approx((0.3125, 0.3))
    assert two.work(one, strong=False).values == pytest.approx((0.5, 0.5))
    assert Place("cpu", "x", 2, 1).had(one) == pytest.approx((0.5 / 1.0 + 0.5 / 1.2) / 2)
    assert Place("cuda", "x", 2, 1).had(one) is None


def test_the_model_is_held_against_what_was_measured() -> None:
    # A sum over two: two hops of 2 ms, and 100 MB there and back, half of them each, in 0.1 s.
    rows = [measured(1, [1.0], [1.0], 0.0), measured(2, [1.5], [1.3], 0.104),
            measured(4, [2.0], [1.5], 0.5)]  # fmt: skip
    between = link(rows, 100e6, 1)
    assert between is not None
    assert between.latency == pytest.approx(2e-3)
    assert between.node_bandwidth == pytest.approx(1e9)
    step = Step(1.0, 0.5, (Bucket(100e6, 0.1),))
    two, four = checks(rows, step, between, Place("cpu", "x", cores=2, threads=1))
    assert two.seconds == pytest.approx(1.104) and two.error == pytest.approx(1.104 / 1.5 - 1)
    # On half a core each everything takes twice as long, the way of a message does not.
    assert four.seconds == pytest.approx(2.0 + 6 * (2e-3 + 100e6 / 4 / 0.5e9))
    # A GPU computes while it exchanges.
    (hidden, _) = checks(rows, step, between, Place("cuda", "x", cores=2, threads=1))
    assert hidden.seconds == pytest.approx(1.0)
    assert link(rows[:1], 100e6, 1) is None
    assert checks(rows[:1], step, None, Place("cpu", "x", 2, 1)) == []


def test_a_step_of_a_cpu_is_said_to_flatter_a_network() -> None:
    cpu, cuda = Place("cpu", "x", 2, 1), Place("cuda", "x", 2, 1)
    flattered = [("flatters" in " ".join(assumptions(STEP, NETWORK, place, given=given)))
                 for place, given in ((cpu, False), (cpu, True), (cuda, False))]  # fmt: skip
    assert flattered == [True, False, False]
