"""Processes that check files, and that are killed and replaced when one hangs or dies."""

import contextlib
import os
import resource
import signal
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from vidtrain.data.checking import check_file
from vidtrain.data.killable import clean_server
from vidtrain.data.quarantine import stamp

TICK_SECONDS = 0.2  # how soon a stop that was asked for is seen
START_SECONDS = 120.0  # a new process has so long to import what it needs

Job = tuple[str, str | None]  # path, and what its SHA-256 sum should be


@dataclass
class Child:
    """A process that checks one file after another.

    Attributes:
        process: The process.
        pipe: Jobs go in, rows come out; the first thing out says that it is ready.
        ready: Whether it has started.
        job: What it is at, or None.
        since: When it was given that, or was started.
    """

    process: BaseProcess
    pipe: Connection
    ready: bool
    job: Job | None
    since: float

    def end(self) -> None:
        """Kills the process, stopped or not, and waits until it is gone."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def check_files(
    jobs: Sequence[Job], *, workers: int, timeout: float, memory_bytes: int
) -> Generator[dict[str, Any] | None, None, None]:
    """Checks files in killable processes; closing the generator kills them.

    Args:
        jobs: Paths with the SHA-256 sums that they should have, where known.
        workers: Processes.
        timeout: Seconds that one file may take.
        memory_bytes: Memory that a process may take beyond what it starts with.

    Yields:
        What `check_file` returns, in the order of completion; a file that hangs or ends its
        process has path, status, reason, detail, seconds, size, mtime_ns and sha256 (None) alone.
        None every now and then while nothing is done.

    Raises:
        RuntimeError: New processes do not come up.
    """
    waiting = deque(jobs)
    children: list[Child] = []
    context = clean_server(__name__)
    try:
        while waiting or any(child.job for child in children):
            while len(children) < min(workers, len(waiting) + sum(bool(c.job) for c in children)):
                children.append(_start(context, memory_bytes))
            for child in children:
                if child.ready and child.job is None and waiting:
                    _give(child, waiting)
            rows = _collect(children, timeout)
            yield from rows
            if not rows:
                yield None
    finally:
        for child in children:
            child.end()


def _start(context: Any, memory_bytes: int) -> Child:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, memory_bytes), daemon=True)
    process.start()
    theirs.close()
    return Child(process, ours, ready=False, job=None, since=time.monotonic())


def _give(child: Child, waiting: deque[Job]) -> None:
    child.since = time.monotonic()
    with contextlib.suppress(BrokenPipeError):  # it died while it rested: seen when collecting
        child.pipe.send(waiting[0])
        child.job = waiting.popleft()


def _collect(children: list[Child], timeout: float) -> list[dict[str, Any]]:
    """Waits a little for rows; ends and forgets the processes that hang or are gone."""
    rows: list[dict[str, Any]] = []
    came = wait([child.pipe for child in children], timeout=TICK_SECONDS)
    now = time.monotonic()
    for child in list(children):
        gone = False
        if child.pipe in came:
            try:
                row = child.pipe.recv()
                if row is not None:
                    child.job = None
                    rows.append(row)
                    # Its memory may be in pieces now; a new one is cheap.
                    gone = row["reason"] == "memory"
                child.ready, child.since = True, now
            except (EOFError, OSError):
                gone = True
                child.process.join()
                if child.job is None and not child.ready:
                    raise RuntimeError("a process that checks files ended as it started") from None
                if child.job is not None:
                    rows.append(_lost(child, "crash", _how_it_ended(child.process.exitcode)))
        elif child.job is not None and now - child.since > timeout:
            gone = True
            rows.append(_lost(child, "hang", f"not done after timeout_seconds={timeout:g}; killed"))
        elif not child.ready and now - child.since > START_SECONDS:
            raise RuntimeError(f"a process that checks files did not start in {START_SECONDS:g} s")
        if gone:
            child.end()
            children.remove(child)
    return rows


def _lost(child: Child, reason: str, detail: str) -> dict[str, Any]:
    """The row of a file that gave none."""
    assert child.job is not None
    path, _ = child.job
    size, mtime_ns = stamp(path) or (None, None)
    return {
        "path": path, "status": "bad", "reason": reason, "detail": detail, "size": size,
        "mtime_ns": mtime_ns, "sha256": None,
        "seconds": round(time.monotonic() - child.since, 3),
    }  # fmt: skip


def _how_it_ended(code: int | None) -> str:
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
            why = " (by hand, or by the system for want of memory)" if name == "SIGKILL" else ""
            return f"the process that decoded it was ended by {name}{why}"
    return f"the process that decoded it ended with exit code {code}"


def _serve(pipe: Connection, memory_bytes: int) -> None:
    """Checks files until the other end is closed; runs in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    with open("/proc/self/statm", encoding="ascii") as file:
        taken = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    limit = taken + memory_bytes
    resource.setrlimit(
        resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard)
    )
    with contextlib.suppress(EOFError, BrokenPipeError):  # the main process is gone
        pipe.send(None)
        while True:
            pipe.send(check_file(*pipe.recv()))
