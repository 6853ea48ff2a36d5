"""Jester: csv files of `ID;CLASS`, a folder of frames for each video."""

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
    read_pairs,
)
from vidtrain.data.sources.class_names import read_lines
from vidtrain.data.video import VideoList

FOLDERS = (".", "annotations", "labels", "20bn-jester-v1/annotations")


def jester(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    missing: Missing = "error",
) -> VideoList:
    """Returns the videos of a split: the folders 20bn-jester-v1/ID of images 00001.jpg, ...

    Args:
        root: Folder of the data set.
        split: train or val; the test split has no labels.
        class_names: Names by label; None: the lines of jester-v1-labels.csv.
        missing: What to do about listed videos that are not there: error, or skip and say so.

    Raises:
        UsageError: No such split.
        InputError: A file, label or video is missing, or a class is not named.
    """
    part = choose(split, {"train": "train", "val": "validation", "test": "test"})
    file = find_file(root, FOLDERS, [f"jester-v1-{part}.csv"])
    rows = read_pairs(file)
    if class_names is None:
        names_file = find_file(root, FOLDERS, ["jester-v1-labels.csv"])
        class_names = [line.strip() for line in read_lines(names_file) if line.strip()]
    label_of = indexer(class_names, file)
    entries = [Entry(name, label_of(label), (name,)) for name, label in rows]
    place = find_folder(root, ["20bn-jester-v1", "frames", "rawframes", "videos", "."])
    videos = gather(entries, listing(place), file=file, folder=place, missing=missing)
    return VideoList(videos=videos, class_names=tuple(class_names))
