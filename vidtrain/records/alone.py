"""One training at a time in a run folder."""

import fcntl
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from vidtrain.errors import InputError
from vidtrain.records.runlog import warn, writing

LOCK = ".lock"
PATIENCE_SECONDS = 20  # of a restart: what ran before may be about to end


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps other trainings out of a run folder, which they would write to and tidy up.

    Where the file system has no locks nobody is kept out.

    Raises:
        InputError: One is there, and does not end.
    """
    path = folder / LOCK
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        file = _taken(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        file.close()


def _taken(path: Path) -> TextIO:
    """Returns the open lock file once it is this process's."""
    began, said = time.monotonic(), False
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            if time.monotonic() - began > PATIENCE_SECONDS:
                raise InputError(
                    f"another training ({holder}) is writing to {path.parent}; wait for it, end "
                    "it, or give another name="
                ) from None
            if not said:
                warn(f"{path.parent}: waiting for another training ({holder}) to end")
                said = True
            time.sleep(0.5)
            continue
        except OSError:
            return file  # a file system without locks
        if _is_at(path, file):
            file.truncate(0)
            file.write(f"{platform.node()} pid {os.getpid()}\n")
            file.flush()
            return file
        file.close()  # the one who had it has just removed it


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
