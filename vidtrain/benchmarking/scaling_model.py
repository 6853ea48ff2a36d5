"""How long a training step takes on many GPUs: computing, waiting for the slowest, exchange.

A step takes as long as one process computes for it, plus the time by which the slowest of all is
later, plus the part of the exchange of gradients that the backward pass does not cover.

Sources: Li et al., PyTorch Distributed, VLDB 2020, section 3.2 (buckets that travel while the
backward pass goes on); Thakur et al., Optimization of Collective Communication Operations in MPICH,
2005 (costs of a ring); Sanders et al., Two-tree Algorithms for Full Bandwidth Broadcast, Reduction
and Scan, 2009, and NCCL 2.4 (trees); the page on performance of nccl-tests (bus bandwidth).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

# Time of the smallest message between two GPUs of a node, seconds. Source: NCCL, src/graph/
# tuning.cc, trees over NVLink with the protocol "Simple"; over a network it has 14e-6.
NODE_LATENCY = 4e-6


@dataclass(frozen=True)
class Bucket:
    """Gradients that travel together.

    Attributes:
        size: Bytes.
        ready: Share of the backward pass after which all of them are there.
    """

    size: float
    ready: float


@dataclass(frozen=True)
class Step:
    """A training step of one process.

    Attributes:
        seconds: What it takes.
        backward: Share of that which the (last) backward pass takes.
        buckets: What travels, in its order.
        jitter: Standard deviation of the time of a step, over that time.
        strong: The batch is that of all processes, which share the work.
    """

    seconds: float
    backward: float
    buckets: tuple[Bucket, ...]
    jitter: float = 0.0
    strong: bool = False


@dataclass(frozen=True)
class Network:
    """What gradients travel over.

    Attributes:
        bandwidth: Of a node, in and out at once, all its GPUs together, bytes/s.
        node_bandwidth: Of a GPU to the others of its node, in and out at once, bytes/s.
        latency: Of the smallest message between two nodes, seconds.
        node_latency: Of the smallest message within a node, seconds.
        gpus_per_node: GPUs of a node.
    """

    bandwidth: float
    node_bandwidth: float
    latency: float
    node_latency: float = NODE_LATENCY
    gpus_per_node: int = 8


@dataclass(frozen=True)
class Prediction:
    """A step of many processes.

    Attributes:
        processes: How many.
        computing: Seconds that one computes.
        waiting: Seconds by which the slowest is later.
        exchange: Seconds of all exchange, covered or not.
        exposed: Seconds of exchange that the backward pass does not cover.
    """

    processes: int
    computing: float
    waiting: float
    exchange: float
    exposed: float

    @property
    def seconds(self) -> float:
        """What the step takes."""
        return self.computing + self.waiting + self.exposed

    @property
    def seconds_uncovered(self) -> float:
        """What it takes where nothing of the exchange is covered."""
        return self.computing + self.waiting + self.exchange

    @property
    def efficiency(self) -> float:
        """Share of the time that is computing."""
        return self.computing / self.seconds

    @property
    def efficiency_uncovered(self) -> float:
        """The same where nothing of the exchange is covered."""
        return self.computing / self.seconds_uncovered


def predict(step: Step, network: Network, processes: int) -> Prediction:
    """Returns what a step takes on a number of GPUs."""
    computing = step.seconds / processes if step.strong else step.seconds

    def cost(size: float) -> float:
        return all_reduce(size, processes, network)

    return Prediction(
        processes=processes,
        computing=computing,
        waiting=computing * step.jitter * expected_maximum(processes),
        exchange=sum(cost(bucket.size) for bucket in step.buckets),
        exposed=exposed(step.buckets, step.backward * computing, cost),
    )


def all_reduce(size: float, processes: int, network: Network) -> float:
    """Returns the seconds in which all processes get the sum of all their buffers.

    GPUs of a node add up among themselves first, each one a part of the buffer; then nodes add up
    these parts; then each GPU hands its part round in the node.

    Args:
        size: Of a buffer, bytes.
        processes: One for each GPU; a multiple of those of a node, or no more than these.
        network: What it travels over.
    """
    local = min(processes, network.gpus_per_node)
    nodes = processes // local
    if nodes == 1:
        return flat_all_reduce(size, local, network.node_bandwidth, network.node_latency)
    within = ring(size, local, network.node_bandwidth, network.node_latency)
    return within + flat_all_reduce(size, nodes, network.bandwidth, network.latency)


def flat_all_reduce(size: float, places: int, bandwidth: float, latency: float) -> float:
    """Returns the seconds of a ring or of a tree, whichever is faster, as NCCL chooses."""
    if places == 1:
        return 0.0
    tree = 2 * (math.ceil(math.log2(places)) * latency + size / bandwidth)
    return min(ring(size, places, bandwidth, latency), tree)


def ring(size: float, places: int, bandwidth: float, latency: float) -> float:
    """Returns the seconds of a reduce-scatter and an all-gather around a ring."""
    return 2 * (places - 1) * (latency + size / places / bandwidth)


def exposed(
    buckets: Iterable[Bucket], backward: float, cost: Callable[[float], float]
) -> float:  # fmt: skip
    """Returns the seconds of exchange after the end of the backward pass.

    Args:
        buckets: In the order in which they travel, one after the other.
        backward: Seconds of the backward pass.
        cost: Returns the seconds that so many bytes take.
    """
    end = 0.0
    for bucket in buckets:
        end = max(end, bucket.ready * backward) + cost(bucket.size)
    return max(0.0, end - backward)


def filled(gradients: Sequence[tuple[int, float]], limit: float) -> tuple[Bucket, ...]:
    """Returns gradients put into buckets as DDP does it.

    Args:
        gradients: Bytes of each, and the share of the backward pass after which it is there; in
            the order in which they come.
        limit: Bytes at which a bucket is full.
    """
    buckets, size, ready = list[Bucket](), 0, 0.0
    for number, (more, when) in enumerate(gradients, start=1):
        size, ready = size + more, max(ready, when)
        if size >= limit or number == len(gradients):
            buckets.append(Bucket(size, ready))
            size, ready = 0, 0.0
    return tuple(buckets)


def expected_maximum(number: int) -> float:
    """Returns the mean of the largest of some normal draws, in standard deviations.

    Source: Blom, Statistical Estimates and Transformed Beta-Variables, 1958.
    """
    return NormalDist().inv_cdf((number - 0.375) / (number + 0.25))


def spread(values: Sequence[float]) -> float:
    """Returns the standard deviation over the median, as the median deviation tells it.

    A few steps that something else held up do not count.
    """
    middle = median(values)
    return 1.4826 * median(abs(value - middle) for value in values) / middle


def bus_bandwidth(size: float, seconds: float, places: int) -> float:
    """Returns the bytes/s of the slowest link of a ring that a sum over all places tells of.

    Source: nccl-tests, doc/PERFORMANCE.md.
    """
    return 2 * (places - 1) / places * size / seconds
