"""The two kinds of error a user can cause; everything else is a bug and keeps its traceback."""


class InputError(ValueError):
    """Bad input: a file, a folder, a list line, a checkpoint, a disk.

    The message is one or two sentences: what is wrong, the value, where it stands, the remedy.
    The command line prints it without a traceback and exits with 1.
    """


class UsageError(InputError):
    """A wrong command line or config value; the command line exits with 2."""


class Interrupted(Exception):
    """A signal asked the run to stop; its state is saved. The command line exits with 128 + signum.

    Attributes:
        signum: Number of the signal.
    """

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.signum = signum
