"""Which run folders there are, for a person who named one that is not there."""

import difflib
from pathlib import Path

MOST_NAMED = 8


def runs_in(folder: Path) -> list[Path]:
    """Returns the folder itself if it is a run, and the runs directly below, as in a sweep."""
    return [path.parent for path in
            (folder / "metrics.jsonl", *sorted(folder.glob("*/metrics.jsonl")))
            if path.is_file()]  # fmt: skip


def here_are(word: str = "") -> str:
    """Returns `; here are a, b and 3 more` with the runs that there are, or nothing without any.

    Args:
        word: What was named; runs are looked for beside it and in runs/, the most alike come first.
    """
    found: dict[Path, None] = {}
    for place in (Path(word).parent, Path("runs")):
        if place != Path():
            below = sorted(path for path in place.glob("*") if path.is_dir())
            found |= dict.fromkeys(run for folder in below for run in runs_in(folder))
    if not found:
        return ""
    names = [str(run) for run in found]
    if word:
        wanted = str(Path(word))
        names.sort(key=lambda name: -difflib.SequenceMatcher(None, wanted, name).ratio())
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"; here are {', '.join(names[:MOST_NAMED])}{more}"
