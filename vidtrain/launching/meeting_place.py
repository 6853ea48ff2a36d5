"""Where the machines of a training meet: who holds it, and whether it still answers."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vidtrain.errors import InputError, UsageError

# A cut link of 40 s is survived: with the time between two calls, and of one, that makes 47 s.
SILENCE_SECONDS = 50
CALL_EVERY_SECONDS = 4
CALL_SECONDS = 3


def is_here(endpoint: str, node_rank: int | None) -> bool:
    """Returns whether this machine holds the meeting place.

    Left to itself, torchrun looks up its own host name for that, and fails where it has no address.

    Args:
        endpoint: HOST:PORT.
        node_rank: Of this machine, 0 holds the place; None: found by the address.

    Raises:
        UsageError: The endpoint is no address.
    """
    host, _ = _host_and_port(endpoint)
    if node_rank is not None:
        return node_rank == 0
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, _, _, address in found:
        with socket.socket(family, kind) as own:
            try:
                own.bind((address[0], 0))  # possible on the machine only whose address it is
            except OSError:
                continue
            return True
    return False


@contextmanager
def watched(endpoint: str, join_seconds: float) -> Iterator[None]:
    """Waits until somebody answers at the meeting place; within, ends all here if it falls silent.

    A machine without power does not say that it is gone: torchrun would wait until the kernel gives
    up its connection, some minutes later. A place that refuses is left to torchrun, which sees it.

    Args:
        endpoint: HOST:PORT.
        join_seconds: Longest time until somebody answers.

    Raises:
        InputError: Nobody does in time.
    """
    address, over = _await(endpoint, join_seconds), threading.Event()
    threading.Thread(target=_watch, args=(endpoint, address, over), daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(endpoint: str, address: tuple[str, int], over: threading.Event) -> None:
    heard = time.monotonic()
    while not over.wait(CALL_EVERY_SECONDS):
        try:
            _call(address, CALL_SECONDS)
        except ConnectionRefusedError:
            heard = time.monotonic()  # the machine is there
        except OSError as error:
            silent = time.monotonic() - heard
            if silent > SILENCE_SECONDS and not over.is_set():
                print(
                    f"vidtrain: the machine at endpoint={endpoint}, where all meet, has not "
                    f"answered for {silent:.0f} s ({error}); this one ends. The same command on "
                    "all goes on from the last checkpoint", file=sys.stderr, flush=True,
                )  # fmt: skip
                _kill_children()
                os._exit(1)
        else:
            heard = time.monotonic()


def _kill_children() -> None:
    """Kills the processes that this one has started; those that they have started see to it."""
    for thread in Path("/proc/self/task").glob("*/children"):
        for pid in thread.read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _await(endpoint: str, join_seconds: float) -> tuple[str, int]:
    """Waits until somebody answers at the meeting place, and returns its address and port.

    Raises:
        InputError: Nobody does in time.
    """
    began, said = time.monotonic(), 0.0
    while True:
        try:
            return _call(_host_and_port(endpoint), 5)
        except OSError as error:
            waited = time.monotonic() - began
            if waited > join_seconds:
                raise InputError(
                    f"nobody answers at endpoint={endpoint} after {waited:.0f} s ({error}); is "
                    "vidtrain launch running on that machine, is its port open, and does this "
                    "machine know its name?"
                ) from error
            if waited >= said:
                print(f"vidtrain: waiting for {endpoint} ({waited:.0f} s): {error}",
                      file=sys.stderr, flush=True)  # fmt: skip
                said = waited + 30
        time.sleep(1)


def _call(place: tuple[str, int], seconds: float) -> tuple[str, int]:
    """Returns the address and port that answer.

    Raises:
        OSError: None does.
    """
    with socket.create_connection(place, timeout=seconds) as call:
        host, port, *_ = call.getpeername()
        return host, port


def _host_and_port(endpoint: str) -> tuple[str, int]:
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"endpoint={endpoint} must be HOST:PORT, such as node1:29400")
    return host.strip("[]"), int(port)
