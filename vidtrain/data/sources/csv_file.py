"""A table with a header: a video a line, or a part of one."""

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path

from vidtrain.data.sources.annotations import Missing, looker, report_missing, split_file
from vidtrain.data.sources.class_names import read_lines
from vidtrain.data.video import Video, VideoList
from vidtrain.errors import InputError, UsageError, did_you_mean

DELIMITERS = ",;\t|"


def csv_file(
    root: str,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    path_column: str = "path",
    label_column: str = "label",
    start_column: str | None = None,
    end_column: str | None = None,
    delimiter: str | None = None,
    missing: Missing = "error",
) -> VideoList:
    """Returns the videos of a table; files and frame folders may be mixed.

    Labels are names or numbers. Without class names, names are put in alphabetical order, and
    numbers give as many classes as the highest plus one. Other columns are not looked at.

    Args:
        root: Folder that the paths are relative to.
        split: The file: absolute, relative to root, or relative to the working folder.
        class_names: Names by label; None: those of this file.
        path_column: Header of the paths.
        label_column: Header of the labels.
        start_column: Header of where the part to use begins, seconds; an empty cell or None: at
            the beginning.
        end_column: Header of where it ends, seconds; an empty cell or None: at the end.
        delimiter: Character between two fields; None: the one of comma, semicolon, tab and bar
            that splits the header.
        missing: What to do about listed videos that are not there: error, or skip and say so.

    Raises:
        UsageError: The delimiter is not one character.
        InputError: No such file or column, a line that does not parse, an unknown class, a missing
            or repeated video.
    """
    if delimiter is not None and len(delimiter) != 1:
        raise UsageError(f"data.source.delimiter={delimiter!r} must be one character")
    file = split_file(root, split)
    wanted = [path_column, label_column, *(c for c in (start_column, end_column) if c is not None)]
    rows = _rows(file, wanted, delimiter)
    names, labels = _classes({row[label_column] for _, row in rows}, class_names, file)
    exists = looker()
    videos: dict[str, Video] = {}
    gone = []
    for where, row in rows:
        name = row[path_column]
        start, end = _part(row, (start_column, end_column), where)
        path = os.path.abspath(os.path.join(root, name))
        if not name or not exists(path):
            gone.append(path)
            continue
        part = start is not None or end is not None
        key = f"{name}[{start or 0:g}:{'' if end is None else f'{end:g}'}]" if part else name
        if key in videos:
            raise InputError(f"{where}: {key} is listed twice; remove one of the lines")
        videos[key] = Video(path, labels[row[label_column]], key, start=start, end=end)
    report_missing(gone, len(rows), file=file, folder=Path(root), missing=missing)
    return VideoList(videos=tuple(videos.values()), class_names=names)


def _rows(
    file: Path, wanted: Sequence[str], delimiter: str | None
) -> list[tuple[str, dict[str, str]]]:
    """Returns where each line stands, and its fields by column."""
    lines = read_lines(file)
    first = lines[0] if lines else ""
    if delimiter is None:
        delimiter = max(DELIMITERS, key=lambda d: len(_split(first, d) & set(wanted)))
    reader = csv.reader(lines, delimiter=delimiter)
    header = [name.strip() for name in next(reader, [])]
    for name in wanted:
        if name not in header:
            hint = did_you_mean(name, header) or "name it with data.source.path_column=, ..."
            raise InputError(
                f"{file} has no column {name!r}, its first line is {first!r} (split at "
                f"{delimiter!r}); {hint}"
            )
    rows = []
    for fields in reader:
        where = f"{file}, line {reader.line_num}"
        if fields and len(fields) != len(header):
            raise InputError(
                f"{where}: {len(fields)} fields under {len(header)} headers; put fields that hold "
                f"{delimiter!r} into double quotes"
            )
        if fields:
            rows.append((where, dict(zip(header, map(str.strip, fields), strict=True))))
    return rows


def _split(line: str, delimiter: str) -> set[str]:
    return {name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])}


def _classes(
    found: set[str], class_names: Sequence[str] | None, file: Path
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Returns the class names, and the class of each label: all are names, or all are numbers."""
    if "" in found:
        raise InputError(f"{file} has lines without a label; fill them in or remove them")
    numbers = {label: int(label) for label in found if re.fullmatch(r"[0-9]+", label)}
    are_numbers = len(numbers) == len(found)
    if class_names is not None:
        names = tuple(class_names)
    elif are_numbers:
        names = tuple(str(label) for label in range(max(numbers.values(), default=-1) + 1))
    else:
        names = tuple(sorted(found))
    strangers = sorted(found - set(names))
    if not strangers:
        return names, {name: names.index(name) for name in found}
    if are_numbers and max(numbers.values()) < len(names):
        return names, numbers
    raise InputError(
        f"{file} holds the label {strangers[0]!r}, which is neither one of the {len(names)} known "
        f"classes ({', '.join(names[:5])}{', ...' * (len(names) > 5)}) nor the number of one; "
        "correct it or data.classes"
    )


def _part(
    row: dict[str, str], columns: tuple[str | None, str | None], where: str
) -> tuple[float | None, float | None]:
    """Returns start and end in seconds; None for an empty cell and where there is no column."""
    times: list[float | None] = []
    for column in columns:
        cell = row[column] if column is not None else ""
        if cell and not re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", cell):
            raise InputError(f"{where}: {column}={cell!r} is not a time in seconds from 0 up")
        times.append(float(cell) if cell else None)
    start, end = times
    if end is not None and end <= (start or 0):
        raise InputError(f"{where}: the part ends at {end} s, not after its start; correct it")
    return start, end
