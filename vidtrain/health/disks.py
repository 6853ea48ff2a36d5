"""Folders: room, speed, and whether all processes see the same."""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from vidtrain.health.findings import Finding, Member

MIB, GIB = 2**20, 2**30
WRITTEN_MIB = 64
READ_MIB, READ_FILES = 128, 32
MOST_ENTRIES = 20_000
PREFIX = ".vidtrain-doctor-"


def existing(folder: Path) -> Path:
    """Returns the folder, or the nearest one above it that is there."""
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if os.path.exists(path))


def writing(runs: Path) -> Iterator[Finding]:
    """The folder that runs go to: room, and speed of a synced write."""
    folder = existing(runs)
    try:
        free = shutil.disk_usage(folder).free / GIB
        with tempfile.NamedTemporaryFile(dir=folder, prefix=PREFIX) as file:
            start = time.perf_counter()
            file.write(bytes(WRITTEN_MIB * MIB))
            file.flush()
            os.fsync(file.fileno())
            speed = WRITTEN_MIB / (time.perf_counter() - start)
    except OSError as error:
        yield Finding("run folder", "fail", f"{folder}: {error.strerror}",
                      "give another with runs=")  # fmt: skip
        return
    few = free < 5
    remedy = "make room, or give another folder with runs=" if few else ""
    text = f"{folder}: {free:.0f} GiB free"
    yield Finding("run folder", "warn" if few else "ok", text, remedy, number=free)
    yield Finding("run folder speed", "ok", f"writes {speed:.0f} MiB/s", number=speed)


def reading(root: Path) -> Iterator[Finding]:
    """The folder of the data: whether it is there, and how fast its files are read."""
    if not os.path.isdir(root):
        there = "is a file" if os.path.exists(root) else "is not there, or not for this user"
        yield Finding("data folder", "fail", f"{root} {there}", "mount it, or correct data.root=")
        return
    files = list(islice(_files(root), READ_FILES))
    if not files:
        yield Finding("data folder", "fail", f"{root} has no files", "mount it, or copy the data")
        return
    try:
        count, seconds = 0, 0.0
        for file in files:
            if count >= READ_MIB * MIB:
                break
            size, took = _read(file, READ_MIB * MIB - count)
            count, seconds = count + size, seconds + took
    except OSError as error:
        yield Finding("data folder", "fail", f"{error.filename}: {error.strerror}",
                      "let this user read it")  # fmt: skip
        return
    speed = count / MIB / max(seconds, 1e-9)
    read = f"reads {speed:.0f} MiB/s ({count / MIB:.1f} MiB of {len(files)} files)"
    yield Finding("data folder", "ok", str(root))
    yield Finding("data folder speed", "ok", read, number=speed)


def _files(root: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(root):
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _read(file: Path, most: int) -> tuple[int, float]:
    """Returns the bytes read and the seconds, with what the system has kept of the file dropped."""
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        count, start = 0, time.perf_counter()
        while count < most and (piece := os.read(descriptor, min(4 * MIB, most - count))):
            count += len(piece)
        return count, time.perf_counter() - start
    finally:
        os.close(descriptor)


def listing(root: Path) -> Iterator[Finding]:
    """What this process sees of the data: names of the upper two levels, to be compared."""
    names: list[str] = []
    try:
        for entry in sorted(os.scandir(root), key=lambda entry: entry.name):
            names.append(entry.name)
            if entry.is_dir() and len(names) < MOST_ENTRIES:
                inside = islice(os.scandir(entry.path), MOST_ENTRIES - len(names))
                names += sorted(f"{entry.name}/{below.name}" for below in inside)
    except OSError as error:
        yield Finding("same data", "fail", f"{error.filename}: {error.strerror}",
                      "mount the same data.root on all nodes")  # fmt: skip
        return
    digest = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
    yield Finding("same data", "ok", f"{len(names)} names in {root}, digest {digest[:12]}",
                  alike="fail")  # fmt: skip


def put_token(runs: Path) -> tuple[int, str, str] | None:
    """Writes a file for the others to find.

    Returns:
        How many levels above the folder of the runs it is, its name, its content; None: it cannot
        be written.
    """
    folder = existing(runs)
    name, text = PREFIX + uuid.uuid4().hex, uuid.uuid4().hex
    try:
        (folder / name).write_text(text)
    except OSError:
        return None
    absolute = runs.absolute()
    return [absolute, *absolute.parents].index(folder), name, text


def token_path(runs: Path, level: int, name: str) -> Path:
    """Returns where this process should see the file."""
    absolute = runs.absolute()
    return [absolute, *absolute.parents][level] / name


def remove_token(runs: Path, token: tuple[int, str, str] | None) -> None:
    """Takes the file away."""
    if token is not None:
        with contextlib.suppress(OSError):
            token_path(runs, *token[:2]).unlink()


def seen(
    runs: Path, token: tuple[int, str, str] | None, me: Member, *, seconds: float = 10.0
) -> Iterator[Finding]:
    """Whether this process sees the file that rank 0 wrote.

    Args:
        runs: Folder that runs go to.
        token: What rank 0 wrote; None: it could not, which is said elsewhere.
        me: This process.
        seconds: Time that a network file system may take to show it.
    """
    if token is None or me.size == 1:
        return
    path, end = token_path(runs, *token[:2]), time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if path.read_text() == token[2]:
                yield Finding("shared run folder", "ok", f"all see the same {path.parent}")
                return
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    yield Finding(
        "shared run folder", "fail", f"what rank 0 writes to {path.parent} is not seen",
        "runs= must be a folder that all nodes mount: checkpoints are read from there by all",
    )  # fmt: skip
