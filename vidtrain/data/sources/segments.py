"""What the sources of time segments share."""

import csv
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from vidtrain.data.sources.annotations import Missing, report_missing
from vidtrain.data.video import Video
from vidtrain.errors import InputError


class Segment(NamedTuple):
    """A part of a video that an annotation file lists.

    Attributes:
        video: What the list of videos holds of it; its path is filled in by `place`.
        places: Where its file may lie, as keys of `annotations.listing`.
    """

    video: Video
    places: tuple[str, ...]


def is_span(start: float, end: float) -> bool:
    """Whether there is time between two times in seconds, the first not before the video."""
    return 0 <= start < end < math.inf


def say_left_out(count: int, file: Path) -> None:
    """Says on standard error how many annotations no frames can be taken from."""
    if count:
        print(
            f"left out of {file}: {count} annotations that end before they begin, or stand there "
            "twice",
            file=sys.stderr,
        )


def place(
    segments: Sequence[Segment], found: dict[str, str], *, file: Path, folder: Path,
    missing: Missing,
) -> tuple[Video, ...]:  # fmt: skip
    """Returns the videos of the segments, in their order, with their paths.

    Args:
        segments: What the annotation file lists.
        found: Paths as `annotations.listing` returns them.
        file: The annotation file, for messages.
        folder: The folder of the videos, for messages.
        missing: error refuses a split with missing files; skip leaves them out and says so.

    Raises:
        InputError: Nothing listed, an id listed twice, a missing file, or none there at all.
    """
    if not segments:
        raise InputError(f"{file} lists no video of this split; check the file")
    videos: dict[str, Video] = {}
    gone: dict[str, None] = {}
    for video, places in segments:
        path = next((found[name] for name in places if name in found), None)
        if path is None:
            gone[places[0]] = None
        elif video.id in videos:
            raise InputError(f"{file} lists {video.id} twice; remove one of the lines")
        else:
            videos[video.id] = replace(video, path=path)
    total = len({places[0] for _, places in segments})
    report_missing(list(gone), total, file=file, folder=folder, missing=missing)
    return tuple(videos.values())


def read_table(file: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Returns (`FILE, line N`, fields by column) of each row of a csv file with a header.

    Raises:
        InputError: A column is missing, a row has too few fields, or it is not UTF-8 text.
    """
    rows = []
    try:
        with open(file, encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            absent = [name for name in columns if name not in (reader.fieldnames or ())]
            if absent:
                raise InputError(
                    f"{file} has no column {absent[0]}; it must have {', '.join(columns)} (test "
                    "splits without labels cannot be used)"
                )
            for row in reader:
                where = f"{file}, line {reader.line_num}"
                if any(row[name] is None for name in columns):
                    raise InputError(f"{where}: too few fields; fetch the file again")
                rows.append((where, row))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} is not a csv file in UTF-8: {error}; fetch it again") from error
    return rows
