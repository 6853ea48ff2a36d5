"""ActivityNet: one JSON file of time segments; and what all sources of time segments share."""

import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from vidtrain.data.sources.annotations import (
    Missing,
    choose,
    find_file,
    find_folder,
    indexer,
    listing,
    read_json,
    report_missing,
)
from vidtrain.data.video import Video, VideoList
from vidtrain.errors import InputError, UsageError

SUBSETS = {"training": "training", "train": "training", "validation": "validation",
           "val": "validation", "testing": "testing", "test": "testing"}  # fmt: skip


class Segment(NamedTuple):
    """A part of a video that an annotation file lists.

    Attributes:
        video: What the list of videos holds of it; its path is filled in by `place`.
        places: Where its file may lie, as keys of `annotations.listing`.
    """

    video: Video
    places: tuple[str, ...]


def activitynet(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    annotations: str = "activity_net.v1-3.min.json",
    missing: Missing = "error",
) -> VideoList:
    """Returns the annotated segments of a subset, each as one video with a start and an end.

    Videos are v_ID or ID, of any video suffix, in root/videos or root. Segment k of a video, from
    0, has the id `ID_k`. Classes are the leaves of the file's taxonomy, if it has one, and the
    labels of the whole file, in alphabetical order.

    Args:
        root: Folder of the data set.
        split: training or validation.
        class_names: Names by label; None: those of the file.
        annotations: The JSON file, in root or root/annotations.
        missing: What to do about listed videos that are not there: error, or skip and say so.

    Raises:
        UsageError: No such subset, or the testing subset, which has no annotations.
        InputError: A file or video is missing, an annotation does not parse, or a class is not
            named.
    """
    file = find_file(root, (".", "annotations"), [annotations])
    content = read_json(file)
    segments, names = json_segments(content, split, class_names, file)
    folder = find_folder(root, ["videos", "."])
    videos = place(segments, listing(folder), file=file, folder=folder, missing=missing)
    return VideoList(videos=videos, class_names=names)


def subset(split: str) -> str:
    """Returns the name of a subset as annotation files have it.

    Raises:
        UsageError: No such subset, or the testing one.
    """
    name = choose(split, SUBSETS)
    if name == "testing":
        raise UsageError(
            f"the split {split!r} has no annotations (they are kept for the challenge); use "
            "training or validation"
        )
    return name


def json_segments(
    content: Any, split: str, class_names: Sequence[str] | None, file: Path
) -> tuple[list[Segment], tuple[str, ...]]:
    """Returns the segments of a subset and the class names of a file in ActivityNet's format.

    Places are v_ID, ID, and both in a folder of the class, spelled with `_` for a space.

    Raises:
        InputError: The file is of another format, or holds a class that is not named.
    """
    wanted = subset(split)
    try:
        database = content["database"]
        names = tuple(class_names) if class_names is not None else _class_names(content)
        label_of = indexer(names, file)
        segments, useless = [], 0
        for key, entry in database.items():
            if entry["subset"] != wanted:
                continue
            seen = set()
            for k, annotation in enumerate(entry["annotations"]):
                start, end = map(float, annotation["segment"])
                name = annotation["label"]
                if not is_span(start, end) or (start, end, name) in seen:
                    useless += 1
                    continue
                seen.add((start, end, name))
                video = Video("", label_of(name), f"{key}_{k}", start=start, end=end)
                segments.append(Segment(video, _places(key, name)))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file} is not in ActivityNet's format (database, subset, annotations, segment, "
            f"label): {error!r}; fetch it again"
        ) from error
    say_left_out(useless, file)
    return segments, names


def _class_names(content: dict[str, Any]) -> tuple[str, ...]:
    nodes = content.get("taxonomy") or []
    parents = {node["parentName"] for node in nodes}
    leaves = {node["nodeName"] for node in nodes} - parents
    labels = {a["label"] for e in content["database"].values() for a in e["annotations"]}
    return tuple(sorted(leaves | labels))


def _places(key: str, name: str) -> tuple[str, ...]:
    folder = name.replace(" ", "_")
    return f"v_{key}", key, f"{folder}/v_{key}", f"{folder}/{key}"


def is_span(start: float, end: float) -> bool:
    """Whether there is time between two times in seconds, the first not before the video."""
    return 0 <= start < end < math.inf


def say_left_out(count: int, file: Path) -> None:
    """Says on standard error how many annotations no frames can be taken from."""
    if count:
        print(
            f"left out of {file}: {count} annotations that end before they begin, or stand there "
            "twice",
            file=sys.stderr,
        )


def place(
    segments: Sequence[Segment], found: dict[str, str], *, file: Path, folder: Path,
    missing: Missing,
) -> tuple[Video, ...]:  # fmt: skip
    """Returns the videos of the segments, in their order, with their paths.

    Args:
        segments: What the annotation file lists.
        found: Paths as `annotations.listing` returns them.
        file: The annotation file, for messages.
        folder: The folder of the videos, for messages.
        missing: error refuses a split with missing files; skip leaves them out and says so.

    Raises:
        InputError: Nothing listed, an id listed twice, a missing file, or none there at all.
    """
    if not segments:
        raise InputError(f"{file} lists no video of this split; check the file")
    videos: dict[str, Video] = {}
    gone: dict[str, None] = {}
    for video, places in segments:
        path = next((found[name] for name in places if name in found), None)
        if path is None:
            gone[places[0]] = None
        elif video.id in videos:
            raise InputError(f"{file} lists {video.id} twice; remove one of the lines")
        else:
            videos[video.id] = replace(video, path=path)
    total = len({places[0] for _, places in segments})
    report_missing(list(gone), total, file=file, folder=folder, missing=missing)
    return tuple(videos.values())


def read_table(file: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Returns (`FILE, line N`, fields by column) of each row of a csv file with a header.

    Raises:
        InputError: A column is missing, a row has too few fields, or it is not UTF-8 text.
    """
    rows = []
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            absent = [name for name in columns if name not in (reader.fieldnames or ())]
            if absent:
                raise InputError(
                    f"{file} has no column {absent[0]}; it must have {', '.join(columns)} (test "
                    "splits without labels cannot be used)"
                )
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                if any(row[name] is None for name in columns):
                    raise InputError(f"{where}: too few fields; fetch the file again")
                rows.append((where, row))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} is not a csv file in UTF-8: {error}; fetch it again") from error
    return rows
