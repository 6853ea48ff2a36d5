"""What `vidtrain doctor` makes of what several processes report."""

import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vidtrain.health import disks, links, peers
from vidtrain.health.findings import Finding, Member, merged, place, spans

FOUR = {rank: Member(rank, 4, rank % 2, 2, rank // 2, f"node{rank // 2}") for rank in range(4)}
NODES = {rank: Member(rank, 5, 0, 1, rank, f"node{rank}") for rank in range(5)}


def test_the_same_is_said_once_and_a_difference_with_its_place() -> None:
    def rows(rank: int) -> list[Finding]:
        odd = rank == 3
        return [
            Finding("torch", "ok", "2.9" if odd else "2.8", alike="fail"),
            Finding("limit", "warn" if rank > 1 else "ok", "few" if rank > 1 else "many"),
            Finding("speed", "ok", f"{rank} MB/s", number=float(rank)),
            Finding("other", "ok", "1.0", quiet=True, alike="warn"),
            *([Finding("disk", "ok", "full", of_node=True)] if rank == 2 else []),
        ]

    lines = merged({rank: rows(rank) for rank in range(4)}, FOUR)
    said = [(line.subject, line.verdict, line.ranks) for line in lines]
    assert said == [
        ("torch", "ok", (0, 1, 2)), ("torch", "fail", (3,)), ("limit", "ok", (0, 1)),
        ("limit", "warn", (2, 3)), ("speed", "ok", (0, 1, 2, 3)), ("disk", "ok", (2, 3)),
    ]  # fmt: skip
    assert lines[1].found == "2.9, where rank 0 has 2.8" and lines[1].hosts == ("node1",)
    assert lines[4].found == "0 MB/s on rank 0 (node0), up to 3 MB/s on rank 3 (node1)"
    assert [place(line.ranks, FOUR) for line in lines[2:5]] == ["node0", "node1", "all"]
    assert place([0, 2, 3], FOUR) == "rank 0 (node0), node1"
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


def test_what_only_some_processes_have_differs() -> None:
    def rows(rank: int) -> list[Finding]:
        on_one = [Finding("variable NCCL_ALGO", "ok", "Tree", alike="warn"),
                  Finding("variable NCCL_DEBUG", "ok", "INFO")]  # fmt: skip
        more = Finding("package extra", "ok", "1.0", alike="warn", quiet=True)
        every = Finding("variable NCCL_PROTO", "ok", "LL", alike="warn")
        return [every] * (rank < 3) + on_one * (rank > 1) + [more] * (rank == 2)

    lines = {(line.subject, line.verdict): line
             for line in merged({rank: rows(rank) for rank in range(4)}, FOUR)}  # fmt: skip
    assert lines["variable NCCL_ALGO", "warn"].ranks == (2, 3)
    assert lines["variable NCCL_ALGO", "warn"].found == "Tree, where rank 0 has nothing"
    assert lines["variable NCCL_PROTO", "warn"].found == "nothing, where rank 0 has LL"
    assert lines["package extra", "warn"].ranks == (2,), "rank 0 leads the other node"
    assert ("variable NCCL_DEBUG", "warn") not in lines and len(lines) == 5


@pytest.mark.parametrize("count", [2, 3, 4, 7, 64])
def test_pairs_are_different_in_each_round(count: int) -> None:
    found = links.rounds(count)
    assert len(found) == min(links.ROUNDS, count - 1 + count % 2)
    for pairs in found:
        ends = [unit for pair in pairs for unit in pair]
        assert len(set(ends)) == len(ends) >= count - 1
    everything = [tuple(sorted(pair)) for pairs in found for pair in pairs]
    assert len(set(everything)) == len(everything)


def exchanges(speed: Callable[[int, int], float]) -> dict[int, list[dict[str, Any]]]:
    """What five nodes would measure if pairs were that fast, MB/s."""
    found: dict[int, list[dict[str, Any]]] = {rank: [] for rank in NODES}
    for a, b in (pair for pairs in links.rounds(5) for pair in pairs):
        for own, other in ((a, b), (b, a)):
            row = {"unit": own, "other": other, "mb_s": speed(a, b), "seconds": 1e-5}
            found[own].append(row)
    return found


def test_a_slow_node_and_a_slow_connection_are_told_apart() -> None:
    slow_node = exchanges(lambda a, b: 20.0 if 2 in (a, b) else 1000.0)
    said = {line.subject: line for line in links.exchanged(slow_node, NODES)}
    assert said["slow node"].hosts == ("node2",) and said["slow node"].verdict == "warn"
    assert "slow connection" not in said
    a, b = links.rounds(5)[0][0]
    slow_pair = exchanges(lambda *pair: 20.0 if set(pair) == {a, b} else 1000.0)
    said = {line.subject: line for line in links.exchanged(slow_pair, NODES)}
    assert set(said["slow connection"].ranks) == {a, b} and "slow node" not in said
    even = exchanges(lambda a, b: 1000.0)
    assert [line.subject for line in links.exchanged(even, NODES)] == ["exchange"]
    below = list(links.exchanged(even, NODES, min_gbps=10))
    assert {line.verdict for line in below if line.subject == "slow node"} == {"fail"}


def test_a_slow_processor_is_named() -> None:
    speeds = {0: 600.0, 1: 610.0, 2: 300.0, 3: 605.0}
    slow, all_of_them = links.computed(speeds, FOUR, cuda=True)
    assert slow.ranks == (2,) and "rank 2 (node1): 300" in slow.found and "GPU 0" in slow.remedy
    assert all_of_them.found.startswith("300 to 610 TFLOP/s")


def test_a_clock_that_is_ahead_and_a_node_that_does_not_answer() -> None:
    import time

    with peers.answering("word", clock=lambda: time.time() + 90) as port:
        seen = peers.visit(1, "127.0.0.1", port, "word")
        refused = peers.visit(2, "127.0.0.1", port, "another word")
    assert not seen.error and seen.skew == pytest.approx(90, abs=0.5)
    assert refused.error
    closed = peers.visit(2, "127.0.0.1", port, "word")
    assert str(errno.ECONNREFUSED) in closed.error
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        late = peers.visit(3, "127.0.0.1", mute.getsockname()[1], "word", seconds=0.2)
    assert "within 0.2 s" in late.error
    good = peers.Visit(0, "", 0.001, 0.0)
    lines = list(peers.reached({0: [seen, late], 1: [good], 3: [good]}, NODES))
    assert [(line.subject, line.verdict) for line in lines] == [
        ("connections", "fail"), ("clocks", "warn")]  # fmt: skip
    assert lines[0].hosts == ("node0", "node3") and "node0 does not reach node3" in lines[0].found
    assert "node1 is 90.0 s ahead of node0" in lines[1].found


def test_a_node_that_nobody_reaches_is_named_once() -> None:
    found = {
        rank: [peers.Visit(other, "no answer" if 3 in (rank, other) else "", 0.001)
               for other in NODES if other != rank]
        for rank in NODES
    }  # fmt: skip
    lines = [line for line in peers.reached(found, NODES) if line.verdict == "fail"]
    assert {line.hosts for line in lines} == {("node3",)}
    assert "is not reached by 4 of 4" in lines[0].found


def test_more_than_half_of_the_others_name_a_node() -> None:
    four = {rank: NODES[rank] for rank in range(4)}
    for silent, named in ((2, True), (1, False)):
        found = {rank: [peers.Visit(other, "no answer" if other == 3 and rank < silent else "",
                                    0.001) for other in four if other != rank]
                 for rank in four}  # fmt: skip
        lines = [line for line in peers.reached(found, four) if line.verdict == "fail"]
        assert any("is not reached by 2 of 3" in line.found for line in lines) == named


def test_folders_that_differ(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        (root / "a").mkdir(parents=True)
        (root / "a" / "x.mp4").write_bytes(b"1")
    (first,), (second,) = disks.listing(one), disks.listing(two)
    assert first.found.split("digest")[1] == second.found.split("digest")[1]
    (two / "a" / "y.mp4").write_bytes(b"1")
    (third,) = disks.listing(two)
    assert third.found.split("digest")[1] != first.found.split("digest")[1]
    token = disks.put_token(one / "runs" / "later")
    me = Member(rank=1, size=2)
    (seen,) = disks.seen(one / "runs" / "later", token, me, seconds=0)
    (lost,) = disks.seen(two / "runs" / "later", token, me, seconds=0)
    assert (seen.verdict, lost.verdict) == ("ok", "fail")
    disks.remove_token(one / "runs" / "later", token)
    assert sorted(path.name for path in one.iterdir()) == ["a"]
