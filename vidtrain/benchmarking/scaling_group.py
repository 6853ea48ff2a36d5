"""Processes of one training, started by torchrun, that take orders and answer them.

Every process has a connection of its own to the one that gives the orders and sleeps until the
next one comes; so groups of several sizes can be there at once and take turns.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any

from vidtrain.errors import InputError

LAST_LINES = 12
# Time that processes have to end by themselves, and then after SIGTERM, seconds.
PATIENCE = 10


@dataclass(frozen=True)
class Group:
    """Processes of one training.

    Attributes:
        connections: To each process, by rank.
        launcher: The torchrun that started them.
        errors: What they and it said.
    """

    connections: list[Connection]
    launcher: subprocess.Popen[bytes]
    errors: IO[str]

    @property
    def size(self) -> int:
        """Number of processes."""
        return len(self.connections)

    def order(self, value: Any) -> list[Any]:
        """Sends an order to all processes and returns their answers, by rank.

        Raises:
            InputError: A process has ended, or refuses; the message has what it said.
        """
        answers: dict[Connection, Any] = {}
        try:
            for connection in self.connections:
                connection.send(value)
            while len(answers) < self.size:
                left = [one for one in self.connections if one not in answers]
                for one in wait(left, timeout=1.0):
                    assert isinstance(one, Connection)
                    answers[one] = _accepted(one.recv())
        except (EOFError, OSError):
            raise InputError(_last_words(self.size, self.launcher, self.errors)) from None
        return [answers[connection] for connection in self.connections]


@contextmanager
def started(size: int, module: str) -> Iterator[Group]:
    """Starts processes and ends them afterwards.

    Args:
        size: How many.
        module: What they run with `python -m`, the address as its argument; it calls `serve`.

    Raises:
        InputError: They do not come up.
    """
    with ExitStack() as stack:
        errors = stack.enter_context(
            tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        )
        with (
            tempfile.TemporaryDirectory(prefix="vidtrain-") as folder,
            socket.socket(socket.AF_UNIX) as door,
        ):
            address = str(Path(folder) / "orders")
            door.bind(address)
            door.listen(size)
            door.settimeout(1.0)
            command = (sys.executable, "-m", "torch.distributed.run", "--standalone",
                       f"--nproc-per-node={size}", "-m", module, address)  # fmt: skip
            launcher = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=errors, stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes to the giver of orders, which ends them
            )  # fmt: skip
            stack.callback(_end, launcher)
            by_rank: dict[int, Connection] = {}
            stack.callback(_close, by_rank)
            while len(by_rank) < size:
                try:
                    one = Connection(door.accept()[0].detach())
                    by_rank[one.recv()] = one
                except (TimeoutError, EOFError):
                    if launcher.poll() is not None:
                        raise InputError(_last_words(size, launcher, errors)) from None
        yield Group([by_rank[rank] for rank in sorted(by_rank)], launcher, errors)


def serve(address: str, answer: Callable[[Any], Any]) -> None:
    """Answers orders until there are no more; to be called by each process.

    An InputError of `answer` is sent to the giver of orders, who raises it.

    Args:
        address: As it was given on the command line.
        answer: Returns what an order asks for, something that can be pickled.
    """
    door = socket.socket(socket.AF_UNIX)
    door.connect(address)
    with Connection(door.detach()) as connection:
        connection.send(int(os.environ.get("RANK", "0")))
        while True:
            try:
                order = connection.recv()
            except (EOFError, ConnectionError):
                return
            try:
                reply = answer(order)
            except InputError as error:
                reply = error
            try:
                connection.send(reply)
            except ConnectionError:  # the giver of orders is gone
                return


def pin(rank: int, size: int, threads: int) -> bool:
    """Gives this process cores of its own, if there are enough for all.

    Args:
        rank: Number of this process on the machine.
        size: Processes on the machine.
        threads: Cores for each.

    Returns:
        Whether there are enough.
    """
    there = cores()
    if size * threads > len(there):
        return False
    os.sched_setaffinity(0, there[rank * threads : (rank + 1) * threads])
    return True


def cores() -> list[int]:
    """Returns the numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def _accepted(reply: Any) -> Any:
    if isinstance(reply, InputError):
        raise reply
    return reply


def _close(connections: dict[int, Connection]) -> None:
    for connection in connections.values():
        connection.close()


def _end(launcher: subprocess.Popen[bytes]) -> None:
    for ask in (lambda: None, launcher.terminate, launcher.kill):
        ask()
        try:
            launcher.wait(PATIENCE)
            return
        except subprocess.TimeoutExpired:
            continue


def _last_words(size: int, launcher: subprocess.Popen[bytes], errors: IO[str]) -> str:
    end = time.monotonic() + PATIENCE
    while launcher.poll() is None and time.monotonic() < end:
        time.sleep(0.1)  # torchrun says what became of the others
    errors.seek(0)
    lines = [line.rstrip() for line in errors if line.strip()]
    said = "\n  ".join(_cause(lines))
    return f"a group of {size} processes ended:\n  {said or 'without a word'}"


def _cause(lines: Sequence[str]) -> Sequence[str]:
    """Returns the first traceback of a process, or the last lines."""
    for number, line in enumerate(lines):
        if "Traceback (most recent call last)" in line:
            tail = lines[number : number + 60]
            ends = (i for i, more in enumerate(tail) if i and not more.startswith((" ", "[")))
            end = next(ends, LAST_LINES)
            return tail[max(0, end + 1 - LAST_LINES) : end + 1]
    return lines[-LAST_LINES:]
