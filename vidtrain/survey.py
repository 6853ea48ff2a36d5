"""What the stages that go through a whole data set share: its videos, processes, progress."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidtrain import build_data
from vidtrain.config.data import DataConfig, DataStageConfig
from vidtrain.data.index_store import default_path
from vidtrain.data.killable import in_processes
from vidtrain.data.video import VideoList
from vidtrain.errors import Interrupted, UsageError
from vidtrain.interrupt import deferred
from vidtrain.records import runlog

SAY_EVERY = 10.0  # seconds between two lines of progress where there is no terminal
BATCH = 16  # files that a process is given at once
BATCH_SECONDS = 1800.0  # a file that takes longer hangs, and is named


def videos_of(config: DataStageConfig, data: DataConfig | None = None) -> dict[str, VideoList]:
    """Returns the videos of each split that was asked for.

    Args:
        config: The stage's settings.
        data: The data set, where it is not quite `config.data`.

    Raises:
        UsageError: `splits` or `workers` makes no sense.
        InputError: A split cannot be listed.
    """
    if not config.splits or set(config.splits) - {"train", "val"}:
        raise UsageError(f"splits={config.splits} must be [train], [val] or [train,val]")
    if config.workers is not None and config.workers < 1:
        raise UsageError(f"workers={config.workers} must be at least 1")
    listed: dict[str, VideoList] = {}
    names: tuple[str, ...] | None = None
    for split in dict.fromkeys(config.splits):
        listed[split] = build_data.videos(data or config.data, split, class_names=names)
        names = listed[split].class_names
    return listed


def refuse_other_data(file: Path, root: str) -> None:
    """Refuses an output folder that holds what was found of data elsewhere.

    Raises:
        UsageError: The JSON file is there, and tells of another root.
    """
    try:
        was = json.loads(file.read_text("utf-8"))["root"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if was != root:
        raise UsageError(f"{file.parent} holds what was found in {was}; give another with output=")


def paths_of(listed: dict[str, VideoList]) -> list[str]:
    """Returns the files and frame folders of all splits, each once."""
    return list(dict.fromkeys(video.path for found in listed.values() for video in found.videos))


def index_file(data: DataConfig) -> str:
    """Returns the file of the data set's packet index."""
    return os.path.expanduser(data.index or str(default_path(data.name, data.root)))


def num_processes(workers: int | None) -> int:
    """Returns the number of processes to start: one for each core that may be used, if not set."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return workers or cores or 1


@contextmanager
def counting(name: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """Shows how far a stage is: a bar on a terminal, a line now and then elsewhere.

    Yields:
        A function to call with the number of units done since, and a remark to show.
    """
    console = runlog.console
    progress = Progress(
        TextColumn(name), BarColumn(bar_width=24), MofNCompleteColumn(),
        TextColumn(f"{unit}{{task.fields[remark]}}  ETA"), TimeRemainingColumn(), console=console,
        disable=not console.is_terminal, transient=True,
    )  # fmt: skip
    start = said = time.monotonic()
    task = progress.add_task(name, total=total, remark="")
    done = 0

    def advance(count: int, remark: str = "") -> None:
        nonlocal said, done
        done += count
        progress.update(task, completed=done, remark=remark)
        now = time.monotonic()
        if progress.disable and now - said > SAY_EVERY:
            left = f"{(now - start) / done * (total - done):.0f} s" if done else "unknown"
            console.print(f"{name}: {done}/{total} {unit}{remark}  ETA {left}", markup=False)
            said = now

    with progress:
        yield advance


def look_at(
    name: str, look: Callable[[tuple[str, list[str]]], list[Any]], paths: list[str], *, index: str,
    workers: int | None,
) -> Iterator[tuple[str, Any]]:  # fmt: skip
    """Yields each path with what `look` returns for it, from processes that may die.

    A file that ends its process comes with a reason (str) in place of a result.

    Args:
        name: Of the stage, for the progress.
        look: Takes the index file and some paths, returns a result for each; importable by name.
        paths: Files.
        index: The packet index.
        workers: Processes; None: one per core.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
    """
    count = num_processes(workers)
    size = min(BATCH, -(-len(paths) // count)) or 1
    jobs = [(index, paths[first : first + size]) for first in range(0, len(paths), size)]
    done = 0
    with deferred() as stop, counting(name, len(paths), "files") as advance:
        while jobs:
            again: list[tuple[str, list[str]]] = []
            for job, found in in_processes(look, jobs, workers=count, stop=stop,
                                           timeout_seconds=BATCH_SECONDS):  # fmt: skip
                if isinstance(found, str):  # the process died: which of its files was it?
                    if len(job[1]) > 1:
                        again += [(index, [path]) for path in job[1]]
                        continue
                    found = [f"{job[1][0]}: {found}"]
                yield from zip(job[1], found, strict=True)
                done += len(found)
                advance(len(found))
            if stop.signum:
                raise Interrupted(
                    stop.signum, f"{done} of {len(paths)} files have been read; the same command "
                    "goes on from there",
                )  # fmt: skip
            jobs = again
