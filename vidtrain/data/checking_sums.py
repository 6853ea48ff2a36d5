"""SHA-256 sums that files should have: a list of `sha256sum`, or what an earlier check wrote."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from vidtrain.errors import InputError

# `sha256sum` begins a line with a backslash where it had to write a name with escapes.
LINE = re.compile(r"(?P<escaped>\\?)(?P<sum>[0-9a-fA-F]{64}) [ *](?P<name>.+)")


def read_sums(file: str, paths: Sequence[str], root: str) -> dict[str, str]:
    """Returns the sums of those of the paths that the file names.

    Args:
        file: A file that `sha256sum` wrote, with names that are absolute, relative to root or
            relative to its own folder; or a results.jsonl, of which only good files count.
        paths: Absolute paths of the files to check.
        root: Folder of the data set.

    Raises:
        InputError: It cannot be read, a line does not parse, or it names none of the paths.
    """
    file = os.path.expanduser(file)
    try:
        lines = Path(file).read_text("utf-8", "surrogateescape").split("\n")
    except OSError as error:
        raise InputError(f"sums={file} cannot be read: {error.strerror}") from None
    stated: dict[str, str] = {}
    for name, value in _entries(file, lines):
        for folder in (root, os.path.dirname(file)):
            stated.setdefault(os.path.abspath(os.path.join(folder, name)), value)
    found = {path: stated[path] for path in paths if path in stated}
    if not found:
        raise InputError(
            f"sums={file} names none of the {len(paths)} files to check; its names must be "
            f"absolute, or relative to data.root={root} or to its own folder"
        )
    return found


def _entries(file: str, lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(lines, start=1):
        match = LINE.fullmatch(line)
        if match is not None:
            name = match["name"]
            if match["escaped"]:
                name = re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), name)
            yield name, match["sum"].lower()
        elif line[:1] == "{":
            try:
                row = json.loads(line)
                if row["status"] != "bad":
                    yield row["path"], row["sha256"]
            except (ValueError, KeyError, TypeError):
                if number < len(lines):
                    raise _wrong(file, number, line) from None
        elif line.strip():
            raise _wrong(file, number, line)


def _wrong(file: str, number: int, line: str) -> InputError:
    return InputError(
        f"{file}, line {number}: {line[:80]!r} is neither a line of `sha256sum` nor of a "
        "results.jsonl; correct it"
    )
