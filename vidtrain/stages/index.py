"""Read the packet index of a data set on all cores, so that training does not have to."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vidtrain import build, runlog
from vidtrain.config import IndexConfig
from vidtrain.data import table_store
from vidtrain.data.decode_pyav import count_frames
from vidtrain.data.index_store import default_path
from vidtrain.data.killable import in_processes
from vidtrain.data.packets import packet_table
from vidtrain.data.video import Video
from vidtrain.errors import InputError, Interrupted, UsageError
from vidtrain.interrupt import deferred

SAY_EVERY = 10.0  # seconds between two lines of progress where there is no terminal
MAX_NAMED = 20
BATCH = 16  # files that a process is given at once


class Found(NamedTuple):
    """What the index says of a file.

    Attributes:
        path: The file.
        frames: Number of frames.
        slow_reason: Why its frames are numbered by decoding; None where its packets tell.
        problem: What is wrong with it; None where it can be read.
    """

    path: str
    frames: int
    slow_reason: str | None
    problem: str | None


def index(config: IndexConfig) -> None:
    """Fills the index file of a data set and tells what is in it.

    Raises:
        InputError: Some files cannot be read; said after all others are done.
        UsageError: `splits` names no split.
    """
    if not config.splits or set(config.splits) - {"train", "val"}:
        raise UsageError(f"splits={config.splits} must be [train], [val] or [train,val]")
    if config.workers is not None and config.workers < 1:
        raise UsageError(f"workers={config.workers} must be at least 1")
    videos: list[Video] = []
    names: tuple[str, ...] | None = None
    for split in dict.fromkeys(config.splits):
        listed = build.videos(config.data, split, class_names=names)
        names = listed.class_names
        videos += listed.videos
    paths = list(dict.fromkeys(video.path for video in videos if not os.path.isdir(video.path)))
    if not paths:
        raise InputError(
            f"data={config.data.name} holds folders of images only: they need no index"
        )
    data = config.data
    file = Path(os.path.expanduser(data.index or str(default_path(data.name, data.root))))
    start = time.perf_counter()
    found = list(_look_at(paths, str(file), config.workers))
    show(found, time.perf_counter() - start, file)
    if not file.is_file():
        raise InputError(f"the index {file} could not be written; give another with data.index")
    bad = [entry for entry in found if entry.problem is not None]
    if bad:
        named = "".join(f"\n  {entry.problem}" for entry in bad[:MAX_NAMED])
        more = f"\n  and {len(bad) - MAX_NAMED} more" if len(bad) > MAX_NAMED else ""
        raise InputError(
            f"{len(bad)} of {len(found)} files cannot be read (`vidtrain check` writes a list "
            f"that data.quarantine= leaves out):{named}{more}"
        )


def look(job: tuple[str, list[str]]) -> list[Found]:
    """Reads the tables of some files, from the index file where they have not changed.

    Args:
        job: The index file, and the files.
    """
    table_store.use_index(job[0])
    found = []
    for path in job[1]:
        try:
            found.append(Found(path, count_frames(path), packet_table(path).slow_reason, None))
        except InputError as error:
            found.append(Found(path, 0, None, str(error)))
        except Exception as error:  # a fault with one file must not end all others
            found.append(Found(path, 0, None, f"{path}: {type(error).__name__}: {error}"))
    table_store.use_index(None)
    return found


def show(found: list[Found], seconds: float, file: Path) -> None:
    """Prints how many files and frames there are, and how the frames are numbered."""
    good = [entry for entry in found if entry.problem is None]
    table = Table("route", "files", "frames", "why")
    counts = Counter(entry.slow_reason for entry in good)
    for reason, count in sorted(counts.items(), key=lambda item: (item[0] is not None, -item[1])):
        frames = sum(entry.frames for entry in good if entry.slow_reason == reason)
        route = "fast" if reason is None else "safe"
        why = "frames are found by their time stamps" if reason is None else reason
        table.add_row(route, f"{count}", f"{frames}", why)
    if len(good) < len(found):
        table.add_row("none", f"{len(found) - len(good)}", "", "cannot be read")
    out = Console(highlight=False, soft_wrap=True)
    out.print(table)
    frames = sum(entry.frames for entry in good)
    out.print(f"{len(good)} files, {frames} frames in {seconds:.1f} s")
    if any(counts.keys()):
        out.print("safe: the frames of these files are numbered by decoding them from their start; "
                  "`vidtrain prepare` makes fast ones of them")  # fmt: skip
    if file.is_file():
        out.print(f"{file}: {file.stat().st_size / 2**20:.2f} MiB", markup=False)


def _look_at(paths: list[str], file: str, workers: int | None) -> Iterator[Found]:
    """Yields what is found, and shows how far it is.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
    """
    console = runlog.console
    progress = Progress(
        TextColumn("index"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TextColumn("files  ETA"), TimeRemainingColumn(), console=console,
        disable=not console.is_terminal, transient=True,
    )  # fmt: skip
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    count = workers or cores or 1
    size = min(BATCH, -(-len(paths) // count))
    jobs = [(file, paths[first : first + size]) for first in range(0, len(paths), size)]
    start = said = time.monotonic()
    done = 0
    with deferred() as stop, progress:
        task = progress.add_task("index", total=len(paths))
        while jobs:
            again: list[tuple[str, list[str]]] = []
            for job, found in in_processes(look, jobs, workers=count, stop=stop):
                if isinstance(found, str):  # the process died: which of its files was it?
                    if len(job[1]) > 1:
                        again += [(file, [path]) for path in job[1]]
                        continue
                    found = [Found(job[1][0], 0, None, f"{job[1][0]}: {found}")]
                yield from found
                done += len(found)
                progress.advance(task, len(found))
                now = time.monotonic()
                if not console.is_terminal and now - said > SAY_EVERY:
                    said, left = now, (now - start) / done * (len(paths) - done)
                    console.print(f"index: {done}/{len(paths)} files  ETA {left:.0f} s")
            if stop.signum:
                raise Interrupted(
                    stop.signum, f"{done} of {len(paths)} files have been read; the same command "
                    "goes on from there",
                )  # fmt: skip
            jobs = again
