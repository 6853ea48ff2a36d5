"""The two kinds of error a user can cause; everything else is a bug and keeps its traceback."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input: a file, a folder, a list line, a checkpoint, a disk.

    The message is one or two sentences: what is wrong, the value, where it stands, the remedy.
    The command line prints it without a traceback and exits with 1.
    """


class NotHere(InputError):
    """A folder is not on this machine, or not for this person to write to."""


class UsageError(InputError):
    """A wrong command line or config value; the command line exits with 2."""


def did_you_mean(word: str, names: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Returns `did you mean a or b?` with the nearest of the names, or nothing if none is near.

    Args:
        word: What the user typed.
        names: What would have been valid.
        cutoff: How alike a name must be, from 0 (anything) to 1 (equal).
    """
    close = difflib.get_close_matches(word, list(names), n=3, cutoff=cutoff)
    return f"did you mean {' or '.join(close)}?" if close else ""


class Interrupted(Exception):
    """A signal asked the run to stop.

    Attributes:
        signum: Number of the signal.
        saved: Whether the same command goes on from there: the command line then exits with 75
            (EX_TEMPFAIL of sysexits.h), else with 128 + signum.
    """

    def __init__(self, signum: int, message: str, *, saved: bool = False) -> None:
        super().__init__(message)
        self.signum, self.saved = signum, saved

    @property
    def code(self) -> int:
        """Exit code."""
        return 75 if self.saved else 128 + self.signum
