"""Ctrl-C, SIGTERM and SIGUSR1 stop a run between two steps, with its state saved."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

LAUNCHED = {"TORCHELASTIC_RUN_ID", "VIDTRAIN_LAUNCHED"}  # set by what ends with its processes
# SIGUSR1 is what Slurm is asked to send ahead of a time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@dataclass
class Stop:
    """Whether a stop was asked for.

    Attributes:
        signum: Number of the signal, or 0.
        launcher: Number of the torchrun, or the like, that started this process; None: a person.
    """

    signum: int = 0
    launcher: int | None = None

    @property
    def asked(self) -> bool:
        """Whether a signal came, or what would pass one on is gone."""
        return bool(self.signum) or self.launcher not in (None, os.getppid())


@contextmanager
def deferred() -> Iterator[Stop]:
    """Notes the signals instead of dying; a second Ctrl-C interrupts at once."""
    stop = Stop(launcher=os.getppid() if LAUNCHED & os.environ.keys() else None)
    if threading.current_thread() is not threading.main_thread():
        yield stop  # a launcher's thread: signals are not ours to handle
        return

    def note(signum: int, frame: FrameType | None) -> None:
        if stop.signum == signal.SIGINT == signum:
            raise KeyboardInterrupt
        stop.signum = signum

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
