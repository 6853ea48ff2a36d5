"""Class names from a text file, shared by all sources."""

from pathlib import Path

from vidtrain.errors import InputError


def read_lines(file: Path) -> list[str]:
    """Returns the lines of a text file, UTF-8 with or without a byte-order mark.

    Raises:
        InputError: It is not UTF-8 text.
    """
    try:
        return file.read_text("utf-8-sig").rstrip().splitlines()
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        raise InputError(f"{file}, line {line}: not UTF-8 text; save the file as UTF-8") from error


def read_class_names(path: str, root: str) -> tuple[str, ...]:
    """Returns the lines of a class file, in order; the line number (from 0) is the label.

    Args:
        path: Text file, absolute, or relative to the data root or to the working folder.
        root: Root of the data set.

    Raises:
        InputError: The file is missing, empty, or holds a name twice.
    """
    candidates = [Path(root) / path, Path(path)]
    file = next((c for c in candidates if c.is_file()), None)
    if file is None:
        tried = " and ".join(str(c) for c in candidates)
        raise InputError(f"data.classes={path!r} is not a file (looked for {tried})")
    names = tuple(line.strip() for line in read_lines(file))
    if not names:
        raise InputError(f"data.classes={file} holds no class name; write one a line")
    if "" in names:
        raise InputError(
            f"data.classes={file}, line {names.index('') + 1} is blank: the line number is the "
            "label; remove the line or name the class"
        )
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"data.classes={file} holds {', '.join(twice)} more than once")
    return names
