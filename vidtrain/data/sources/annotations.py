"""What the sources of published data sets share: where files lie, which are there, which class.

Existence is looked up in listings, one per folder: a look at each of 240 000 files takes minutes
on a network disk.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vidtrain.data.sources.class_names import read_lines
from vidtrain.data.sources.folder import VIDEO_SUFFIXES
from vidtrain.data.video import Video
from vidtrain.errors import InputError, UsageError

Missing = Literal["error", "skip"]


class Entry(NamedTuple):
    """One video that an annotation file lists.

    Attributes:
        id: Unique name.
        label: Class index.
        places: Where it may lie, as keys of `listing`.
    """

    id: str
    label: int
    places: tuple[str, ...]


def choose(split: str, known: dict[str, str]) -> str:
    """Returns what a split is called in the annotation files.

    Raises:
        UsageError: There is no such split.
    """
    if split not in known:
        raise UsageError(
            f"this data set has the splits {', '.join(known)}, not {split!r}; set data.train and "
            "data.val"
        )
    return known[split]


def find_folder(root: str, names: Sequence[str]) -> Path:
    """Returns the first of root/NAME that is a folder; "." is root itself.

    Raises:
        InputError: None is.
    """
    for name in names:
        if (Path(root) / name).is_dir():
            return Path(os.path.abspath(Path(root) / name))
    if not Path(root).is_dir():
        raise InputError(f"data.root={root} is no folder; set it to the folder of the data set")
    raise InputError(
        f"there is no folder {' or '.join(names)} in {root}; put the videos there or correct "
        "data.root"
    )


def check_split_number(number: int) -> None:
    """Refuses a number that is none of the three official splits.

    Raises:
        UsageError: It is not 1, 2 or 3.
    """
    if number not in (1, 2, 3):
        raise UsageError(f"data.source.split_number={number} must be 1, 2 or 3")


def find_file(root: str, folders: Sequence[str], names: Sequence[str]) -> Path:
    """Returns the first of root/FOLDER/NAME that is a file, by name first.

    Raises:
        InputError: None is.
    """
    for name in names:
        for folder in folders:
            if (Path(root) / folder / name).is_file():
                return Path(root) / folder / name
    others = ", ".join(folder for folder in folders if folder != ".")
    raise InputError(
        f"there is no {' or '.join(names)} in {root} or its folders {others}; put the official "
        "annotation file there or correct data.root"
    )


def listing(folder: Path, subfolders: Iterable[str] = ()) -> dict[str, str]:
    """Returns the path of each video and frame folder by its name without a video's suffix.

    Nothing is opened: each folder is listed once.

    Args:
        folder: Absolute path.
        subfolders: Folders in it to list too, where they are; their videos are `SUBFOLDER/NAME`.

    Raises:
        InputError: A folder cannot be listed.
    """
    found: dict[str, str] = {}
    _list_into(found, str(folder), "")
    for name in dict.fromkeys(subfolders):
        if name in found:
            _list_into(found, found[name], f"{name}/")
    return found


def _list_into(found: dict[str, str], folder: str, prefix: str) -> None:
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise InputError(f"cannot list the folder {folder}: {error.strerror}") from error
    for name in names:
        stem, suffix = os.path.splitext(name)
        key = stem if suffix.lower() in VIDEO_SUFFIXES else name
        found.setdefault(prefix + key, f"{folder}/{name}")


def split_file(root: str, split: str) -> Path:
    """Returns the list file that a split names: relative to root or to the working folder.

    Raises:
        InputError: There is none.
    """
    places = (Path(root) / split, Path(split))
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(
            f"there is no list file {split!r} (looked for {places[0]} and {places[1].resolve()}); "
            "set data.train and data.val"
        )
    return file


def looker() -> Callable[[str], bool]:
    """Returns a function that tells whether a path exists; it lists each folder once."""
    listed: dict[str, set[str]] = {}

    def exists(path: str) -> bool:
        folder, name = os.path.split(path)
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(folder))
            except OSError:
                listed[folder] = set()
        # Some disks spell accents in another way than the list; few paths get here.
        return name in listed[folder] or os.path.exists(path)

    return exists


def gather(
    entries: Sequence[Entry], found: dict[str, str], *, file: Path, folder: Path, missing: Missing
) -> tuple[Video, ...]:
    """Returns the videos of the entries, in their order.

    Args:
        entries: What the annotation file lists.
        found: Paths as `listing` returns them.
        file: The annotation file, for messages.
        folder: The folder of the videos, for messages.
        missing: error refuses a split with missing videos; skip leaves them out and says so on
            standard error.

    Raises:
        InputError: Nothing listed, a video listed twice, a missing video, or nothing there at all.
    """
    if not entries:
        raise InputError(f"{file} lists no video of this split; check the file")
    videos: dict[str, Video] = {}
    gone: list[str] = []
    for entry in entries:
        place = next((place for place in entry.places if place in found), None)
        if place is None:
            gone.append(entry.places[0])
        elif entry.id in videos:
            raise InputError(f"{file} lists {entry.id} twice; remove one of the lines")
        else:
            videos[entry.id] = Video(found[place], entry.label, entry.id)
    report_missing(gone, len(entries), file=file, folder=folder, missing=missing)
    return tuple(videos.values())


def report_missing(
    gone: Sequence[str], total: int, *, file: Path, folder: Path, missing: Missing
) -> None:
    """Refuses missing videos, or says on standard error that they are left out; see `gather`."""
    if not gone:
        return
    examples = f"{', '.join(gone[:3])}{', ...' * (len(gone) > 3)}"
    if len(gone) == total:
        raise InputError(
            f"none of the {total} videos that {file} lists is in {folder} (looked for {examples}); "
            "correct data.root, or move the videos there"
        )
    counted = f"{len(gone)} of the {total} videos ({len(gone) / total:.2%}) that {file} lists"
    if missing == "error":
        raise InputError(
            f"{counted} are not in {folder}: {examples}; fetch them, or leave them out with "
            "data.source.missing=skip"
        )
    print(f"left out: {counted} are not in {folder}: {examples}", file=sys.stderr)


def indexer(class_names: Sequence[str], file: Path) -> Callable[[str], int]:
    """Returns a function from the name of a class to its label.

    Case, spaces, underscores and square brackets make no difference: tools spell names in several
    ways.

    Raises:
        InputError: The function: the class is not one of the names.
    """
    exact = {name: label for label, name in enumerate(class_names)}
    labels = {plain(name): label for label, name in reversed(list(enumerate(class_names)))}

    def index(name: str) -> int:
        label = exact.get(name, labels.get(plain(name)))
        if label is None:
            raise InputError(
                f"{file} holds the class {name!r}, which is not one of the {len(class_names)} "
                f"known classes ({', '.join(class_names[:5])}{', ...' * (len(class_names) > 5)}); "
                "correct data.classes, or train with this class"
            )
        return label

    return index


def plain(name: str) -> str:
    """Returns a class name in the one spelling that is compared."""
    return name.strip().replace("_", " ").replace("[", "").replace("]", "").casefold()


def read_pairs(file: Path) -> list[tuple[str, str]]:
    """Returns the fields of a file of `ID;CLASS` lines.

    Raises:
        InputError: A line has no class, as in a test split.
    """
    pairs = []
    for number, line in enumerate(read_lines(file), start=1):
        name, _, label = line.strip().partition(";")
        if not label:
            raise InputError(
                f"{file}, line {number}: {line.strip()!r} is not `ID;CLASS`; a test split without "
                "labels cannot be evaluated, use the validation split"
            )
        pairs.append((name, label))
    return pairs


def read_json(file: Path) -> Any:
    """Returns what a JSON file holds.

    Raises:
        InputError: It is not JSON.
    """
    try:
        return json.loads(file.read_text("utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}; fetch it again") from error


def ordered_names(numbers: dict[str, int], file: Path) -> tuple[str, ...]:
    """Returns class names in the order of their numbers, which must count up from 0.

    Raises:
        InputError: They do not.
    """
    names = sorted(numbers, key=lambda name: numbers[name])
    if [numbers[name] for name in names] != list(range(len(names))) or not names:
        raise InputError(f"{file}: the classes are not numbered 0, 1, 2, ...; fetch it again")
    return tuple(names)
