"""When one process does not come on, the others say which, where it stands, and end.

Each process leaves a note every few seconds: how many occasions it has passed that all processes
pass in the same order, and where it stands. One that has not moved for the longest time allowed
reads the notes of all. What is behind the others, or stands where nobody waits, or leaves no more
notes, is to blame. Without this a process that hangs ends the others through a time limit deep in
gloo or NCCL, which knows neither its name nor its place.
"""

import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist

from vidtrain import distributed
from vidtrain.distributed import World

MOST_BETWEEN_NOTES = 5.0  # seconds
SHOWN = 8  # processes named in a message
_LEFT = "left"  # in place of its number, the last note of a process that ends for this
T = TypeVar("T")
FRAMES = 12  # of the stack of a process that stands still


@dataclass(frozen=True)
class Note:
    """What a process last said of itself.

    Attributes:
        rank: Its number.
        host: Its machine and process number there.
        count: Occasions passed.
        waiting: Whether it may wait for others.
        where: Where it stands.
        still: Seconds since it came there.
        silent: Whether it has stopped leaving notes.
    """

    rank: int
    host: str
    count: int
    waiting: bool
    where: str
    still: float
    silent: bool = False


@contextmanager
def watching(world: World, *, timeout_seconds: float) -> Iterator[None]:
    """Watches over the processes while the block runs.

    Args:
        world: This process among all; it is ended with exit code 1 when one stands still.
        timeout_seconds: Longest time that a process may stand at one place.
    """
    pause = min(MOST_BETWEEN_NOTES, timeout_seconds / 5)
    store = distributed.store("watchdog", world, timeout_seconds=2 * pause)
    if store is None:
        yield
        return
    ended = threading.Event()
    main_thread = threading.get_ident()

    def watch() -> None:
        numbers = itertools.count(1)

        def leave() -> bool:
            return _leave(store, world, str(next(numbers)))

        _in_time(leave, 2 * pause)
        while not ended.wait(pause):
            told = _in_time(leave, 2 * pause)
            if _still(world) > timeout_seconds:
                notes = None
                if told:
                    notes = _in_time(lambda: _notes(store, world, pause, leave), 5 * pause)
                if _still(world) > timeout_seconds and not ended.is_set():  # it still does
                    _in_time(lambda: _leave(store, world, _LEFT), pause)
                    _end(world, notes or [], main_thread, pause)

    thread = threading.Thread(target=watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def blamed(notes: list[Note]) -> list[Note]:
    """Returns the processes that the others wait for; [] if nothing tells them apart."""
    silent = [note for note in notes if note.silent]
    if silent:
        return silent
    least = min(note.count for note in notes)
    behind = [note for note in notes if note.count == least]
    busy = [note for note in behind if not note.waiting]
    if busy:
        return busy
    return behind if len(behind) < len(notes) else []


def message(notes: list[Note], rank: int, still: float) -> str:
    """Returns what a process says of the others before it ends.

    Args:
        notes: Of all processes; [] if the place where they are kept does not answer.
        rank: Of the one that speaks.
        still: Seconds that it has not moved for.
    """
    if not notes:
        return (
            f"nothing has moved for {still:.0f} s (parallel.timeout_seconds), and the store that "
            "rank 0 holds does not answer: it has ended, or its node or the network to it is gone"
        )
    guilty = blamed(notes)
    if not guilty:
        return (
            f"nothing has moved for {still:.0f} s: all processes wait at the same place "
            f"({notes[rank].where}), so the network or a GPU hangs (parallel.timeout_seconds)"
        )
    told = "; ".join(
        f"rank {note.rank} ({note.host}) "
        + (f"has not been heard of since {note.where}: stopped, or its machine is gone"
           if note.silent else f"has stood at {note.where} for {note.still:.0f} s")
        for note in guilty[:SHOWN]
    ) + f"; and {len(guilty) - SHOWN} more" * (len(guilty) > SHOWN)  # fmt: skip
    return f"nothing has moved for {still:.0f} s (parallel.timeout_seconds): {told}"


def _still(world: World) -> float:
    return time.monotonic() - world.place.since


def _in_time(call: Callable[[], T], seconds: float) -> T | None:
    """Returns what a call returns, or None if it takes too long.

    A call to a store beyond a cut network comes back when TCP gives up, after a quarter of an hour.
    """
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(call()), daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def _leave(store: dist.Store, world: World, number: str) -> bool:
    """Leaves a note; returns whether the store took it."""
    place, host = world.place, f"{os.uname().nodename} pid {os.getpid()}"
    fields = (number, host, place.count, int(place.waiting), place.where, f"{_still(world):.1f}")
    try:
        store.set(str(world.rank), "\t".join(map(str, fields)))
    except RuntimeError:  # the store is gone
        return False
    return True


def _notes(store: dist.Store, world: World, pause: float, leave: Callable[[], bool]) -> list[Note]:
    """Reads the notes of all twice, to see who still leaves some; and goes on leaving some."""
    try:
        first = _read(store, world)
        for _ in range(5):
            time.sleep(pause / 2)
            leave()
        second = _read(store, world)
    except RuntimeError:
        return []
    return [
        Note(
            rank=rank, host=now[1], count=int(now[2]), waiting=bool(int(now[3])), where=now[4],
            still=float(now[5]),
            silent=rank != world.rank and now[0] == then[0] and now[0] != _LEFT,
        )
        for rank, (then, now) in enumerate(zip(first, second, strict=True))
    ]  # fmt: skip


def _read(store: dist.Store, world: World) -> list[list[str]]:
    missing = ["0", "unknown machine", "0", "0", "its start", "0"]
    return [
        store.get(str(rank)).decode().split("\t") if store.check([str(rank)]) else missing
        for rank in range(world.size)
    ]


def _end(world: World, notes: list[Note], main_thread: int, pause: float) -> None:
    said = message(notes, world.rank, _still(world))
    mine = not notes or world.rank in {note.rank for note in blamed(notes)}
    frame = sys._current_frames().get(main_thread)
    if mine and frame is not None:
        said += "\n" + "".join(traceback.format_stack(frame)[-FRAMES:]).rstrip()
    # The line's end in the same write: the others speak at the same time.
    print(f"vidtrain: rank {world.rank}: {said}\n", end="", file=sys.stderr, flush=True)
    if world.is_main:
        time.sleep(4 * pause)  # the others read in the store that this process holds
    os._exit(1)
