"""Loader processes: their start, what the machine must offer, and what went wrong with one."""

import contextlib
import os
import re
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from vidtrain.data import table_store
from vidtrain.data.killable import clean_server
from vidtrain.data.video import VideoList
from vidtrain.errors import InputError

SHARED_MEMORY = Path("/dev/shm")
OPEN_FILES_WANTED = 65536


class Activity:
    """Which video each loader process is at, in memory that all processes share."""

    def __init__(self, num_workers: int) -> None:
        # Rows of process, index of the video or -1, and time of the clock that all share.
        self.rows = torch.full((max(1, num_workers), 3), -1, dtype=torch.int64).share_memory_()

    def at(self, video: int) -> None:
        """Notes, in a loader process, that it begins a video; -1: that it rests."""
        info = get_worker_info()
        if info is not None:
            row = self.rows[info.id]
            row[0], row[1], row[2] = os.getpid(), video, time.monotonic_ns()

    def busy(self) -> list[tuple[int, int, float]]:
        """Returns process, video and seconds spent of each that is at a video, longest first."""
        now = time.monotonic_ns()
        rows = [(pid, video, (now - since) / 1e9)
                for pid, video, since in self.rows.tolist() if video >= 0]  # fmt: skip
        return sorted(rows, key=lambda row: -row[2])


def loader(
    dataset: Dataset, reading: Any, *, keys: Any = None, workers: int, shared_bytes: int,
    persistent: bool = False,
) -> DataLoader:  # fmt: skip
    """Returns a loader whose items arrive as the dataset makes them, from clean processes.

    Args:
        dataset: Makes one item from one key, or iterates.
        reading: The settings, a `loading.Reading`.
        keys: One key per item; None: the dataset iterates.
        workers: Loader processes.
        shared_bytes: Shared memory that the batches under way need.
        persistent: Keep the processes from one pass to the next.

    Raises:
        InputError: The machine's shared memory is too small.
    """
    start_reading(reading.index)
    if not workers:
        return DataLoader(dataset, batch_size=None, sampler=keys, collate_fn=_as_it_is)
    check_machine(workers, shared_bytes)
    # How many there are is a person's choice; `vidtrain doctor` says what the machine has.
    warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
    return DataLoader(
        dataset,
        batch_size=None,
        sampler=keys,
        collate_fn=_as_it_is,
        num_workers=workers,
        prefetch_factor=reading.prefetch_batches,
        timeout=reading.timeout_seconds,
        persistent_workers=persistent,
        multiprocessing_context=clean_server("vidtrain.data.loading"),
        worker_init_fn=_Start(reading.index),
    )


def _as_it_is(item: Any) -> Any:
    return item


class _Start:
    """What a loader process does first."""

    def __init__(self, index: str | None) -> None:
        self.index = index

    def __call__(self, worker: int) -> None:
        del worker
        torch.set_num_threads(1)
        for number in (signal.SIGINT, signal.SIGTERM):  # are the main process's to handle
            signal.signal(number, signal.SIG_IGN)
        start_reading(self.index)


def start_reading(index: str | None) -> None:
    """Sets this process up for reading videos."""
    cv2.setNumThreads(0)
    table_store.use_index(index)


def check_machine(workers: int, shared_bytes: int) -> None:
    """Looks at what loader processes need, and raises the limit on open files.

    Raises:
        InputError: Shared memory is too small; the message says how much is needed.
    """
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        if free < shared_bytes:
            raise InputError(
                f"batches under way need {shared_bytes / 2**20:.0f} MiB of shared memory, and "
                f"{SHARED_MEMORY} has {free / 2**20:.0f} MiB free; start the container with a "
                f"larger --shm-size, or use fewer data.num_workers ({workers}), a smaller batch, "
                "or data.num_workers=0"
            )
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_WANTED)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if workers > 4 * (cores or 1) and int(os.environ.get("RANK", "0")) == 0:
        print(f"vidtrain: data.num_workers={workers}, but this process may use {cores} cores; "
              "more processes than cores only take memory", file=sys.stderr)  # fmt: skip


def guarded(
    items: Callable[[], Iterator[Any]], activity: Activity, videos: VideoList, timeout: float
) -> Iterator[Any]:
    """Yields the items of a loader; says of a process that dies or hangs why, and at which video.

    Raises:
        InputError: A loader process died or hung; those that hang have been killed.
    """
    try:
        yield from items()
    except (RuntimeError, ConnectionError, EOFError, OSError) as error:
        reason = _what_happened(str(error), activity, videos, timeout)
        if reason is None:
            raise
        raise InputError(reason) from error


def _what_happened(error: str, activity: Activity, videos: VideoList, timeout: float) -> str | None:
    busy = activity.busy()
    if "DataLoader timed out" in error:
        stuck = [row for row in busy if row[2] > timeout / 2] or busy
        for pid, _, _ in stuck:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        named = ", ".join(f"{videos.videos[v].path} ({s:.0f} s)" for _, v, s in stuck)
        return (
            f"no batch came for data.timeout_seconds={timeout:g} s; loader processes were at "
            f"{named or 'no video'} and have been killed. `vidtrain check` finds files that hang "
            "and lists them for data.quarantine; if the disk is only slow, raise the limit"
        )
    if "shared memory" in error or "Bus error" in error or "/torch_" in error:
        free = shutil.disk_usage(SHARED_MEMORY).free / 2**20 if SHARED_MEMORY.is_dir() else 0
        return (
            f"{SHARED_MEMORY} is too small ({free:.0f} MiB free now): {error.splitlines()[0]}; "
            "start the container with a larger --shm-size, or use fewer data.num_workers"
        )
    died = re.search(r"worker \(pid\(?s?\)? ?([\d, ]+)\) (.*)", error)
    gone = [row for row in busy if not _runs(row[0])]
    if died is None and not gone:
        return None
    pids = {int(pid) for pid in died[1].split(",")} if died else {row[0] for row in gone}
    at = [videos.videos[video].path for pid, video, _ in busy if pid in pids]
    how = died[2].split(".")[0] if died else "is gone"
    where = f" while it read {', '.join(at)}" if at else ""
    return (
        f"loader process {', '.join(map(str, sorted(pids)))} {how}{where}; if memory ran out (see "
        "dmesg), use fewer data.num_workers; `vidtrain check` tells whether that file is to blame"
    )


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
