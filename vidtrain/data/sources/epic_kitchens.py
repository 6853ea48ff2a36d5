"""EPIC-KITCHENS-100: actions in long videos or in folders of frames; verbs, nouns or both."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vidtrain.data.sources.annotations import (
    Missing,
    choose,
    find_file,
    find_folder,
    indexer,
    listing,
    ordered_names,
)
from vidtrain.data.sources.segments import Segment, is_span, place, read_table, say_left_out
from vidtrain.data.video import Video, VideoList
from vidtrain.errors import InputError

PLACES = (".", "annotations", "epic-kitchens-100-annotations")
SPLITS = {"train": "EPIC_100_train.csv", "validation": "EPIC_100_validation.csv",
          "val": "EPIC_100_validation.csv"}  # fmt: skip
COLUMNS = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp",
           "start_frame", "stop_frame", "verb_class", "noun_class")  # fmt: skip
TIME = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)")


def epic_kitchens(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    target: Literal["verb", "noun", "action"] = "verb",
    frames: bool = False,
    missing: Missing = "error",
) -> VideoList:
    """Returns the narrated actions of a split, each as one video with the narration's id.

    Videos are VIDEO.MP4 in root/PXX/videos, root/videos or root, cut by time. Frames are
    root/PXX/rgb_frames/VIDEO/frame_0000000001.jpg, cut by the numbers of the frames.

    Args:
        root: Folder of the data set; the csv files lie in it, or in its folder annotations or
            epic-kitchens-100-annotations.
        split: train or validation.
        class_names: Names by label; None: those of EPIC_100_verb_classes.csv or
            EPIC_100_noun_classes.csv by their ids; for actions, each pair of a verb and a noun
            that the training or validation csv holds, as `verb noun`, ordered by their ids.
        target: verb, noun or action.
        frames: Whether folders of frames are read rather than videos.
        missing: What to do about listed videos that are not there: error, or skip and say so.

    Raises:
        UsageError: No such split.
        InputError: A file or video is missing, a row does not parse, or a class is not named.
    """
    file = find_file(root, PLACES, [choose(split, SPLITS)])
    rows = read_table(file, COLUMNS)
    lists = {kind: _names(root, kind) for kind in ("verb", "noun") if target in (kind, "action")}
    own_names = _pairs(root, lists) if target == "action" else lists[target]
    names = tuple(class_names) if class_names is not None else own_names
    label_of = indexer(names, file)
    listed, useless = [], 0
    for where, row in rows:
        label = label_of(_name(row, lists, where))
        participant, name = row["participant_id"], row["video_id"]
        video = _part(row, label, where, frames=frames)
        if video is None:
            useless += 1
        else:
            middle = "rgb_frames" if frames else "videos"
            places = (name, f"{participant}/{middle}/{name}", f"{middle}/{name}")
            listed.append(Segment(video, places))
    say_left_out(useless, file)
    folder = find_folder(root, ["."])
    found = _listing(folder, {row["participant_id"] for _, row in rows}, frames=frames)
    videos = place(listed, found, file=file, folder=folder, missing=missing)
    return VideoList(videos=videos, class_names=names)


def _part(row: dict[str, str], label: int, where: str, *, frames: bool) -> Video | None:
    """Returns the part of a video that a row describes, without its path; None if it is empty."""
    try:
        if frames:
            first, stop = int(row["start_frame"]), int(row["stop_frame"])
            if not 1 <= first < stop:
                return None
            # The frames' files are numbered from 1.
            return Video("", label, row["narration_id"], num_frames=stop - first,
                         first_frame=first - 1)  # fmt: skip
        start, end = _seconds(row["start_timestamp"]), _seconds(row["stop_timestamp"])
    except ValueError as error:
        raise InputError(f"{where}: {error}; fetch the file again") from None
    if not is_span(start, end):
        return None
    return Video("", label, row["narration_id"], start=start, end=end)


def _seconds(text: str) -> float:
    """Returns the seconds of a time such as 00:01:02.63."""
    match = TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a time as 00:00:03.29")
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def _names(root: str, kind: str) -> tuple[str, ...]:
    """Returns the names of the verbs or nouns by their ids."""
    stem = f"EPIC_100_{kind}_classes"
    file = find_file(root, PLACES, [f"{stem}.csv", f"{stem}_v2.csv"])
    numbers = {}
    for where, row in read_table(file, ("id", "key")):
        if not row["id"].isdecimal():
            raise InputError(f"{where}: the id {row['id']!r} is no number; fetch the file again")
        numbers[row["key"]] = int(row["id"])
    return ordered_names(numbers, file)


def _name(row: dict[str, str], lists: dict[str, tuple[str, ...]], where: str) -> str:
    """Returns the name of a row's verb, noun, or verb and noun."""
    words = []
    for kind, names in lists.items():
        number = row[f"{kind}_class"]
        if not (number.isdecimal() and int(number) < len(names)):
            raise InputError(
                f"{where}: {kind}_class {number!r} is not one of the {len(names)} classes of "
                f"EPIC_100_{kind}_classes.csv; fetch both files again"
            )
        words.append(names[int(number)])
    return " ".join(words)


def _pairs(root: str, lists: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Returns the actions of both splits, so that they have the same labels in each."""
    found = {}
    for name in dict.fromkeys(SPLITS.values()):
        for where, row in read_table(find_file(root, PLACES, [name]), COLUMNS):
            action = _name(row, lists, where)
            found[action] = int(row["verb_class"]), int(row["noun_class"])
    return tuple(sorted(found, key=lambda action: found[action]))


def _listing(root: Path, participants: set[str], *, frames: bool) -> dict[str, str]:
    """Returns the videos, or folders of frames, by their path without a suffix below root."""
    middle = "rgb_frames" if frames else "videos"
    found = listing(root)
    for folder in (middle, *(f"{name}/{middle}" for name in sorted(participants))):
        if (root / folder).is_dir():
            below = listing(root / folder)
            found |= {f"{folder}/{name}": path for name, path in below.items()}
    return found
