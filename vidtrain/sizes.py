"""Counted sizes of networks, remembered: counting sixty takes half a minute of two cores."""

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vidtrain
from vidtrain.models.counting import Size
from vidtrain.models.weights.cache import cache_folder

LIBRARIES = ("torch", "torchvision", "timm", "transformers", "pytorchvideo")


def remembered(build: dict[str, Any], facts: dict[str, int], count: Callable[[], Size]) -> Size:
    """Returns the size of a network, counted at most once for one state of the code.

    Only sizes of this package's own networks are kept: whether somebody's code changed is unknown.

    Args:
        build: The node that builds the network.
        facts: What else the size depends on: classes, frames, crop.
        count: Counts it.
    """
    if not str(build.get("_target_", "")).startswith("vidtrain.models."):
        return count()
    text = json.dumps([build, facts, _code()], sort_keys=True, default=str)
    file = (
        cache_folder().parent / "sizes" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    )
    with contextlib.suppress(OSError, ValueError, TypeError):
        return Size(**json.loads(file.read_text("utf-8")))
    size = count()
    with contextlib.suppress(OSError):  # a folder that may only be read: it is counted again
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as part:
            json.dump(size.__dict__, part)
        os.replace(part.name, file)
    return size


@functools.cache
def _code() -> list[str]:
    """Returns what tells one state of the code from another."""
    return [*(f"{name} {version(name)}" for name in LIBRARIES), *_sources()]


def _sources() -> Iterator[str]:
    folder = Path(vidtrain.__file__).parent / "models"
    for path in sorted(folder.glob("*.py")):
        yield hashlib.sha256(path.read_bytes()).hexdigest()
