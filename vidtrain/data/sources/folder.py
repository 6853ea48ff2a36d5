"""One folder per class: root/split/class/video."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from vidtrain.data.decode_frames import IMAGE_EXTENSIONS
from vidtrain.data.video import Video, VideoList
from vidtrain.errors import InputError

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp",
)  # fmt: skip


def folder(root: str, *, split: str, class_names: Sequence[str] | None = None) -> VideoList:
    """Returns the videos of root/split, labelled by the folder they are in.

    A video is a file with a video's suffix, or a folder that holds images; anything else is left
    out, which is said on standard error. Classes are the sub-folders of the split in alphabetical
    order, unless names are given.

    Args:
        root: Folder of the data set.
        split: Sub-folder of root; "." where the class folders lie in root itself.
        class_names: Names by label; None: the sub-folders.

    Raises:
        InputError: No such folder, no class in it, an empty class, or a class that is not named.
    """
    place = Path(root) / split
    if not place.is_dir():
        there = sorted(p.name for p in Path(root).glob("*/"))[:10]
        raise InputError(
            f"there is no folder {place}; "
            + (f"{root} holds {', '.join(there)}: set data.train and data.val" if there
               else f"data.root={root} is missing or empty")
        )  # fmt: skip
    found = sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not found:
        raise InputError(f"{place} holds no class folders; put videos into {place}/CLASS/")
    names = tuple(class_names) if class_names is not None else tuple(found)
    strangers = sorted(set(found) - set(names))
    if strangers:
        raise InputError(
            f"{place} holds the class {strangers[0]!r}, which is not one of the "
            f"{len(names)} known classes ({', '.join(names[:10])}{', ...' * (len(names) > 10)}); "
            "rename the folder or train with it"
        )
    videos: list[Video] = []
    left_out: list[str] = []
    for name in found:
        # Listing a folder tells what is a folder, without a look at each file on its disk.
        with os.scandir(place / name) as entries:
            shown = sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
        members: list[str] = []
        for entry in shown:
            (members if _is_video(entry) else left_out).append(entry.name)
        if not members:
            raise InputError(f"{place / name} holds no videos ({', '.join(VIDEO_SUFFIXES)})")
        label = names.index(name)
        real = os.path.realpath(place / name)
        videos += [Video(os.path.join(real, m), label, f"{name}/{m}") for m in members]
    if left_out:
        print(
            f"left out of {place}: {len(left_out)} entries that are no videos, for example "
            f"{left_out[0]}",
            file=sys.stderr,
        )
    return VideoList(videos=tuple(videos), class_names=names)


def _is_video(entry: os.DirEntry[str]) -> bool:
    if Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
        return True
    return entry.is_dir() and any(
        Path(name).suffix.lower() in IMAGE_EXTENSIONS for name in os.listdir(entry.path)
    )
