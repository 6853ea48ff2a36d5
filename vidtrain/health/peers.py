"""Nodes connect to one another: who is reached, how fast an answer comes, which clock is off."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from vidtrain.health.findings import Finding, Line, Member, line

SECONDS = 5.0
ROUND_TRIPS = 8
AT_ONCE = 16
MOST_SKEW = 1.0


@dataclass(frozen=True)
class Visit:
    """What came of connecting to a node.

    Attributes:
        rank: The process that answers there.
        error: Why it was not reached; empty: it was.
        seconds: Shortest time from a question to its answer.
        skew: Seconds that its clock is ahead of this one's, to half of that time.
    """

    rank: int
    error: str = ""
    seconds: float = 0.0
    skew: float = 0.0


@contextmanager
def answering(token: str, clock: Callable[[], float] = time.time) -> Iterator[int]:
    """Answers questions for the time, in threads; yields the port.

    Args:
        token: What a question must be; at most 64 ASCII characters.
        clock: Returns the time.
    """
    both = socket.has_dualstack_ipv6()
    with socket.create_server(
        ("", 0), family=socket.AF_INET6 if both else socket.AF_INET, backlog=512,
        dualstack_ipv6=both,
    ) as server:  # fmt: skip
        threading.Thread(target=_accept, args=(server, token, clock), daemon=True).start()
        yield server.getsockname()[1]
        with suppress(OSError):  # wakes the thread that accepts
            server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, token: str, clock: Callable[[], float]) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        threading.Thread(target=_answer, args=(connection, token, clock), daemon=True).start()


def _answer(connection: socket.socket, token: str, clock: Callable[[], float]) -> None:
    with connection, suppress(OSError):
        connection.settimeout(SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(ROUND_TRIPS):
            if connection.recv(64) != token.encode():
                return
            connection.sendall(f"{clock():.9f}".encode())


def visit(rank: int, address: str, port: int, token: str, *, seconds: float = SECONDS) -> Visit:
    """Connects to a node and asks it for its time."""
    best, skew = float("inf"), 0.0
    try:
        with socket.create_connection((address, port), timeout=seconds) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for _ in range(ROUND_TRIPS):
                before = time.time()
                began = time.perf_counter()
                connection.sendall(token.encode())
                theirs = float(connection.recv(64))
                took = time.perf_counter() - began
                if took < best:
                    best, skew = took, theirs - (before + took / 2)
    except TimeoutError:
        return Visit(rank, f"no answer from {address} port {port} within {seconds:g} s")
    except (OSError, ValueError) as error:
        return Visit(rank, f"{address} port {port}: {error}")
    return Visit(rank, "", best, skew)


def visits(hosts: Mapping[int, tuple[str, int]], token: str, me: Member) -> list[Visit]:
    """Connects to all other nodes.

    Args:
        hosts: Address and port of the process of each node that answers, by rank.
        token: What is asked.
        me: This process.
    """
    others = [rank for rank in hosts if rank != me.rank]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda rank: visit(rank, *hosts[rank], token), others))


def reached(found: Mapping[int, list[Visit]], members: Mapping[int, Member]) -> Iterator[Line]:
    """Says which nodes are not reached, and which clocks are off.

    A node that most others do not reach, or that does not reach most others, is named; of what is
    left each connection.

    Args:
        found: What each node's process has seen, by its rank.
        members: All processes, by rank.
    """
    broken = {(rank, v.rank): v.error for rank, seen in found.items() for v in seen if v.error}
    bad = set()
    for rank in found if len(found) > 2 else ():
        ways = (
            ("is not reached by", [a for a, b in broken if b == rank]),
            ("does not reach", [b for a, b in broken if a == rank]),
        )
        for words, others in ways:
            if 2 * len(others) > len(found) - 1:
                bad.add(rank)
                some = next(e for pair, e in broken.items() if rank in pair)
                yield _apart([members[rank]], f"{members[rank].host} {words} {len(others)} of "
                             f"{len(found) - 1} other nodes: {some}")  # fmt: skip
    for (a, b), error in broken.items():
        both = (b, a) in broken
        if {a, b} & bad or (both and b < a):  # said with the node, or with the other way
            continue
        pair = [members[a], members[b]]
        ends = f"{pair[0].host} and {pair[1].host} do not reach each other" if both else (
            f"{pair[0].host} does not reach {pair[1].host}")  # fmt: skip
        yield _apart(pair, f"{ends}: {error}")
    good = [v.seconds for seen in found.values() for v in seen if not v.error]
    if not broken and good:
        late = f"answers within {1e3 * max(good):.2f} ms"
        text = f"{len(good)} connections between {len(found)} nodes, {late}"
        yield Line("connections", "ok", text, ranks=tuple(sorted(found)),
                   hosts=tuple(members[rank].host for rank in sorted(found)))  # fmt: skip
    yield from _clocks(found.get(0, []), members)


def _apart(pair: list[Member], text: str) -> Line:
    remedy = (
        "a firewall, or the wrong interface: allow all TCP ports between the nodes, or set "
        "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to the network that they share"
    )
    return line(Finding("connections", "fail", text, remedy), pair)


def _clocks(seen: list[Visit], members: Mapping[int, Member]) -> Iterator[Line]:
    seen = [v for v in seen if not v.error]
    for v in seen:
        if abs(v.skew) > MOST_SKEW:
            way = "ahead of" if v.skew > 0 else "behind"
            text = f"{members[v.rank].host} is {abs(v.skew):.1f} s {way} {members[0].host}"
            yield line(Finding("clocks", "warn", text, "start chrony or ntpd there: times of files "
                               "and log lines do not fit together"), [members[v.rank]])  # fmt: skip
    if seen and all(abs(v.skew) <= MOST_SKEW for v in seen):
        worst = max(seen, key=lambda v: abs(v.skew))
        text = f"{1e3 * abs(worst.skew):.1f} ms apart at most (± {500 * worst.seconds:.1f} ms)"
        yield Line("clocks", "ok", text, ranks=(0, *(v.rank for v in seen)))
