"""ActivityNet: one JSON file of time segments."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vidtrain.data.sources.annotations import (
    Missing,
    choose,
    find_file,
    find_folder,
    indexer,
    listing,
    read_json,
)
from vidtrain.data.sources.segments import Segment, is_span, place, say_left_out
from vidtrain.data.video import Video, VideoList
from vidtrain.errors import InputError, UsageError

SUBSETS = {"training": "training", "train": "training", "validation": "validation",
           "val": "validation", "testing": "testing", "test": "testing"}  # fmt: skip


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
