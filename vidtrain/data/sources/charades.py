"""Charades: whole videos with several classes each, or one video for each action."""

import re
from collections.abc import Sequence
from pathlib import Path

from vidtrain.data.sources.annotations import (
    Missing,
    choose,
    find_file,
    find_folder,
    indexer,
    listing,
)
from vidtrain.data.sources.class_names import read_lines
from vidtrain.data.sources.segments import Segment, is_span, place, read_table, say_left_out
from vidtrain.data.video import Video, VideoList
from vidtrain.errors import InputError

PLACES = (".", "annotations", "Charades")
SPLITS = {"train": "Charades_v1_train.csv", "test": "Charades_v1_test.csv"}


def charades(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    segments: bool = False,
    missing: Missing = "error",
) -> VideoList:
    """Returns the videos of a split with all their classes, or their actions as segments.

    Videos are ID.mp4, of any video suffix, in root/Charades_v1, root/Charades_v1_480, root/videos
    or root; the first of these folders that is there is used. A video without actions has the
    label -1 and no labels.

    Args:
        root: Folder of the data set; the csv files and Charades_v1_classes.txt lie in it, or in
            its folder annotations or Charades.
        split: train or test.
        class_names: Names by label; None: those of Charades_v1_classes.txt.
        segments: Take each action from its start to its end as a video of one class, with the id
            `ID_k` for action k of a video, from 0; otherwise a video has the classes of all.
        missing: What to do about listed videos that are not there: error, or skip and say so.

    Raises:
        UsageError: No such split.
        InputError: A file or video is missing, a row does not parse, or a class is not named.
    """
    file = find_file(root, PLACES, [choose(split, SPLITS)])
    codes = _codes(find_file(root, PLACES, ["Charades_v1_classes.txt"]))
    names = tuple(class_names) if class_names is not None else tuple(codes.values())
    label_of = indexer(names, file)
    listed, useless = [], 0
    for where, row in read_table(file, ("id", "actions")):
        key = row["id"]
        actions = [_action(text, where) for text in row["actions"].split(";") if text]
        unknown = next((code for code, _, _ in actions if code not in codes), None)
        if unknown is not None:
            raise InputError(f"{where}: class {unknown!r} is not in Charades_v1_classes.txt")
        if not segments:
            labels = tuple(sorted({label_of(codes[code]) for code, _, _ in actions}))
            listed.append(Segment(Video("", min(labels, default=-1), key, labels=labels), (key,)))
            continue
        for k, (code, start, end) in enumerate(actions):
            if is_span(start, end):
                part = Video("", label_of(codes[code]), f"{key}_{k}", start=start, end=end)
                listed.append(Segment(part, (key,)))
            else:
                useless += 1
    say_left_out(useless, file)
    folder = find_folder(root, ["Charades_v1", "Charades_v1_480", "videos", "."])
    videos = place(listed, listing(folder), file=file, folder=folder, missing=missing)
    return VideoList(videos=videos, class_names=names, multi_label=not segments)


def _codes(file: Path) -> dict[str, str]:
    """Returns the names of the classes by their codes, such as c008."""
    codes = {}
    for number, line in enumerate(read_lines(file), start=1):
        match = re.fullmatch(r"(c\d+) (.+)", line.strip())
        if match is None:
            raise InputError(f"{file}, line {number}: {line!r} is not `c000 name of the class`")
        codes[match[1]] = match[2]
    return codes


def _action(text: str, where: str) -> tuple[str, float, float]:
    """Returns the class code, start and end in seconds of `c092 11.90 21.20`."""
    try:
        code, start, end = text.split()
        return code, float(start), float(end)
    except ValueError:
        raise InputError(
            f"{where}: the action {text!r} is not `class start end`; fetch the file again"
        ) from None
