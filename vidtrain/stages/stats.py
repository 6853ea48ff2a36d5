"""Describe a data set: how many videos of which class, how long, how large, and which are bad."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vidtrain import survey
from vidtrain.config import StatsConfig
from vidtrain.data import table_store
from vidtrain.data.decode_frames import FORMATS, image_names
from vidtrain.data.packets import packet_table
from vidtrain.data.video import Video, VideoList
from vidtrain.errors import InputError
from vidtrain.records import runlog
from vidtrain.report.data_plots import FEW, SplitFigures, balance, plot_data, spread

SHORT = (8, 16, 32, 64)  # frames of a clip that a video may be too short for
MAX_ROWS = 40  # of a table; the rest is in stats.json
MAX_NAMED = 5  # examples of a problem; the rest is in stats.json


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
    folder = Path(os.path.expanduser(config.output))
    survey.refuse_other_data(folder / "stats.json", config.data.root)
    listed = survey.videos_of(config)
    names = next(iter(listed.values())).class_names
    data = config.data
    facts: dict[str, Facts | str] = dict(
        survey.look_at(
            "stats", look_at_all, survey.paths_of(listed), index=survey.index_file(data),
            workers=config.workers,
        )
    )  # fmt: skip
    told = {split: describe(found, facts, data.frame_folder_fps) for split, found in listed.items()}
    result: dict[str, Any] = {
        "data": data.name, "root": data.root, "classes": list(names),
        "splits": {split: figures for split, (_, figures) in told.items()},
    }  # fmt: skip
    if len(listed) == 2:
        train, val = ({video.path for video in found.videos} for found in listed.values())
        result["files_in_both_splits"] = sorted(train & val)
    show(result)
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
            first = os.path.join(path, names[0])
            with Image.open(first, formats=FORMATS) as image:
                return Facts(len(names), None, *image.size, "images", None, None)
        table = packet_table(path)
    except (InputError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return str(error)
    keys = np.append(np.flatnonzero(table.keyframe), len(table.pts))
    return Facts(
        frames=len(table.pts) - int(table.discard.sum()), fps=table.fps, width=table.width,
        height=table.height, codec=table.codec,
        key_distance=int(np.diff(keys, prepend=0).max()), slow_reason=table.slow_reason,
    )  # fmt: skip


def look_at_all(job: tuple[str, list[str]]) -> list[Facts | str]:
    """Returns what `look` says of some files, in a process of its own.

    Args:
        job: The index file, and the files.
    """
    table_store.use_index(job[0])
    found = [look(path) for path in job[1]]
    table_store.use_index(None)
    return found


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
    return re.sub(r"\b\d+(\.\d+)?\b", "N", text).replace("folder the file", "folder")


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
