"""Ctrl-C, SIGTERM and SIGUSR1 stop a run between two steps, with its state saved."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

LAUNCHED = {"TORCHELASTIC_RUN_ID", "VIDTRAIN_LAUNCHED"}  # set by what ends with its processes
RESUMED = {"train", "check", "index", "prepare"}  # stages whose same command goes on
# SIGUSR1 is what Slurm is asked to send ahead of a time limit.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def leave_at_once(code: int) -> None:
    """Lets a signal end this process while it starts: there is nothing to save yet.

    An exception in the middle of an import may be taken for the import's own failure.

    Args:
        code: Exit code after SIGTERM and SIGUSR1; 0: 128 and the signal's number.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        ended = 130 if signum == signal.SIGINT else code or 128 + signum
        os.write(2, b"vidtrain: interrupted as it started; nothing was begun\n")
        os._exit(ended)

    for number in SIGNALS:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, leave)


def started() -> None:
    """Takes `leave_at_once` back."""
    for number in SIGNALS:
        if getattr(signal.getsignal(number), "__name__", "") == "leave":
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, usual)


@dataclass
class Stop:
    """Whether a stop was asked for.

    Attributes:
        signum: Number of the signal, or 0.
        launcher: Number of the torchrun, or the like, that started this process; None: a person.
        tell: Tells other processes of it, and returns whether one of them was asked.
    """

    signum: int = 0
    launcher: int | None = None
    tell: Callable[[bool], bool] = bool

    @property
    def asked(self) -> bool:
        """Whether a signal came, or what would pass one on is gone."""
        return bool(self.signum) or self.launcher not in (None, os.getppid())

    @property
    def asked_anywhere(self) -> bool:
        """Whether this or, as far as is known, another process of the training was asked."""
        return self.tell(self.asked)


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
