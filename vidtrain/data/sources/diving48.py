"""Diving48: Diving48_vocab.json, Diving48_V2_train.json and Diving48_V2_test.json."""

from collections.abc import Sequence

from vidtrain.data.sources.annotations import (
    Entry,
    Missing,
    choose,
    find_file,
    find_folder,
    gather,
    listing,
    read_json,
)
from vidtrain.data.video import VideoList
from vidtrain.errors import InputError


def diving48(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    version: str = "V2",
    missing: Missing = "error",
) -> VideoList:
    """Returns the videos of a split; each is VID.mp4 in root/rgb or root/videos, or a frame folder.

    A class is named by the four parts of its dive, as in Back+15som+05Twis+FREE. The files are
    already cut to one dive: start_frame and end_frame are those of the whole file and not used.

    Args:
        root: Folder of the data set.
        split: train or test.
        class_names: Names by label; None: those of the vocabulary.
        version: Of the labels: V2, the cleaned ones.
        missing: What to do about listed videos that are not there: error, or skip and say so.

    Raises:
        UsageError: No such split.
        InputError: A file or video is missing or does not parse, or a label is out of range.
    """
    part = choose(split, {"train": "train", "test": "test"})
    folders = (".", "annotations")
    if class_names is None:
        vocabulary = find_file(root, folders, ["Diving48_vocab.json"])
        try:
            class_names = ["+".join(parts) for parts in read_json(vocabulary)]
        except TypeError:
            raise InputError(f"{vocabulary} is not a list of lists of words") from None
    file = find_file(root, folders, [f"Diving48_{version}_{part}.json"])
    entries = []
    for row in read_json(file):
        try:
            name, label = str(row["vid_name"]), int(row["label"])
        except (TypeError, KeyError, ValueError):
            raise InputError(f"{file}: {row!r} has no vid_name and label") from None
        if not 0 <= label < len(class_names):
            raise InputError(
                f"{file}: the label {label} of {name} is outside the range 0 to "
                f"{len(class_names) - 1}; use the vocabulary of the same version"
            )
        entries.append(Entry(name, label, (name,)))
    place = find_folder(root, ["rgb", "videos", "frames", "rawframes", "."])
    videos = gather(entries, listing(place), file=file, folder=place, missing=missing)
    return VideoList(videos=videos, class_names=tuple(class_names))
