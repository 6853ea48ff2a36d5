"""Official annotation files, where they are at hand, and empty stand-ins for the videos."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest
from conftest import REPO

ANNOTATIONS = REPO.parent / "shared" / "data" / "annots"
needs_annotations = pytest.mark.skipif(
    not ANNOTATIONS.is_dir(), reason="the official annotation files are not on this machine"
)


def put(name: str, place: Path) -> Path:
    """Copies an annotation file to where a data set has it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ANNOTATIONS / name, place)
    return place


def touch(root: Path, names: Iterable[str]) -> None:
    """Makes empty files: sources look at names only."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
