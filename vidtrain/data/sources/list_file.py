"""A text file with one video a line: `path label`, `path num_frames label`, or columns you name."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from vidtrain.data.sources.annotations import Missing, looker, report_missing, split_file
from vidtrain.data.sources.class_names import read_lines
from vidtrain.data.video import Video, VideoList
from vidtrain.errors import InputError, UsageError

FIELDS = {
    "first_frame": r"[\s,]+(?P<first_frame>\d+)",
    "num_frames": r"[\s,]+(?P<num_frames>\d+)",
    "label": r"[\s,]+(?P<labels>-?\d+)",
    "labels": r"(?P<labels>(?:[\s,]+\d+)*)",
}
EITHER = r"(?P<path>.+?)(?:[\s,]+(?P<num_frames>\d+))?" + FIELDS["label"]


def list_file(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    columns: str | None = None,
    missing: Missing = "error",
) -> VideoList:
    """Returns the videos that a list names; files and frame folders may be mixed.

    Fields are separated by spaces, tabs or commas; a path may hold spaces. Blank lines and lines
    that start with # are left out. Without class names there are as many classes as the highest
    label of this list plus one, named by their number.

    Args:
        root: Folder that the paths are relative to.
        split: The list file: absolute, relative to root, or relative to the working folder.
        class_names: Names by label; None: numbers.
        columns: What a line holds: `path`, then first_frame (from 0) and num_frames where there
            are, then `label`, or `labels` where a video may have several or none. None: `path
            label` or `path num_frames label`.
        missing: What to do about listed videos that are not there: error, or skip and say so.

    Raises:
        UsageError: Unknown columns.
        InputError: No such list, a line that does not parse, a label out of range, a missing or
            repeated video.
    """
    file = split_file(root, split)
    rows = _rows(file, _pattern(columns), columns)
    count = len(class_names) if class_names is not None else None
    exists = looker()
    videos: dict[str, Video] = {}
    gone: list[tuple[str, str]] = []
    for where, row in rows:
        labels = tuple(int(label) for label in re.findall(r"-?\d+", row["labels"]))
        for label in labels:
            if label < 0 or (count is not None and label >= count):
                limit = f"0 to {count - 1}" if count is not None else "0 or more"
                raise InputError(
                    f"{where}: label {label} is outside the range ({limit}); correct the line, or "
                    "name all classes with data.classes"
                )
        video = _video(root, row, labels, multi_label=_is_multi_label(columns))
        if not exists(video.path):
            gone.append((where, video.path))
        elif video.id in videos:
            raise InputError(f"{where}: the video is listed twice; remove one of the lines")
        else:
            videos[video.id] = video
    _report(gone, len(rows), root, file, missing)
    highest = max((max(v.label, *v.labels, -1) for v in videos.values()), default=-1)
    names = tuple(class_names) if class_names is not None else _numbers(highest + 1)
    return VideoList(tuple(videos.values()), names, multi_label=_is_multi_label(columns))


def _report(
    gone: Sequence[tuple[str, str]], total: int, root: str, file: Path, missing: Missing
) -> None:
    """Refuses missing videos with the line of the first, or says that they are left out."""
    if gone and missing == "error":
        more = f" (and {len(gone) - 1} more of {total})" if len(gone) > 1 else ""
        raise InputError(
            f"{gone[0][0]}: there is no {gone[0][1]}{more}; correct the line or data.root={root}, "
            "or leave missing videos out with data.source.missing=skip"
        )
    paths = [path for _, path in gone]
    report_missing(paths, total, file=file, folder=Path(root), missing=missing)


def _numbers(count: int) -> tuple[str, ...]:
    return tuple(str(label) for label in range(count))


def _is_multi_label(columns: str | None) -> bool:
    return columns is not None and columns.split()[-1] == "labels"


def _pattern(columns: str | None) -> re.Pattern[str]:
    """Returns the pattern of a line."""
    if columns is None:
        return re.compile(EITHER)
    path, *others = columns.split() or [""]
    kinds = ["label" in name for name in others]
    if (
        path != "path" or set(others) - set(FIELDS) or len(set(others)) < len(others)
        or kinds != sorted(kinds) or sum(kinds) != 1
    ):  # fmt: skip
        raise UsageError(
            f"data.source.columns={columns!r} must be path, then first_frame and num_frames if "
            "there are any, then label or labels, for example 'path num_frames label'"
        )
    return re.compile("(?P<path>.+?)" + "".join(FIELDS[name] for name in others))


def _rows(
    file: Path, pattern: re.Pattern[str], columns: str | None
) -> list[tuple[str, dict[str, str]]]:
    """Returns where each line stands, and its fields."""
    rows = []
    for number, raw in enumerate(read_lines(file), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        match = pattern.fullmatch(line)
        if match is None:
            form = (
                f"not `{columns}`"
                if columns
                else "neither `path label` nor `path num_frames label`"
            )
            raise InputError(f"{file}, line {number}: {line!r} is {form}")
        rows.append((f"{file}, line {number}: {line!r}", match.groupdict()))
    return rows


def _video(root: str, row: dict[str, str], labels: tuple[int, ...], *, multi_label: bool) -> Video:
    """Returns the video of a line; parts of one video are told apart by their frames."""
    name, first, count = row["path"], row.get("first_frame"), row.get("num_frames")
    frames = int(count) if count else None
    start = int(first or 0)
    end = start + frames if frames is not None else ""
    return Video(
        path=os.path.abspath(os.path.join(root, name)),
        label=labels[0] if labels else -1,
        id=name if first is None else f"{name}[{start}:{end}]",
        num_frames=frames,
        first_frame=start,
        labels=labels if multi_label else (),
    )
