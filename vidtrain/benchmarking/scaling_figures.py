"""From what processes measured to step time, share of communication, overlap and efficiency."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from vidtrain.benchmarking.measuring import Ratio
from vidtrain.benchmarking.scaling_model import (
    Network,
    Prediction,
    Step,
    bus_bandwidth,
    predict,
)


@dataclass(frozen=True)
class Measured:
    """A number of processes; lists have one value for each round.

    Attributes:
        processes: How many.
        seconds: Of a step.
        apart: Seconds of a step without exchange of gradients; as `seconds` for one process.
        sums: Seconds of the exchange with nothing else; zeros for one process.
        latency: Seconds of adding up four bytes; zeros for one process.
        cpu: CPU seconds of a step, of one process.
        steps: Seconds of every single step of the first process.
        steps_cpu: CPU seconds of the same.
    """

    processes: int
    seconds: list[float]
    apart: list[float]
    sums: list[float]
    latency: list[float]
    cpu: list[float]
    steps: list[float]
    steps_cpu: list[float]

    @property
    def exposed(self) -> Ratio:
        """Share of a step that is exchange which nothing covers."""
        pairs = zip(self.seconds, self.apart, strict=True)
        return Ratio(tuple((whole - part) / whole for whole, part in pairs))

    @property
    def inconclusive(self) -> bool:
        """Whether rounds disagree on whether the exchange costs any time."""
        return min(self.exposed.values) < 0 < max(self.exposed.values)

    @property
    def overlap(self) -> float | None:
        """Share of the exchange that the backward pass covers, 0 to 1; None: one process."""
        if self.processes == 1:
            return None
        waited = median(w - p for w, p in zip(self.seconds, self.apart, strict=True))
        return min(1.0, max(0.0, 1 - waited / median(self.sums)))

    def efficiency(self, one: "Measured", *, strong: bool) -> Ratio:
        """Returns the throughput per process over that of one process, round by round."""
        share = 1 / self.processes if strong else 1.0
        pairs = zip(one.seconds, self.seconds, strict=True)
        return Ratio(tuple(share * alone / taken for alone, taken in pairs))

    def work(self, one: "Measured", *, strong: bool) -> Ratio:
        """Returns the same in CPU seconds: what a busy machine and waiting do not change."""
        share = 1 / self.processes if strong else 1.0
        return Ratio(tuple(share * a / b for a, b in zip(one.cpu, self.cpu, strict=True)))


@dataclass(frozen=True)
class Place:
    """Where it was measured.

    Attributes:
        device: cpu or cuda.
        name: Of the processor or GPU.
        cores: Cores that processes may use.
        threads: CPU threads of a process.
    """

    device: str
    name: str
    cores: int
    threads: int

    def slowdown(self, processes: int) -> float:
        """Returns how many times slower processes are because they share cores."""
        if self.device != "cpu":
            return 1.0
        return max(1.0, processes * self.threads / self.cores)

    def had(self, one: Measured) -> float | None:
        """Returns the share of its cores that one process had; None: a GPU computes."""
        if self.device != "cpu":
            return None
        return median(c / s for c, s in zip(one.cpu, one.seconds, strict=True)) / self.threads


@dataclass(frozen=True)
class Check:
    """The model held against a measurement.

    Attributes:
        processes: How many.
        seconds: Of a step, predicted.
        error: Predicted over measured, less one.
    """

    processes: int
    seconds: float
    error: float


def link(measured: Sequence[Measured], size: float, pieces: int) -> Network | None:
    """Returns what connects the processes, from the fewest that exchange anything.

    Args:
        measured: By number of processes, ascending.
        size: Bytes of all gradients.
        pieces: Number of buckets.
    """
    several = [one for one in measured if one.processes > 1]
    if not several:
        return None
    few = several[0]
    hops = 2 * (few.processes - 1)
    latency = median(few.latency) / hops
    moving = max(median(few.sums) - pieces * hops * latency, 1e-9)
    bandwidth = bus_bandwidth(size, moving, few.processes)
    return Network(bandwidth, bandwidth, latency, latency, gpus_per_node=2**30)


def checks(
    measured: Sequence[Measured], step: Step, network: Network | None, place: Place
) -> list[Check]:
    """Returns the model's step times beside the measured ones, for more than one process.

    On a CPU adding up takes the cores that compute, so nothing of it is covered, and processes that
    share cores do both as many times slower.
    """
    found = []
    for one in measured if network is not None else ():
        if one.processes == 1:
            continue
        assert network is not None
        slower = place.slowdown(one.processes)
        predicted = predict(
            replace(step, seconds=step.seconds * slower),
            replace(network, node_bandwidth=network.node_bandwidth / slower),
            one.processes,
        )
        cpu = place.device == "cpu"
        seconds = predicted.seconds_uncovered if cpu else predicted.seconds
        found.append(Check(one.processes, seconds, seconds / median(one.seconds) - 1))
    return found


def assumptions(step: Step, network: Network, place: Place, *, given: bool) -> list[str]:
    """Returns what a prediction rests on, in words.

    Args:
        step: Of one process.
        network: Between GPUs.
        place: Where it was measured.
        given: Whether the time of a step was given, and not measured.
    """
    size = sum(bucket.size for bucket in step.buckets) / 1e6
    where = "given" if given else f"measured on one {place.device} process ({place.name})"
    lines = [
        "step = computing + waiting for the slowest + exchange that the backward pass does not "
        f"cover; computing {step.seconds:.4g} s, {where}",
        f"exchange of {size:.3g} MB in {len(step.buckets)} bucket(s), one after the other, each "
        f"from when its gradients were there; the backward pass is {step.backward:.0%} of a step",
        f"all-reduce: ring among {network.gpus_per_node} GPUs of a node at "
        f"{network.node_bandwidth * 8e-9:g} Gbit/s each, {network.node_latency * 1e6:g} us a hop; "
        f"then ring or tree, the faster, between nodes of {network.bandwidth * 8e-9:g} Gbit/s, "
        f"{network.latency * 1e6:g} us a hop: given, not measured",
        f"waiting: the expected largest of N normal draws with a standard deviation of "
        f"{step.jitter:.2%} of a step, independent of each other",
        "not in it: other traffic, slow nodes, data loading, validation, checkpoints, and that "
        "exchange slows down computing (`uncovered`: none of it is covered)",
    ]  # fmt: skip
    if place.device == "cpu" and not given:
        lines.insert(0, "the step is that of a CPU, which is slow, so that this flatters any "
                        "network: run it on a GPU, or give step_seconds=")  # fmt: skip
    return lines


def as_dict(prediction: Prediction) -> dict[str, Any]:
    """Returns a prediction as plain values."""
    return {
        "gpus": prediction.processes, "computing": prediction.computing,
        "waiting": prediction.waiting, "exchange": prediction.exchange,
        "exposed": prediction.exposed, "seconds": prediction.seconds,
        "efficiency": prediction.efficiency,
        "efficiency_uncovered": prediction.efficiency_uncovered,
    }  # fmt: skip
