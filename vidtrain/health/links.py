"""How fast processes exchange data and compute, and which of them are slow beside the others.

The process group is there already; it is used through torch.distributed itself, since nothing but
these measurements needs single sends.
"""

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from vidtrain.distributed import World
from vidtrain.health.findings import Finding, Line, Member, line

MB = 1_000_000
PAIR_MB = 16
ROUNDS = 3
LONG_SECONDS = 2.0
# A node, a connection or a processor below this share of the median is named.
SLOW = 0.5
SLOW_GPU = 0.85


def sums(world: World, sizes_mb: Sequence[float]) -> list[dict[str, float]]:
    """Times all-reduces; stops before a size that would take long.

    Returns:
        For each size mb, seconds, and GB/s: of the data (algorithm), and of what each process sends
        and receives in a ring (bus), which is comparable whatever the number of processes.
    """
    found: list[dict[str, float]] = []
    for size in sizes_mb:
        values = torch.ones(max(1, int(size * MB) // 4), device=world.device)
        if found and _slowest(found[-1]["seconds"] * size / found[-1]["mb"], world) > LONG_SECONDS:
            break
        times = []
        for turn in range(4):
            _wait(world)
            began = time.perf_counter()
            dist.all_reduce(values)
            _wait(world)
            if turn:
                times.append(_slowest(time.perf_counter() - began, world))
            values.fill_(1.0)
        seconds = statistics.median(times)
        speed = size * MB / seconds / 1e9
        bus = speed * 2 * (world.size - 1) / world.size
        found.append({"mb": size, "seconds": seconds, "algorithm": speed, "bus": bus})
    return found


def rounds(count: int, most: int = ROUNDS) -> list[list[tuple[int, int]]]:
    """Returns who is paired with whom: in each round each meets another one, at most once."""
    players: list[int | None] = [*range(count), *([None] * (count % 2))]
    found = []
    for _ in range(min(most, len(players) - 1)):
        half = len(players) // 2
        pairs = zip(players[:half], reversed(players[half:]), strict=True)
        found.append([(a, b) for a, b in pairs if a is not None and b is not None])
        players = [players[0], players[-1], *players[1:-1]]
    return found


def exchanges(world: World, members: Mapping[int, Member]) -> list[dict[str, Any]]:
    """Lets pairs of nodes, of processes where there is one node, send data both ways at once.

    All pairs of a round at the same time; a few rounds, so the time does not grow with the nodes.

    Returns:
        What this process measured: the numbers of its unit and of the other, MB/s each way, seconds
        that the exchange of four bytes takes.
    """
    units = units_of(members)
    own = next(index for index, ranks in enumerate(units) if world.rank in ranks)
    found = []
    for pairs in rounds(len(units)):
        other = next((b if a == own else a for a, b in pairs if own in (a, b)), None)
        peers = units[other] if other is not None else []
        place = units[own].index(world.rank)
        dist.all_reduce(torch.zeros(1, device=world.device))  # all begin together
        if other is not None and place < len(peers):
            speed, seconds = _exchange(world, peers[place])
            found.append({"unit": own, "other": other, "mb_s": speed, "seconds": seconds})
    return found


def units_of(members: Mapping[int, Member]) -> list[list[int]]:
    """Returns the ranks of each node, or each rank alone where there is one node."""
    nodes: dict[int, list[int]] = {}
    for rank in sorted(members):
        nodes.setdefault(members[rank].node, []).append(rank)
    return [[rank] for rank in sorted(members)] if len(nodes) == 1 else list(nodes.values())


def _exchange(world: World, peer: int) -> tuple[float, float]:
    small = min(_send_and_receive(world, peer, 1) for _ in range(20))
    _send_and_receive(world, peer, MB // 4)
    millions = MB / _send_and_receive(world, peer, MB // 4) / MB
    # Both ends must come to the same, and have slightly different times.
    slow = torch.tensor([float(millions < PAIR_MB / LONG_SECONDS)], device=world.device)
    theirs = torch.empty_like(slow)
    _both_ways(peer, slow, theirs)
    if slow.item() or theirs.item():
        return millions, small
    best = min(_send_and_receive(world, peer, PAIR_MB * MB // 4) for _ in range(3))
    return PAIR_MB / best, small


def _send_and_receive(world: World, peer: int, numbers: int) -> float:
    values = torch.ones(numbers, device=world.device)
    theirs = torch.empty_like(values)
    _wait(world)
    began = time.perf_counter()
    _both_ways(peer, values, theirs)
    _wait(world)
    return time.perf_counter() - began


def _both_ways(peer: int, values: torch.Tensor, theirs: torch.Tensor) -> None:
    both = [dist.P2POp(dist.isend, values, peer), dist.P2POp(dist.irecv, theirs, peer)]
    for work in dist.batch_isend_irecv(both):
        work.wait()


def products(device: torch.device, *, seconds: float = 1.0) -> float:
    """Returns the TFLOP/s of matrix products: the median over the given time, after a warm-up."""
    cuda = device.type == "cuda"
    side, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    left = torch.ones(side, side, device=device, dtype=dtype)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 4 or time.perf_counter() < end:
        began = time.perf_counter()
        left @ left
        if cuda:
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * side**3 / statistics.median(times[2:]) / 1e12


def summed(found: Sequence[Mapping[str, float]], *, ranks: int, cuda: bool) -> Iterator[Line]:
    """Says how fast all processes add up."""
    backend = "NCCL" if cuda else "gloo"
    text = "; ".join(
        f"{row['mb']:g} MB in {1e3 * row['seconds']:.1f} ms, {row['algorithm']:.3g} GB/s (bus "
        f"{row['bus']:.3g})" for row in found
    )  # fmt: skip
    yield Line("all-reduce", "ok", f"{backend}, {ranks} ranks: {text}")


def exchanged(
    found: Mapping[int, Sequence[Mapping[str, Any]]],
    members: Mapping[int, Member],
    *,
    min_gbps: float | None = None,
) -> Iterator[Line]:
    """Says which nodes, connections or processes exchange data slowly.

    Args:
        found: What each process measured, by rank.
        members: All processes, by rank.
        min_gbps: Slowest acceptable speed between two nodes, Gbit/s; None: any.
    """
    units = units_of(members)
    pairs: dict[tuple[int, int], float] = {}
    latency: dict[tuple[int, int], float] = {}
    for rank in sorted(found):
        for row in found[rank]:
            if row["unit"] < row["other"]:  # both ends measure the same
                key = (row["unit"], row["other"])
                pairs[key] = pairs.get(key, 0.0) + row["mb_s"]
                latency[key] = max(latency.get(key, 0.0), row["seconds"])
    if not pairs:
        return
    best = [max(v for pair, v in pairs.items() if unit in pair) for unit in range(len(units))]
    usual = statistics.median(pairs.values()) if len(units) < 4 else statistics.median(best)
    floor = max(SLOW * usual, (min_gbps or 0.0) * 125)
    slow = {unit for unit, speed in enumerate(best) if speed < floor and len(units) > 2}
    nodes = len({member.node for member in members.values()}) > 1
    kind = "pairs of nodes" if nodes else "pairs of ranks"

    def verdict(speed: float) -> str:
        return "warn" if speed >= (min_gbps or 0.0) * 125 else "fail"

    for unit in sorted(slow):
        who = [members[rank] for rank in units[unit]]
        text = f"{_label(who)}: {_gbps(best[unit])} at best, where {_gbps(usual)} is usual"
        remedy = "its cable, switch port or card; leave it out of the job"
        yield line(Finding("slow node", verdict(best[unit]), text, remedy), who)
    for (a, b), speed in pairs.items():
        if speed < floor and not {a, b} & slow:
            who = [members[rank] for unit in (a, b) for rank in units[unit]]
            ends = " and ".join(_label([members[rank] for rank in units[unit]]) for unit in (a, b))
            text = f"{ends}: {_gbps(speed)}, at least {_gbps(floor)} is expected"
            remedy = "the cards of both and the switch between them"
            yield line(Finding("slow connection", verdict(speed), text, remedy), who)
    low, high = _gbps(min(pairs.values())), _gbps(max(pairs.values()))
    soon, late = 1e6 * min(latency.values()), 1e6 * max(latency.values())
    span = low if low == high else f"{low} to {high}"
    text = f"{kind}: {len(pairs)}, {span} each way, {soon:.0f} to {late:.0f} µs"
    yield Line("exchange", "ok", text)


def computed(speeds: Mapping[int, float], members: Mapping[int, Member], *, cuda: bool
             ) -> Iterator[Line]:  # fmt: skip
    """Says which processors are slow beside the others, all at work at once.

    Args:
        speeds: TFLOP/s by rank.
        members: All processes, by rank.
        cuda: Whether they are GPUs.
    """
    usual, share = statistics.median(speeds.values()), SLOW_GPU if cuda else SLOW
    slow = [rank for rank, speed in speeds.items() if speed < share * usual]
    for rank in slow:
        text = f"{members[rank]}: {speeds[rank]:.3g} TFLOP/s, where {usual:.3g} is usual"
        what = f"GPU {members[rank].local_rank} is throttled" if cuda else "its cores are busy"
        yield line(Finding("slow processor", "warn", text, f"{what}, or shared with another job; "
                           "every step waits for it"), [members[rank]])  # fmt: skip
    low, high = min(speeds.values()), max(speeds.values())
    text = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    kind = "bf16, 8192 x 8192" if cuda else "fp32, 1024 x 1024"
    yield Line("matrix products", "ok", f"{text} TFLOP/s ({kind})")


def _label(who: Sequence[Member]) -> str:
    return who[0].host if len(who) > 1 else str(who[0])


def _gbps(mb_s: float) -> str:
    return f"{mb_s / 125:.2f} Gbit/s"


def _slowest(seconds: float, world: World) -> float:
    value = torch.tensor([seconds], dtype=torch.float64, device=world.device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return float(value.item())


def _wait(world: World) -> None:
    if world.device.type == "cuda":
        torch.cuda.synchronize(world.device)
