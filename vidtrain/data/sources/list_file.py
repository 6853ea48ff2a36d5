"""A text file with one video a line: `path label`, or `path num_frames label`."""

import re
from collections.abc import Sequence
from pathlib import Path

from vidtrain.data.sources.class_names import read_lines
from vidtrain.data.video import Video, VideoList
from vidtrain.errors import InputError

LINE = re.compile(r"^(?P<path>.+?)[\s,]+(?:(?P<frames>\d+)[\s,]+)?(?P<label>-?\d+)$")


def list_file(root: str, *, split: str, class_names: Sequence[str] | None = None) -> VideoList:
    """Returns the videos that a list names; files and frame folders may be mixed.

    Fields are separated by spaces, tabs or commas; a path may hold spaces. Blank lines and lines
    that start with # are left out. Without class names there are as many classes as the highest
    label of this list plus one, named by their number.

    Args:
        root: Folder that the paths are relative to.
        split: The list file: absolute, relative to root, or relative to the working folder.
        class_names: Names by label; None: numbers.

    Raises:
        InputError: No such list, a line that does not parse, a label out of range, a missing or
            repeated video.
    """
    places = (Path(root) / split, Path(split))
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(
            f"there is no list file {split!r} (looked for {places[0]} and {places[1].resolve()}); "
            "set data.train and data.val"
        )
    rows = _rows(file)
    count = len(class_names) if class_names is not None else None
    videos: dict[str, Video] = {}
    for number, line, name, frames, label in rows:
        where = f"{file}, line {number}: {line!r}"
        if label < 0 or (count is not None and label >= count):
            limit = f"0 to {count - 1}" if count is not None else "0 or more"
            raise InputError(
                f"{where}: label {label} is outside the range ({limit}); correct the line, or "
                "name all classes with data.classes"
            )
        path = Path(root) / name
        if not path.exists():
            raise InputError(f"{where}: there is no {path}; correct the line or data.root={root}")
        if name in videos:
            raise InputError(f"{where}: the video is listed twice; remove one of the lines")
        videos[name] = Video(str(path.resolve()), label, name, frames)
    highest = max((video.label for video in videos.values()), default=-1)
    names = tuple(class_names) if class_names is not None else _numbers(highest + 1)
    return VideoList(videos=tuple(videos.values()), class_names=names)


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(label) for label in range(count))


def _rows(file: Path) -> list[tuple[int, str, str, int | None, int]]:
    """Returns (line number, line, path, frames or None, label) of each line."""
    rows = []
    for number, raw in enumerate(read_lines(file), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = LINE.match(line)
        if match is None:
            raise InputError(
                f"{file}, line {number}: {line!r} is neither `path label` nor "
                "`path num_frames label`"
            )
        frames = match["frames"]
        rows.append((number, line, match["path"], int(frames) if frames else None,
                     int(match["label"])))  # fmt: skip
    return rows
