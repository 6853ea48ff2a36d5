"""Read the packet index of a data set on all cores, so that training does not have to."""

import os
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from vidtrain import survey
from vidtrain.config import IndexConfig
from vidtrain.data import table_store
from vidtrain.data.decode_pyav import count_frames
from vidtrain.data.packets import packet_table
from vidtrain.errors import InputError

MAX_NAMED = 20


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
    listed = survey.videos_of(config)
    every = survey.paths_of(listed)
    paths = [path for path in every if not os.path.isdir(path)]
    if not paths:
        raise InputError(
            f"data={config.data.name} holds folders of images only: they need no index"
        )
    file = Path(survey.index_file(config.data))
    start = time.perf_counter()
    answers = survey.look_at("index", look, paths, index=str(file), workers=config.workers)
    found = [Found(path, 0, None, told) if isinstance(told, str) else told
             for path, told in answers]  # fmt: skip
    show(found, time.perf_counter() - start, file)
    if len(every) > len(paths):
        print(f"{len(every) - len(paths)} folders of images need no index")
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
