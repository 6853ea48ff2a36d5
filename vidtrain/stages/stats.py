"""Describe a data set: how many videos of which class, how long, how large, and which are bad."""

import multiprocessing
import os
import re
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vidtrain import build, runlog
from vidtrain.config import StatsConfig
from vidtrain.data import table_store
from vidtrain.data.decode_frames import image_names
from vidtrain.data.index_store import default_path
from vidtrain.data.packets import packet_table
from vidtrain.data.video import Video, VideoList
from vidtrain.errors import InputError, UsageError
from vidtrain.report.data_plots import FEW, SplitFigures, balance, plot_data, spread

SHORT = (8, 16, 32, 64)  # frames of a clip that a video may be too short for
SMALL = 256  # files for each process; fewer are read sooner than a process starts
MAX_ROWS = 40  # of a table; the rest is in stats.json
MAX_NAMED = 5  # examples of a problem; the rest is in stats.json
SAY_EVERY = 10.0  # seconds between two lines of progress where there is no terminal


class Facts(NamedTuple):
    """What is told of a file or frame folder; sizes in pixels, the distance in frames."""

    frames: int
    fps: float | None
    width: int
    height: int
    codec: str
    key_distance: int | None
    slow_reason: str | None


def stats(config: StatsConfig) -> None:
    """Prints tables, and writes stats.json and stats.png to the output folder.

    Raises:
        InputError: A list of videos cannot be made, or the folder not be written. Videos that
            cannot be read are counted and named.
        UsageError: `splits` names no split.
    """
    if not config.splits or set(config.splits) - {"train", "val"}:
        raise UsageError(f"splits={config.splits} must be [train], [val] or [train,val]")
    if config.workers is not None and config.workers < 1:
        raise UsageError(f"workers={config.workers} must be at least 1")
    listed: dict[str, VideoList] = {}
    names: tuple[str, ...] | None = None
    for split in dict.fromkeys(config.splits):
        listed[split] = build.videos(config.data, split, class_names=names)
        names = listed[split].class_names
    assert names is not None
    paths = list(dict.fromkeys(video.path for found in listed.values() for video in found.videos))
    data = config.data
    facts = dict(_look_at(paths, config))
    told = {split: describe(found, facts, data.frame_folder_fps) for split, found in listed.items()}
    result: dict[str, Any] = {
        "data": data.name, "root": data.root, "classes": list(names),
        "splits": {split: figures for split, (_, figures) in told.items()},
    }  # fmt: skip
    if len(listed) == 2:
        train, val = ({video.path for video in found.videos} for found in listed.values())
        result["files_in_both_splits"] = sorted(train & val)
    show(result)
    folder = Path(os.path.expanduser(config.output))
    with runlog.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    runlog.write_json(folder / "stats.json", result)
    arrays = {split: drawn for split, (drawn, _) in told.items()}
    counted = " and ".join(f"{len(found.videos)} {split}" for split, found in listed.items())
    plot_data(arrays, names, f"{data.name}: {counted} videos", folder / "stats.png")
    print(f"written to {folder}: stats.json, stats.png")


def look(path: str) -> Facts | str:
    """Returns what is told of a file or frame folder without decoding it, or what is wrong."""
    try:
        if os.path.isdir(path):
            names = image_names(path)
            with Image.open(os.path.join(path, names[0])) as image:
                return Facts(len(names), None, *image.size, "images", None, None)
        table = packet_table(path)
    except (InputError, OSError, SyntaxError, ValueError) as error:
        return str(error)
    keys = np.append(np.flatnonzero(table.keyframe), len(table.pts))
    return Facts(
        frames=len(table.pts) - int(table.discard.sum()), fps=table.fps, width=table.width,
        height=table.height, codec=table.codec,
        key_distance=int(np.diff(keys, prepend=0).max()), slow_reason=table.slow_reason,
    )  # fmt: skip


def _look_at(paths: Sequence[str], config: StatsConfig) -> Iterator[tuple[str, Facts | str]]:
    """Yields each path with what `look` says, and shows how far it is."""
    index = config.data.index or str(default_path(config.data.name, config.data.root))
    console = runlog.console
    progress = Progress(
        TextColumn("stats"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TextColumn("files  ETA"), TimeRemainingColumn(), console=console,
        disable=not console.is_terminal, transient=True,
    )  # fmt: skip
    start = said = time.monotonic()
    with progress:
        task = progress.add_task("stats", total=len(paths))
        for done, found in enumerate(_looks(paths, config.workers, index), start=1):
            yield paths[done - 1], found
            progress.update(task, completed=done)
            now = time.monotonic()
            if progress.disable and now - said > SAY_EVERY:
                said, left = now, (now - start) / done * (len(paths) - done)
                console.print(f"stats: {done}/{len(paths)} files  ETA {left:.0f} s")


def _looks(paths: Sequence[str], workers: int | None, index: str) -> Iterator[Facts | str]:
    """Yields what `look` says of each path, in order, from processes where that pays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(workers or cores or 1, -(-len(paths) // SMALL))
    if workers == 1:
        table_store.use_index(index)
        yield from map(look, paths)
        table_store.use_index(None)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(index,))
    try:
        yield from pool.map(look, paths, chunksize=4)
    except BrokenProcessPool as error:
        raise InputError(
            "a process that reads videos was killed, by the system for want of memory or by a "
            "damaged video; lower workers, or find the video with vidtrain check"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(index: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    table_store.use_index(index)
    Thread(target=_end_with_main, daemon=True).start()


def _end_with_main() -> None:
    """Ends this process when the main process is gone, killed for example."""
    if (main := multiprocessing.parent_process()) is not None:
        main.join()
        os._exit(1)


def describe(
    listed: VideoList, facts: dict[str, Facts | str], folder_fps: float | None
) -> tuple[SplitFigures, dict[str, Any]]:
    """Returns what is drawn and what is written of a split.

    Args:
        listed: Its videos.
        facts: What `look` says of each path.
        folder_fps: Frames per second of frame folders; None: unknown.
    """
    files = {video.path: facts[video.path] for video in listed.videos}
    good = [found for found in files.values() if isinstance(found, Facts)]
    frames, seconds = [], []
    unreadable: dict[str, list[str]] = defaultdict(list)
    for video in listed.videos:
        found = files[video.path]
        if isinstance(found, str):
            unreadable[_kind(found, video.path)].append(video.id)
            continue
        fps = found.fps or (folder_fps if found.codec == "images" else None)
        count = num_frames(video, found.frames, fps)
        if count < 1:
            unreadable["the part to use begins after the video's end"].append(video.id)
            continue
        frames.append(count)
        if fps:
            seconds.append(count / fps)
    labels = [label for v in listed.videos for label in v.labels or (v.label,) if label >= 0]
    drawn = SplitFigures(
        per_class=np.bincount(np.array(labels, int), minlength=len(listed.class_names)),
        seconds=np.array(seconds), frames=np.array(frames, int),
        sizes=np.array([(f.width, f.height) for f in good], int).reshape(-1, 2),
        fps=np.array([f.fps for f in good if f.fps]),
        key_distance=np.array([f.key_distance for f in good if f.key_distance], int),
    )  # fmt: skip
    slow = Counter(f.slow_reason for f in good if f.slow_reason)
    sizes = Counter(f"{f.width}x{f.height}" for f in good)
    return drawn, {
        "videos": len(listed.videos), "files": len(files), "hours": sum(seconds) / 3600,
        "without_label": sum(v.label < 0 and not v.labels for v in listed.videos),
        **balance(drawn.per_class, listed.class_names),
        "seconds": spread(drawn.seconds), "frames": spread(drawn.frames),
        "fps": spread(drawn.fps), "short_side": spread(drawn.sizes.min(axis=1)),
        "keyframe_distance": spread(drawn.key_distance),
        "share_with_fewer_frames": {
            str(limit): float(np.mean(drawn.frames < limit)) if frames else None for limit in SHORT
        },
        "sizes": dict(sizes.most_common()),
        "codecs": dict(Counter(f.codec for f in good).most_common()),
        "safe_route": dict(slow.most_common()), "unreadable": dict(unreadable),
    }  # fmt: skip


def num_frames(video: Video, available: int, fps: float | None) -> int:
    """Returns how many frames there are to use; from times, where given, at the average rate."""
    if fps and (video.start is not None or video.end is not None):
        end = available / fps if video.end is None else min(video.end, available / fps)
        return round((end - (video.start or 0)) * fps)
    left = available - video.first_frame
    return left if video.num_frames is None else min(left, video.num_frames)


def _kind(message: str, path: str) -> str:
    """Returns a message without what is particular to one file, to count by."""
    text = message.replace(path, "the file").replace(os.path.basename(path), "the file")
    return re.sub(r"\b\d+(\.\d+)?\b", "#", text)


def show(result: dict[str, Any]) -> None:
    """Prints the figures on standard output."""
    out, splits = Console(highlight=False, soft_wrap=True), result["splits"]
    table = Table("", *splits)
    for name, row in _rows(splits, len(result["classes"])).items():
        table.add_row(name, *row)
    out.print(table)
    table = Table("", "split", "min", "5 %", "median", "95 %", "max")
    for key in ("seconds", "frames", "fps", "short_side", "keyframe_distance"):
        for split, told in splits.items():
            values = [f"{v:.4g}" for v in told[key].values()] if told[key] else ["-"] * 5
            table.add_row(key.replace("_", " "), split, *values)
    out.print(table)
    counts = {split: told["videos_per_class"] for split, told in splits.items()}
    names = sorted(result["classes"], key=lambda n: [-found[n] for found in counts.values()])
    hidden = max(0, len(names) - MAX_ROWS)
    table = Table("class, largest first", *(f"{split} videos" for split in splits))
    for place, name in enumerate(names):
        if place < MAX_ROWS // 2 or place >= MAX_ROWS // 2 + hidden:
            table.add_row(escape(name), *(str(found[name]) for found in counts.values()))
        elif place == MAX_ROWS // 2:
            table.add_row(f"... {hidden} more in stats.json", *("" for _ in counts))
    out.print(table)
    say = partial(out.print, markup=False)
    for split, told in splits.items():
        for reason, count in told["safe_route"].items():
            say(f"{split}: {count} files are decoded from their beginning: {reason}")
        for reason, ids in told["unreadable"].items():
            say(f"{split}: {len(ids)} unreadable ({_some(ids)}): {reason}")
        for kind in ("without", "with_few"):
            if found := told[f"classes_{kind}_videos"]:
                words = "no videos" if kind == "without" else f"fewer than {FEW} videos"
                say(f"{split}: {len(found)} classes have {words}: {_some(found)}")
    if both := result.get("files_in_both_splits"):
        say(f"train and val share {len(both)} files, so val says too much good: {_some(both)}")


def _rows(splits: dict[str, Any], classes: int) -> dict[str, list[str]]:
    """Returns the rows of the first table: a text for each split."""
    rows: dict[str, list[str]] = defaultdict(list)
    for told in splits.values():
        even = told["balance"]
        rows["videos"].append(str(told["videos"]))
        rows["files"].append(str(told["files"]))
        rows["hours"].append(f"{told['hours']:.3g}")
        rows["unreadable videos"].append(str(sum(map(len, told["unreadable"].values()))))
        rows["safe route (files)"].append(str(sum(told["safe_route"].values())))
        if any(found["without_label"] for found in splits.values()):
            rows["videos without a label"].append(str(told["without_label"]))
        there = classes - len(told["classes_without_videos"])
        rows["classes with videos"].append(f"{there} of {classes}")
        numbers = f"{even['min']} / {even['median']:g} / {even['max']}"
        rows["videos per class (min / median / max)"].append(numbers)
        ratio = even["largest_to_smallest"]
        rows["largest to smallest class"].append("-" if ratio is None else f"{ratio:.3g}")
        for limit, share in told["share_with_fewer_frames"].items():
            rows[f"fewer than {limit} frames"].append("-" if share is None else f"{share:.1%}")
        for key in ("codecs", "sizes"):
            most = [f"{name}: {count}" for name, count in list(told[key].items())[:3]]
            rows[key].append(", ".join(most) + ", ..." * (len(told[key]) > 3))
    return rows


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_NAMED]) + ", ..." * (len(names) > MAX_NAMED)
