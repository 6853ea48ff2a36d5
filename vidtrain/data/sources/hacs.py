"""HACS: the Clips csv (two seconds each) or the Segments JSON (from start to end of an action)."""

import sys
from collections.abc import Sequence
from pathlib import Path

from vidtrain.data.sources.activitynet import json_segments, subset
from vidtrain.data.sources.annotations import (
    Missing,
    find_file,
    find_folder,
    indexer,
    listing,
    read_json,
)
from vidtrain.data.sources.segments import Segment, is_span, place, read_table, say_left_out
from vidtrain.data.video import Video, VideoList
from vidtrain.errors import InputError

COLUMNS = ("classname", "youtube_id", "subset", "start", "end", "label")


def hacs(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    annotations: str = "HACS_clips_v1.1.1.csv",
    missing: Missing = "error",
) -> VideoList:
    """Returns the clips or segments of a subset, each as one video with a start and an end.

    Of the Clips csv, rows with label 1 are taken; those with -1 show that the action is not
    there, and are counted on standard error. Videos are CLASS/v_ID, with `_` for spaces, v_ID or
    ID, of any video suffix, in root/videos or root. Part k of a video, from 0, has the id `ID_k`.

    Args:
        root: Folder of the data set.
        split: training or validation.
        class_names: Names by label; None: those of the whole file in alphabetical order.
        annotations: The csv of HACS Clips or the JSON of HACS Segments, in root, root/annotations
            or root/HACS_v1.1.1.
        missing: What to do about listed videos that are not there: error, or skip and say so.

    Raises:
        UsageError: No such subset, or the testing subset, which has no annotations.
        InputError: A file or video is missing, a row does not parse, or a class is not named.
    """
    file = find_file(root, (".", "annotations", "HACS_v1.1.1"), [annotations])
    if file.suffix == ".json":
        segments, names = json_segments(read_json(file), split, class_names, file)
    else:
        segments, names = _clips(file, split, class_names)
    folder = find_folder(root, ["videos", "."])
    spelled = [name.replace(" ", "_") for name in names]
    found = listing(folder, spelled)
    videos = place(segments, found, file=file, folder=folder, missing=missing)
    return VideoList(videos=videos, class_names=names)


def _clips(
    file: Path, split: str, class_names: Sequence[str] | None
) -> tuple[list[Segment], tuple[str, ...]]:
    """Returns the positive clips of a subset and the class names."""
    wanted = subset(split)
    rows = read_table(file, COLUMNS)
    own_names = sorted({row["classname"] for _, row in rows})
    names = tuple(class_names) if class_names is not None else tuple(own_names)
    label_of = indexer(names, file)
    segments: list[Segment] = []
    parts: dict[str, int] = {}
    negatives = useless = 0
    for where, row in rows:
        if row["subset"] != wanted:
            continue
        try:
            start, end, sign = float(row["start"]), float(row["end"]), int(row["label"])
        except ValueError:
            sign = 0
        if sign not in (1, -1):
            raise InputError(
                f"{where}: start, end and label are {row['start']!r}, {row['end']!r} and "
                f"{row['label']!r}, not seconds, seconds and 1 or -1; fetch the file again"
            )
        if sign == -1 or not is_span(start, end):
            negatives, useless = negatives + (sign == -1), useless + (sign == 1)
            continue
        key, folder = row["youtube_id"], row["classname"].replace(" ", "_")
        part = parts[key] = parts.get(key, -1) + 1
        video = Video("", label_of(row["classname"]), f"{key}_{part}", start=start, end=end)
        segments.append(Segment(video, (f"v_{key}", key, f"{folder}/v_{key}", f"{folder}/{key}")))
    if negatives:
        print(
            f"left out of {file}: {negatives} {wanted} clips that do not show their action "
            f"(label -1); {len(segments)} do",
            file=sys.stderr,
        )
    say_left_out(useless, file)
    return segments, names
