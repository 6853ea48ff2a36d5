"""Kinetics-400, -600 and -700: the official csv files, or class folders without them."""

import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vidtrain.data.sources.annotations import (
    Entry,
    Missing,
    find_folder,
    gather,
    indexer,
    listing,
)
from vidtrain.data.sources.class_names import read_lines
from vidtrain.data.sources.folder import folder
from vidtrain.data.video import VideoList
from vidtrain.errors import InputError

SAME = ("val", "validate", "validation")
COLUMNS = ("label", "youtube_id", "time_start", "time_end")


def kinetics(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    annotations: str | None = None,
    missing: Missing = "error",
) -> VideoList:
    """Returns the videos of a split.

    With a csv (label,youtube_id,time_start,time_end,split), each line is the video
    YOUTUBEID_START_END.mp4, seconds with six digits, or YOUTUBEID.mp4, of any video suffix, in
    root/split or root/split/CLASS. Without one, class folders are read. Classes are the labels of
    the split in alphabetical order, as the usual label maps have them; in folder names `_` is a
    space.

    Args:
        root: Folder of the data set.
        split: train, val or test; files and folders of `val` may also be called validate or
            validation.
        class_names: Names by label; None: those of the split.
        annotations: Folder of the csv files; None: root or root/annotations.
        missing: What to do about listed videos that are not there: error, or skip and say so.

    Raises:
        InputError: No videos, no labels, a line that does not parse, missing videos, or a class
            that is not named.
    """
    names = SAME if split in SAME else (split,)
    place = find_folder(
        root, [f"{stem}{name}" for stem in ("", "videos/", "videos_") for name in names]
    )
    file = _csv_file(root, names, annotations)
    if file is None:
        return _class_folders(place, class_names)
    rows = _rows(file)
    found_names = sorted({label for label, _, _ in rows})
    classes = tuple(class_names) if class_names is not None else tuple(found_names)
    label_of = indexer(classes, file)
    labels = {name: label_of(name) for name in found_names}
    spellings = {name: (name, name.replace(" ", "_")) for name in found_names}
    found = listing(place, [folder for both in spellings.values() for folder in both])
    entries = []
    for name, clip, youtube_id in rows:
        below = [f"{folder}/{stem}" for folder in spellings[name] for stem in (clip, youtube_id)]
        entries.append(Entry(clip, labels[name], (clip, youtube_id, *below)))
    videos = gather(entries, found, file=file, folder=place, missing=missing)
    return VideoList(videos=videos, class_names=classes)


def _csv_file(root: str, names: Sequence[str], annotations: str | None) -> Path | None:
    """Returns the csv file of a split: val.csv, kinetics-400_val.csv, kinetics700_validate.csv."""
    pattern = re.compile(rf"(kinetics.*[_-])?({'|'.join(names)})\.csv")
    folders = [Path(root), Path(root) / "annotations"]
    if annotations is not None:
        folders = [Path(root) / annotations]
        if not folders[0].is_dir():
            raise InputError(f"data.source.annotations={annotations!r}: no folder {folders[0]}")
    found = sorted(
        path for place in folders if place.is_dir() for path in place.glob("*.csv")
        if pattern.fullmatch(path.name)
    )  # fmt: skip
    if len(found) > 1:
        raise InputError(
            f"both {found[0]} and {found[1]} may be the list of this split; move one away, or name "
            "the folder with data.source.annotations"
        )
    if not found and annotations is not None:
        raise InputError(f"{folders[0]} holds no {names[0]}.csv; correct data.source.annotations")
    return found[0] if found else None


def _rows(file: Path) -> list[tuple[str, str, str]]:
    """Returns (label, clip name, YouTube id) of each line."""
    lines = csv.reader(read_lines(file))
    header = next(lines, [])
    if header[:1] == ["youtube_id"] and "label" not in header:
        raise InputError(
            f"{file} has no column `label`: this release of the test split has no labels; use the "
            "val split"
        )
    absent = [name for name in COLUMNS if name not in header]
    if absent:
        raise InputError(
            f"{file} has no column {absent[0]} (the first line is {','.join(header)!r}); use the "
            "official csv, or data=list_file for lists of `path label`"
        )
    label, youtube_id, start, end = (header.index(name) for name in COLUMNS)
    rows = []
    for row in lines:
        if not row:
            continue
        try:
            clip = f"{row[youtube_id]}_{int(row[start]):06d}_{int(row[end]):06d}"
        except (ValueError, IndexError):
            raise InputError(
                f"{file}, line {lines.line_num}: {','.join(row)!r} is not {','.join(header)}"
            ) from None
        rows.append((row[label], clip, row[youtube_id]))
    return rows


def _class_folders(place: Path, class_names: Sequence[str] | None) -> VideoList:
    """Returns the videos of class folders, whose names have `_` for a space."""
    try:
        listed = folder(str(place.parent), split=place.name)
    except InputError as error:
        raise InputError(
            f"{error} (there is no csv file either: put the official one into the data root or its "
            "folder annotations)"
        ) from error
    spelled = [name.replace("_", " ") for name in listed.class_names]
    classes = tuple(class_names) if class_names is not None else tuple(sorted(set(spelled)))
    label_of = indexer(classes, place)
    labels = [label_of(name) for name in spelled]
    videos = tuple(replace(video, label=labels[video.label]) for video in listed.videos)
    return VideoList(videos=videos, class_names=classes)
