"""Processes that are measured, from outside: starting them, giving orders, reading CPU time."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vidtrain.errors import InputError, UsageError

POLL_SECONDS = 0.01
CALM_POLLS = 5
# CPU seconds between two polls that idle threads with a timer may take.
STILL = 0.0005
PROC = Path("/proc")


def check_platform() -> None:
    """Refuses systems whose processes cannot be looked into.

    Raises:
        UsageError: There is no /proc.
    """
    if not (PROC / "self" / "stat").exists():
        raise UsageError("vidtrain benchmark reads CPU times from /proc, which Linux alone has.")


def _stat(path: Path) -> list[str] | None:
    """Fields of a /proc stat file from the third, the state, on; None: it is gone."""
    try:
        return path.read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None


def family(pid: int) -> list[int]:
    """A process and everything below it."""
    parents: dict[int, list[int]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(entry / "stat")):
            parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for one in found:
        found += parents.get(one, [])
    return found


def cpu_seconds(pids: Sequence[int]) -> dict[int, float]:
    """CPU time of each process that is there, user and system, all its threads together."""
    found = {}
    for pid in pids:
        # The number of another process's CPU clock, as clock_getcpuclockid makes it. /proc counts
        # in hundredths of a second, too coarse for opening a file.
        try:
            found[pid] = time.clock_gettime((~pid << 3) | 2)
        except OSError:
            continue
    return found


def at_rest(pids: Sequence[int]) -> bool:
    """Whether no thread of these processes runs, waits for a core or for a disk."""
    for pid in pids:
        for path in (PROC / str(pid) / "task").glob("*/stat"):
            fields = _stat(path)
            if fields and fields[0] in "RD":
                return False
    return True


class Host:
    """A process that runs one program's input path on orders; see `benchmarking.host`.

    Attributes:
        program: Its name.
    """

    def __init__(self, program: str, command: Sequence[str], *, timeout: float = 600.0) -> None:
        """Starts the process.

        Args:
            program: Name of the program, for messages.
            command: What to start.
            timeout: Longest wait for it to come to rest, seconds.
        """
        self.program, self.timeout = program, timeout
        self._at_rest: dict[int, float] | None = None  # times, when nothing was done since
        self.errors = tempfile.TemporaryFile(  # noqa: SIM115  closed in __exit__
            "w+", encoding="utf-8", errors="replace"
        )
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        if program == "mmaction2":  # an environment of its own
            environment.pop("PYTHONPATH", None)
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
                text=True, env=environment, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise InputError(
                f"cannot start {command[0]} for {program}: {error.strerror}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        below = family(self.process.pid)
        if self.process.stdin:
            with suppress(BrokenPipeError):  # it has ended before it could read all
                self.process.stdin.close()
        try:
            self.process.wait(5 if kind is None else 0.1)
        except subprocess.TimeoutExpired:
            for pid in below:
                try:
                    os.kill(pid, 9)
                except ProcessLookupError:
                    continue
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()
        self.errors.close()

    def order(self, **order: Any) -> dict[str, Any]:
        """Gives an order and returns the answer.

        Raises:
            InputError: The program failed; the message has its last lines.
        """
        assert self.process.stdin and self.process.stdout
        line, self._at_rest = "", None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            pass
        reply = json.loads(line) if line else {"error": f"ended ({self._last_words()})"}
        if "error" in reply:
            remedy = "; scripts/mmaction2_env.sh makes its environment"
            raise InputError(
                f"{self.program} failed to {next(iter(order))}: {reply['error']}"
                f"{remedy * (self.program == 'mmaction2')}"
            )
        return reply

    def run(self, key: str, batches: int) -> tuple[float, list[dict[str, Any]]]:
        """Takes batches from an opened stream.

        Loader processes work ahead, so time is read when all is at rest, before and after: what
        was taken has then been made anew, no more and no less.

        Returns:
            CPU seconds, and what the batches were.
        """
        before = self._at_rest or self._rested()
        reply = self.order(run=key, batches=batches)
        after = self._at_rest = self._rested()
        seconds = sum(time - before.get(pid, 0.0) for pid, time in after.items())
        return seconds, reply["batches"]

    def _rested(self) -> dict[int, float]:
        """CPU seconds of the process and all below it, once none of them does anything.

        Raises:
            InputError: They never rest.
        """
        times: dict[int, float] = {}
        calm, last, end = 0, 0.0, time.monotonic() + self.timeout
        while calm < CALM_POLLS:
            pids = family(self.process.pid)
            times = cpu_seconds(pids)
            now = sum(times.values())
            calm = calm + 1 if now - last < STILL and at_rest(pids) else 0
            last = now
            if time.monotonic() > end:
                raise InputError(f"{self.program} did not come to rest in {self.timeout:g} s.")
            time.sleep(POLL_SECONDS)
        return times

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = [line for line in self.errors.read().splitlines() if line.strip()]
        return lines[-1] if lines else "without a word"
