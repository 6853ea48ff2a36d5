"""UCF101: classInd.txt, trainlist0N.txt and testlist0N.txt."""

import re
from collections.abc import Sequence

from vidtrain.data.sources.annotations import (
    Entry,
    Missing,
    check_split_number,
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

LISTS = (
    ".", "ucfTrainTestlist", "UCF101TrainTestSplits-RecognitionTask/ucfTrainTestlist",
    "annotations", "splits",
)  # fmt: skip


def ucf101(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    split_number: int = 1,
    missing: Missing = "error",
) -> VideoList:
    """Returns the videos of one of the three official splits.

    The class is the folder that the list names (the test lists hold nothing else); videos are
    CLASS/v_CLASS_gNN_cNN.avi, or without the class folder, in root/UCF-101, root/videos or root.

    Args:
        root: Folder of the data set.
        split: train or test.
        class_names: Names by label; None: those of classInd.txt.
        split_number: 1, 2 or 3.
        missing: What to do about listed videos that are not there: error, or skip and say so.

    Raises:
        UsageError: No such split.
        InputError: A file or video is missing, a line does not parse, or a class is not named.
    """
    kind = choose(split, {"train": "trainlist", "test": "testlist"})
    check_split_number(split_number)
    index_file = find_file(root, LISTS, ["classInd.txt"])
    numbers: dict[str, int] = {}
    for line in read_lines(index_file):
        match = re.fullmatch(r"(\d+) (\S+)\s*", line)
        if match is None:
            raise InputError(f"{index_file}: {line!r} is not `number class`; fetch it again")
        numbers[match[2]] = int(match[1]) - 1  # the file counts from 1
    own_names = ordered_names(numbers, index_file)
    classes = tuple(class_names) if class_names is not None else own_names
    file = find_file(root, LISTS, [f"{kind}0{split_number}.txt"])
    label_of = indexer(classes, file)
    entries = []
    for number, line in enumerate(read_lines(file), start=1):
        match = re.fullmatch(r"(\S+)/(\S+)\.\w+(?: (\d+))?\s*", line)
        if match is None or (match[3] and numbers.get(match[1]) != int(match[3]) - 1):
            raise InputError(
                f"{file}, line {number}: {line.strip()!r} is not `CLASS/video.avi number` with the "
                f"number of {index_file.name}"
            )
        name = f"{match[1]}/{match[2]}"
        entries.append(Entry(name, label_of(match[1]), (name, match[2])))
    place = find_folder(root, ["UCF-101", "UCF101", "videos", "."])
    videos = gather(entries, listing(place, own_names), file=file, folder=place, missing=missing)
    return VideoList(videos=videos, class_names=classes)
