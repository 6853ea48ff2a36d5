"""One process for each job, so that a job that hangs or dies takes nothing else with it."""

import math
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Collection, Generator, Iterable
from multiprocessing import (
    connection,
    forkserver,
    parent_process,
    popen_forkserver,
    queues,
    resource_tracker,
)
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, TypeVar
from weakref import WeakSet

from vidtrain.interrupt import Stop

J = TypeVar("J")
TICK_SECONDS = 0.3


class _Popen(popen_forkserver.Popen):
    """A process that is killed where it would be sent SIGTERM, which it ignores."""

    def terminate(self) -> None:
        """Kills the process."""
        self.kill()


class _Process(ForkServerProcess):
    """A process that ends as soon as the one that started it is gone.

    Each of them holds the pipe by whose end the server would learn of that: it would never end.
    """

    @staticmethod
    def _Popen(process_obj: Any) -> Any:
        return _Popen(process_obj)

    def run(self) -> None:
        """Calls the target."""
        threading.Thread(target=_end_with_parent, daemon=True).start()
        super().run()


class _Queue(queues.Queue):
    """A queue whose reader soon learns that one of those who write to it has died."""

    writers: Collection["_Process"] = ()

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Returns the next item.

        Raises:
            queue.Empty: None came in time, or a writer was killed or failed.
        """
        end = time.monotonic() + (math.inf if timeout is None else timeout)
        while True:
            rest = max(0.0, end - time.monotonic()) if block else 0.0
            try:
                return super().get(block, min(rest, TICK_SECONDS))
            except queue.Empty:
                if rest <= TICK_SECONDS or any(process.exitcode for process in self.writers):
                    raise


class _Context(ForkServerContext):
    def __init__(self) -> None:
        # No more than that: a process that is not forgotten keeps its pipes open.
        self.started: WeakSet[_Process] = WeakSet()

    def Process(self, *args: Any, **settings: Any) -> _Process:  # type: ignore[override]
        """Makes a process."""
        made = _Process(*args, **settings)
        self.started.add(made)
        return made

    def Queue(self, maxsize: int = 0) -> _Queue:  # type: ignore[override]
        """Makes a queue that all processes started from here may write to."""
        made = _Queue(maxsize, ctx=self)
        made.writers = self.started
        return made


def clean_server(module: str) -> ForkServerContext:
    """Returns a context that forks processes from a clean server, which no signal to us reaches.

    A fork of this process would copy its threads' locks.

    Args:
        module: What the server imports once, for all of them.
    """
    context = _Context()
    context.set_forkserver_preload(["vidtrain.data.own_group", module])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        resource_tracker.ensure_running()  # takes SIGINT and SIGTERM out of the mask
        # A terminal sends Ctrl-C to all: one that is importing would end with a traceback.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def in_processes(
    function: Callable[[J], Any], jobs: Iterable[J], *, workers: int, stop: Stop,
    timeout_seconds: float = math.inf,
) -> Generator[tuple[J, Any], None, None]:  # fmt: skip
    """Yields each job with what the function returned, in the order in which they end.

    A job whose process died or took too long comes with a reason (str). When a stop is asked for,
    or the generator is closed, what still runs is killed.

    Args:
        function: Importable by name, as are its arguments; should not raise.
        jobs: What to call it with.
        workers: Processes at a time.
        stop: Looked at several times a second.
        timeout_seconds: Of one job.
    """
    context = clean_server(function.__module__)
    rest = iter(jobs)
    running: dict[connection.Connection, tuple[ForkServerProcess, J, float]] = {}
    try:
        while not stop.signum:
            while len(running) < workers and (job := next(rest, None)) is not None:
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_run, args=(function, job, theirs))
                process.start()
                theirs.close()
                running[ours] = process, job, time.monotonic() + timeout_seconds
            if not running:
                return
            ready = connection.wait(list(running), TICK_SECONDS)
            late = [c for c, (_, _, end) in running.items() if end < time.monotonic()]
            for answer in dict.fromkeys([*ready, *late]):
                if stop.signum:
                    return
                assert isinstance(answer, connection.Connection)
                process, job, _ = running.pop(answer)
                yield job, _result(process, answer, answer in ready, timeout_seconds)
    finally:
        for process, _, _ in running.values():
            process.kill()
        for process, _, _ in running.values():
            process.join()


def _result(
    process: ForkServerProcess, answer: connection.Connection, ready: bool, seconds: float
) -> Any:
    try:
        if ready:
            return answer.recv()
        process.kill()
        return f"took longer than timeout_seconds={seconds:g}"
    except (EOFError, OSError):
        process.join()
        code = process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return f"the process that read it died ({how})"
    finally:
        answer.close()
        process.join()


def _run(function: Callable[[J], Any], job: J, answer: connection.Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's affair
    answer.send(function(job))


def _end_with_parent() -> None:
    """Nobody would take what an orphan makes."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)
