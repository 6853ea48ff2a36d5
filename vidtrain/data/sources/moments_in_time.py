"""Moments in Time: moments_categories.txt, trainingSet.csv and validationSet.csv."""

import csv
from collections.abc import Sequence

from vidtrain.data.sources.annotations import (
    Entry,
    Missing,
    choose,
    find_file,
    find_folder,
    gather,
    indexer,
    listing,
    ordered_names,
)
from vidtrain.data.sources.class_names import read_lines
from vidtrain.data.video import VideoList
from vidtrain.errors import InputError


def moments_in_time(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    missing: Missing = "error",
) -> VideoList:
    """Returns the videos of a split; each lies in root/training/CLASS or root/validation/CLASS.

    A line of the lists is `CLASS/video.mp4,class,votes for,votes against`; one of the categories
    is `class,number`.

    Args:
        root: Folder of the data set.
        split: train or val.
        class_names: Names by label; None: those of moments_categories.txt.
        missing: What to do about listed videos that are not there: error, or skip and say so.

    Raises:
        UsageError: No such split.
        InputError: A file or video is missing, a line does not parse, or a class is not named.
    """
    part = choose(split, {"train": "training", "val": "validation"})
    folders = (".", "annotations")
    if class_names is None:
        names_file = find_file(root, folders, ["moments_categories.txt"])
        numbers: dict[str, int] = {}
        for line in filter(str.strip, read_lines(names_file)):
            name, _, number = line.rpartition(",")
            if not name or not number.strip().isdecimal():
                raise InputError(f"{names_file}: {line!r} is not `class,number`; fetch it again")
            numbers[name.strip()] = int(number)
        class_names = ordered_names(numbers, names_file)
    file = find_file(root, folders, [f"{part}Set.csv"])
    label_of = indexer(class_names, file)
    entries = []
    lines = csv.reader(read_lines(file))
    for row in lines:
        if len(row) < 2 or "/" not in row[0]:
            raise InputError(
                f"{file}, line {lines.line_num}: {','.join(row)!r} is not "
                "`CLASS/video.mp4,class,votes,votes`"
            )
        entries.append(Entry(row[0], label_of(row[1]), (row[0].rpartition(".")[0],)))
    place = find_folder(root, [part])
    below = (entry.id.rpartition("/")[0] for entry in entries)
    videos = gather(entries, listing(place, below), file=file, folder=place, missing=missing)
    return VideoList(videos=videos, class_names=tuple(class_names))
