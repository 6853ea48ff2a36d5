"""The embedded data set: small H.264 clips whose class lies in the motion, written on first use."""

import contextlib
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from vidtrain.data.sources.folder import folder
from vidtrain.data.sources.motion_clips import CLASS_NAMES, draw_clip, encode_h264
from vidtrain.data.video import VideoList
from vidtrain.errors import InputError, UsageError

# Part of the cache folder's name: raise it when the clips of the same settings change.
VERSION = 2
SPLITS = ("train", "val")


def synthetic(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    train_videos: int = 480,
    val_videos: int = 120,
    seed: int = 0,
) -> VideoList:
    """Returns the clips of a split; writes both splits into the cache if they are not there.

    Six classes of motion (left, right, up, down, clockwise, counter-clockwise) among still and
    jittering shapes; no single frame tells the class. Lengths, rates and sizes vary. The same
    settings give the same bytes.

    Args:
        root: Cache folder; `~` is the home folder.
        split: train or val.
        class_names: Names by label; None: those of the data set.
        train_videos: Clips of the training split.
        val_videos: Clips of the validation split.
        seed: Seed of the clips.

    Raises:
        UsageError: Unknown split, or too few clips for six classes.
        InputError: The cache cannot be written.
    """
    counts = dict(zip(SPLITS, (train_videos, val_videos), strict=True))
    if split not in SPLITS:
        raise UsageError(f"data=synthetic has the splits train and val, not {split!r}")
    if min(counts.values()) < len(CLASS_NAMES):
        raise UsageError(
            f"data.source.train_videos={train_videos} and data.source.val_videos={val_videos} must "
            f"be at least {len(CLASS_NAMES)}, one per class"
        )
    key = f"{VERSION} {train_videos} {val_videos} {seed}"
    place = Path(root).expanduser() / hashlib.sha256(key.encode()).hexdigest()[:12]
    if not place.is_dir():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with _lock(place.with_name(f".{place.name}.lock")):
                if not place.is_dir():  # else another process wrote it while this one waited
                    _write(place, counts, seed)
        except OSError as error:
            raise InputError(
                f"cannot write the synthetic clips to {place}: {error.strerror or error}; give "
                "another folder with data.root=, or free some space"
            ) from error
    listed = folder(
        str(place), split=split, class_names=CLASS_NAMES if class_names is None else class_names
    )
    if len(listed.videos) != counts[split]:  # folders under ~/.cache get cleaned by age
        raise InputError(
            f"{place / split} holds {len(listed.videos)} clips instead of {counts[split]}; delete "
            f"{place} and they are written again"
        )
    return listed


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Lets one process of this machine in at a time; a killed process lets go of it."""
    with open(path, "a") as file:
        # Saves work only: without it (some network disks) the rename below still decides.
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(place: Path, counts: dict[str, int], seed: int) -> None:
    """Writes both splits beside the final folder, then renames: it is there whole or not at all."""
    total = sum(counts.values())
    print(f"writing {total} synthetic clips to {place} (once)", file=sys.stderr, flush=True)
    building = Path(tempfile.mkdtemp(prefix=f".{place.name}.", dir=place.parent))
    jobs = [
        (building / split / CLASS_NAMES[i % len(CLASS_NAMES)] / f"{i:04d}.mp4", seed, number, i)
        for number, split in enumerate(SPLITS)
        for i in range(counts[split])
    ]
    try:
        building.chmod(0o755)
        for folder_path in {job[0].parent for job in jobs}:
            folder_path.mkdir(parents=True)
        context = multiprocessing.get_context("forkserver")
        with ProcessPoolExecutor(min(8, os.cpu_count() or 1), mp_context=context) as pool:
            list(pool.map(_write_clip, *zip(*jobs, strict=True), chunksize=8))
        for directory, _, _ in os.walk(building):
            _sync_directory(directory)
        try:
            os.rename(building, place)
        except OSError:
            if not place.is_dir():  # else a process on another machine was first
                raise
        _sync_directory(place.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _sync_directory(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_clip(path: Path, seed: int, split: int, index: int) -> None:
    # Clips of one group of six share their looks and differ in class alone.
    rng = np.random.default_rng([seed, split, index // len(CLASS_NAMES)])
    frames, rate = draw_clip(rng, CLASS_NAMES[index % len(CLASS_NAMES)])
    content = encode_h264(frames, rate=rate, group_size=int(rng.integers(10, 40)))
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
