"""What the processes of a job say to one another before and beside the process group.

Everything goes through the key-value store that torchrun's environment names, so that a process
that hangs, or a network on which no process group can be formed, is still talked about. Each
process says once a second that it lives, and where it is.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from vidtrain.errors import InputError, UsageError
from vidtrain.health.findings import Member

BEAT_SECONDS = 1.0
SILENT_SECONDS = 3.0
# Rank 0 speaks first; then the others have this long before they speak for themselves.
GRACE_SECONDS = 8.0
NOBODY = "all processes are alive and at the same place: the network between them hangs"


def member(environment: Mapping[str, str]) -> Member:
    """Returns what torchrun's environment says of this process.

    Raises:
        UsageError: There are several processes, and a variable is missing.
    """
    size = int(environment.get("WORLD_SIZE", "1"))
    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if n not in environment]
    if size > 1 and missing:
        raise UsageError(f"WORLD_SIZE={size} is set but {missing[0]} is not; start with torchrun")
    rank = int(environment.get("RANK", "0"))
    local_size = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    node = environment.get("GROUP_RANK") or environment.get("SLURM_NODEID")
    return Member(
        rank=rank, size=size, local_rank=int(environment.get("LOCAL_RANK", "0")),
        local_size=local_size, node=int(node) if node else rank // local_size,
        host=socket.gethostname(),
    )  # fmt: skip


@dataclass
class Room:
    """Where the processes of a job meet.

    Attributes:
        me: This process.
        limit: Seconds that a process has for each part.
        store: What is said to others; None: there are no others.
        at: Name of the part that this process is at.
        deadline: When this process gives up, of time.monotonic; None: never.
        gave_up: Called in a thread of its own when the deadline has passed, with what each process
            that keeps the others waiting does, by rank; the process ends thereafter.
        told: Called with the name of each part that begins, for a person to see.
        members: All processes that are there, by rank.
    """

    me: Member
    limit: float
    store: dist.Store | None = None
    at: str = "start"
    deadline: float | None = None
    gave_up: Callable[[dict[int, str]], None] = lambda _: None
    told: Callable[[str], None] = lambda _: None
    members: dict[int, Member] = field(default_factory=dict)

    def begin(self, name: str, seconds: float | None = None) -> None:
        """Says which part begins, and gives it so much time, the limit if not said."""
        self.at = name
        self.deadline = time.monotonic() + (seconds or self.limit) + GRACE_SECONDS
        if self.me.rank:
            self.deadline += GRACE_SECONDS
        self.say("at", name)
        self.told(name)

    @property
    def late(self) -> bool:
        """Whether the deadline has passed."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def say(self, topic: str, value: Any) -> None:
        """Says something, plain JSON values, to all."""
        if self.store is not None:
            self.store.set(f"{topic}/{self.me.rank}", json.dumps(value))

    def heard(self, topic: str, rank: int) -> Any:
        """Returns what a process has said, None if nothing yet."""
        if self.store is None:
            return None
        key = f"{topic}/{rank}"
        return json.loads(self.store.get(key)) if self.store.check([key]) else None

    def await_rank_0(self, topic: str) -> Any:
        """Returns what rank 0 says; this process ends, as in `gave_up`, if that takes too long."""
        self.begin(f"waiting for rank 0 ({topic})", 2 * self.limit)
        while (value := self.heard(topic, 0)) is None:
            time.sleep(0.05)
        return value

    def gather(self, topic: str, value: Any) -> dict[int, Any]:
        """Says a value; on rank 0 returns those of all that answer within the limit, by rank."""
        self.say(topic, value)
        if self.me.rank:
            return {}
        found: dict[int, Any] = {0: value}
        end = time.monotonic() + self.limit
        self.begin(f"gathering ({topic})")
        while len(found) < self.me.size and time.monotonic() < end:
            for rank in set(range(self.me.size)) - found.keys():
                answer = self.heard(topic, rank)
                if answer is not None:
                    found[rank] = answer
            time.sleep(0.05)
        return found

    def named(self, rank: int) -> str:
        """Returns how a process is named to a person, though it may never have been there."""
        if rank in self.members:
            return str(self.members[rank])
        return f"rank {rank} (node {rank // self.me.local_size} by number)"

    def meet(self) -> None:
        """Learns who is who: on every process, all that are there within the limit."""
        if self.store is None:
            self.members = {0: self.me}
            return
        found = self.gather("hello", vars(self.me))
        if self.me.rank == 0:
            self.say("members", found)
        else:
            found = self.await_rank_0("members")
        self.members = {int(rank): Member(**fields) for rank, fields in found.items()}

    def excuses(
        self, ranks: set[int] | None = None, store: dist.Store | None = None
    ) -> dict[int, str]:
        """Returns what processes that keep the others waiting do, by rank.

        Args:
            ranks: Those waited for; None: all that are silent or behind this one.
            store: The store to ask; None: the room's.
        """
        there = Room(self.me, self.limit, store or self.store)
        asked = set(range(self.me.size)) if ranks is None else ranks
        first = {rank: there.heard("beat", rank) for rank in asked}
        time.sleep(SILENT_SECONDS)
        found = {}
        for rank in sorted(asked):
            beat, at = there.heard("beat", rank), there.heard("at", rank) or "start"
            if beat is None:
                found[rank] = "never joined"
            elif beat == first[rank] and rank != self.me.rank:
                found[rank] = f"is stopped or cut off, at: {at}"
            elif ranks is not None or at != self.at:
                found[rank] = f"lives, but is at: {at}"
        return found


@contextmanager
def room(me: Member, limit: float) -> Iterator[Room]:
    """Joins the processes of a job.

    Args:
        me: This process.
        limit: Seconds that a process has for each part.

    Raises:
        InputError: The store that all meet at cannot be reached; the message names the reason.
    """
    here = Room(me, limit)
    if me.size == 1:
        here.meet()
        yield here
        return
    here.store = connect(me, limit)
    here.say("beat", 0)
    watching, done = connect(me, limit), threading.Event()
    threading.Thread(target=_watch, args=(here, watching, done), daemon=True).start()
    threading.Thread(target=_last_resort, args=(here, done), daemon=True).start()
    try:
        here.meet()
        yield here
    finally:
        done.set()
        with contextlib.suppress(RuntimeError):  # the store may have ended with another process
            _leave(here)


def connect(me: Member, limit: float) -> dist.Store:
    """Returns a connection to the store that MASTER_ADDR and MASTER_PORT name.

    Raises:
        InputError: It cannot be reached within the limit.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agents = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    serves = me.rank == 0 and not agents
    if not serves:
        _reach(me, host, port, limit)
    try:
        store = dist.TCPStore(
            host, port, me.size, serves, timedelta(seconds=limit), wait_for_workers=False,
            multi_tenant=True,
        )  # fmt: skip
    except (RuntimeError, ValueError) as error:
        raise InputError(f"MASTER_ADDR={host} MASTER_PORT={port}: {str(error).splitlines()[0]}; "
                         "take another port, or end what uses it") from error  # fmt: skip
    return dist.PrefixStore("vidtrain_doctor", store)


def _reach(me: Member, host: str, port: int, limit: float) -> None:
    end, reason = time.monotonic() + limit, ""
    while time.monotonic() < end:
        try:
            socket.create_connection((host, port), timeout=min(limit, 10)).close()
            return
        except socket.gaierror as error:
            reason = f"the name cannot be resolved ({error.strerror}); put it into DNS or into a "
            reason += "hosts file, or give torchrun an address with --rdzv-endpoint or --local-addr"
        except ConnectionRefusedError:
            reason = "nobody listens there: did the first node start, with the same port?"
        except OSError as error:
            reason = f"{error}: a firewall, or not the address of a network that both are in"
        time.sleep(0.5)
    raise InputError(f"{me} does not reach MASTER_ADDR={host} MASTER_PORT={port}: {reason}")


def _leave(here: Room) -> None:
    here.say("bye", True)
    end = time.monotonic() + 5
    # The store may be rank 0's: it leaves last.
    while here.me.rank == 0 and time.monotonic() < end:
        if all(here.heard("bye", rank) for rank in here.members):
            return
        time.sleep(0.05)


def _last_resort(here: Room, done: threading.Event) -> None:
    """Ends this process where even the store does not answer, so that `_watch` hangs as well."""
    while not done.wait(BEAT_SECONDS):
        if here.deadline is not None and time.monotonic() > here.deadline + 3 * GRACE_SECONDS:
            _give_up(here, {0: "does not answer: the store at MASTER_ADDR hangs"})


def _watch(here: Room, store: dist.Store, done: threading.Event) -> None:
    """Says that this process lives, and ends it when it has waited too long."""
    count = 0
    while not done.wait(BEAT_SECONDS):
        try:
            store.set(f"beat/{here.me.rank}", str(count := count + 1))
            late = here.late
            waited_for = here.excuses(store=store) if late else {}
            late = late and here.late  # it may have gone on meanwhile
        except RuntimeError:  # the store is gone, and with it the job
            if done.is_set():
                return
            late, waited_for = True, {0: "is gone: the store at MASTER_ADDR has ended"}
        if late and not done.is_set():
            _give_up(here, waited_for)


def _give_up(here: Room, waited_for: dict[int, str]) -> None:
    told = "; ".join(f"{here.named(rank)} {what}" for rank, what in list(waited_for.items())[:8])
    print(
        f"vidtrain: {here.me} gave up at: {here.at}; {told or NOBODY}", file=sys.stderr, flush=True
    )
    here.gave_up(waited_for)
    os._exit(1)
