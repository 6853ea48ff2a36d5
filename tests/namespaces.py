"""Two nodes on one machine: network namespaces joined by a cable, each with a host name of its own.

A node has its own network, host name, process table and shared memory, so that it can be unplugged
and can die whole, as a machine does. It sees the same files as the other, as nodes with a shared
file system do. Needs root and iproute2.
"""

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

PREFIX = "vidtrain"  # of the names of namespaces
PORT = 29400
# --kill-child and --pdeathsig: nothing outlives the tests, however they end.
ENTER = "setpriv --pdeathsig KILL ip netns exec {name} unshare --uts --pid --fork --kill-child \
--mount-proc sh -c"
_numbers = itertools.count()


@dataclass
class Node:
    """A node, and what was started last on it.

    Attributes:
        name: Of its network namespace, and its host name.
        address: Its IPv4 address on the cable.
        device: Its end of the cable.
        folder: Where processes start, and what they say is kept; the same for both nodes.
        process: The outermost process of what was started last.
        starts: Times that something was started.
    """

    name: str
    address: str
    device: str
    folder: Path
    process: subprocess.Popen | None = None
    starts: int = 0
    hidden: list[Path] = field(default_factory=list)

    def start(self, command: list[str], **environment: str) -> None:
        """Starts a command, which does not outlive this process.

        Args:
            command: Program and arguments.
            environment: Variables besides those of this process.
        """
        self.starts += 1
        setup = [f"hostname {self.name}", "mount -t tmpfs tmpfs /dev/shm",
                 *(f"mount -t tmpfs tmpfs {shlex.quote(str(path))}" for path in self.hidden),
                 f"exec {shlex.join(command)}"]  # fmt: skip
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*ENTER.format(name=self.name).split(), " && ".join(setup)],
                cwd=self.folder, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
            )  # fmt: skip

    @property
    def log(self) -> Path:
        """The file that holds what the last command said."""
        return self.folder / f"{self.name[-1]}{self.starts}.txt"

    @property
    def said(self) -> str:
        """What the last command said so far."""
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float) -> int:
        """Returns the exit code of the last command.

        Raises:
            AssertionError: It has not ended after so many seconds.
        """
        assert self.process is not None
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} goes on after {seconds} s: {self.said}") from None

    def workers(self) -> list[psutil.Process]:
        """Returns the processes that train, in the order of their ranks."""
        assert self.process is not None
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                of_torchrun = "LOCAL_RANK" not in psutil.Process(child.ppid()).environ()
                if of_torchrun and "LOCAL_RANK" in child.environ():
                    found.append(child)
        return sorted(found, key=lambda worker: int(worker.environ()["LOCAL_RANK"]))

    def die(self) -> None:
        """Kills everything that runs on the node at once."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def link(self, state: str) -> None:
        """Pulls this node's end of the cable (down), or plugs it in (up)."""
        ip("-n", self.name, "link", "set", self.device, state)


def ip(*words: str) -> None:
    """Runs iproute2's ip."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[Node, Node]]:
    """Makes two nodes that reach each other, and removes them with all that runs there.

    Args:
        folder: Where their processes start.
    """
    _remove_left_over()
    stem = f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
    nodes = tuple(
        Node(f"{stem}{letter}", f"10.77.0.{number}", f"cable-{letter}", folder)
        for number, letter in ((1, "a"), (2, "b"))
    )
    a, b = nodes
    try:
        for node in nodes:
            ip("netns", "add", node.name)
        ip("link", "add", a.device, "netns", a.name, "type", "veth",
           "peer", "name", b.device, "netns", b.name)  # fmt: skip
        for node in nodes:
            ip("-n", node.name, "addr", "add", f"{node.address}/24", "dev", node.device)
            ip("-n", node.name, "link", "set", "lo", "up")
            node.link("up")
        yield a, b
    finally:
        for node in nodes:
            node.die()
            with contextlib.suppress(OSError):
                ip("netns", "del", node.name)


def why_not() -> str | None:
    """Returns why this machine cannot make nodes, or None."""
    missing = [name for name in ("ip", "unshare", "setpriv") if shutil.which(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    name = f"{PREFIX}-{os.getpid()}-try"
    try:
        ip("netns", "add", name)
    except OSError as error:
        return f"no network namespaces: {error}"
    words = [*ENTER.format(name=name).split(), "mount -t tmpfs tmpfs /dev/shm"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    ip("netns", "del", name)
    return f"no namespaces of processes: {done.stderr.strip()}" if done.returncode else None


def launch(
    nodes: tuple[Node, Node], node: Node, command: list[str], *, number: str = "2",
    restarts: int = 3,
) -> None:  # fmt: skip
    """Starts one node's part of a training of two processes per node.

    Args:
        nodes: Both; the first holds the rendezvous.
        node: One of them.
        command: The stage and its overrides.
        number: Number of nodes, or MIN:MAX.
        restarts: Times that processes may be started again.
    """
    node.start(
        [sys.executable, "-m", "vidtrain", "launch", "torchrun", f"nodes={number}",
         "processes_per_node=2", f"max_restarts={restarts}", "grace_seconds=20",
         "join_seconds=120", f"endpoint={nodes[0].address}:{PORT}",
         f"local_addr={node.address}", f"interface={node.device}", "--", *command],
    )  # fmt: skip


def until(happened: Callable[[], bool], what: str, *, seconds: float = 600) -> float:
    """Waits until something has happened, and returns how many seconds that took.

    Raises:
        AssertionError: It has not happened after so many seconds.
    """
    began = time.monotonic()
    while not happened():
        if time.monotonic() - began > seconds:
            raise AssertionError(f"waited {seconds} s in vain for: {what}")
        time.sleep(0.05)
    return time.monotonic() - began


def _remove_left_over() -> None:
    """Removes namespaces of tests that were killed."""
    for path in Path("/run/netns").glob(f"{PREFIX}-*"):
        if not psutil.pid_exists(int(path.name.split("-")[1])):
            with contextlib.suppress(OSError):
                ip("netns", "del", path.name)
