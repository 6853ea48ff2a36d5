"""HMDB51: a file CLASS_test_splitN.txt for each class."""

import re
from collections.abc import Sequence
from pathlib import Path

from vidtrain.data.sources.annotations import (
    Entry,
    Missing,
    check_split_number,
    choose,
    find_folder,
    gather,
    indexer,
    listing,
)
from vidtrain.data.sources.class_names import read_lines
from vidtrain.data.video import VideoList
from vidtrain.errors import InputError

LISTS = ("testTrainMulti_7030_splits", "test_train_splits", "splits", "annotations", ".")


def hmdb51(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    split_number: int = 1,
    missing: Missing = "error",
) -> VideoList:
    """Returns the videos of one of the three official splits.

    A line is `name.avi 0|1|2`: in neither part, in training, in test. Videos are CLASS/name.avi in
    root/hmdb51_org, root/videos or root.

    Args:
        root: Folder of the data set.
        split: train or test.
        class_names: Names by label; None: the classes that have a file, in alphabetical order.
        split_number: 1, 2 or 3.
        missing: What to do about listed videos that are not there: error, or skip and say so.

    Raises:
        UsageError: No such split.
        InputError: A file or video is missing, a line does not parse, or a class is not named.
    """
    wanted = choose(split, {"train": "1", "test": "2"})
    check_split_number(split_number)
    ending = f"_test_split{split_number}.txt"
    listed = ([*(Path(root) / name).glob(f"*{ending}")] for name in LISTS)
    files = next(filter(None, listed), [])
    if not files:
        raise InputError(
            f"there is no CLASS{ending} in {root} or its folders {', '.join(LISTS[:-1])}; put the "
            "official split files there or correct data.root"
        )
    by_class = {file.name.removesuffix(ending): file for file in files}
    classes = tuple(class_names) if class_names is not None else tuple(sorted(by_class))
    entries = []
    for name, file in sorted(by_class.items()):
        label = indexer(classes, file)(name)
        for number, line in enumerate(read_lines(file), start=1):
            match = re.fullmatch(r"(.+)\.\w+ +([012])\s*", line)
            if match is None:
                raise InputError(f"{file}, line {number}: {line.strip()!r} is not `name.avi 0|1|2`")
            if match[2] == wanted:
                video = f"{name}/{match[1]}"
                entries.append(Entry(video, label, (video, match[1])))
    place = find_folder(root, ["hmdb51_org", "hmdb51", "videos", "."])
    lists = files[0].parent / f"*{ending}"
    videos = gather(entries, listing(place, by_class), file=lists, folder=place, missing=missing)
    return VideoList(videos=videos, class_names=classes)
