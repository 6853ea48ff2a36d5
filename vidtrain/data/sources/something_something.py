"""Something-Something V2, in the file names of both releases."""

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
    read_json,
    read_pairs,
)
from vidtrain.data.video import VideoList
from vidtrain.errors import InputError

FOLDERS = (".", "labels", "annotations")
VIDEOS = ("20bn-something-something-v2", "videos", "frames", "rawframes", ".")


def something_something(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    missing: Missing = "error",
) -> VideoList:
    """Returns the videos of a split: ID.webm, another video file, or a folder of frames named ID.

    Annotations are something-something-v2-{labels,train,validation,test}.json in root, or labels/
    {labels,train,validation,test}.json. The class is the template without its square brackets. The
    test split has labels only in the second release (labels/test-answers.csv).

    Args:
        root: Folder of the data set.
        split: train, val or test.
        class_names: Names by label; None: those of the labels file.
        missing: What to do about listed videos that are not there: error, or skip and say so.

    Raises:
        UsageError: No such split.
        InputError: A file, label or video is missing, or a class is not named.
    """
    part = choose(split, {"train": "train", "val": "validation", "test": "test"})
    names = [f"something-something-v2-{part}.json", f"{part}.json"]
    if part == "test":
        names.insert(0, "test-answers.csv")
    file = find_file(root, FOLDERS, names)
    if file.suffix == ".csv":
        rows = read_pairs(file)
    else:
        rows = []
        for row in read_json(file):
            if not isinstance(row, dict) or "id" not in row:
                raise InputError(f"{file}: {row!r} has no id; fetch it again")
            if "template" not in row:
                raise InputError(
                    f"{file}: {row['id']} has no template, the test split comes without labels; "
                    "use the val split, or put test-answers.csv beside it"
                )
            rows.append((str(row["id"]), row["template"]))
    if class_names is None:
        names_file = find_file(root, FOLDERS, ["something-something-v2-labels.json", "labels.json"])
        try:
            numbers = {name: int(number) for name, number in read_json(names_file).items()}
        except (AttributeError, TypeError, ValueError):
            raise InputError(f"{names_file} is not of the form {{template: number}}") from None
        class_names = ordered_names(numbers, names_file)
    label_of = indexer(class_names, file)
    entries = [Entry(name, label_of(template), (name,)) for name, template in rows]
    place = find_folder(root, VIDEOS)
    videos = gather(entries, listing(place), file=file, folder=place, missing=missing)
    return VideoList(videos=videos, class_names=tuple(class_names))
