"""The files behind a list of videos, looked up and not read: sizes, counts, what is missing."""

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from vidtrain.data.decode_frames import IMAGE_EXTENSIONS
from vidtrain.data.video import VideoList, split_member

THREADS = 16  # a look-up waits for the disk or the network, not for the processor
CHUNK = 512  # look-ups per task, so that handing them out costs little beside them
MAX_NAMED = 20  # missing videos whose ids are kept

# Bytes of a file or tar member, images of a folder; -1: not there. And whether it is a folder.
Found = tuple[int, bool]


def inventory(listed: VideoList) -> dict[str, Any]:
    """Looks up every file of a split, several at a time.

    Returns:
        Plain JSON values. files: distinct files, tar members and folders of images. bytes: of the
        files and members. images: in the folders. classes: videos by class name. missing: number of
        videos that are not there, hold nothing, or end outside their tar file. missing_first: ids
        of some of them. sizes_sha256: over ids and sizes, in order.
    """
    found = _look_up(dict.fromkeys(video.path for video in listed.videos))
    digest = hashlib.sha256()
    missing = []
    for video in listed.videos:
        size = found[video.path][0]
        digest.update(f"{video.id}\0{size}\n".encode(errors="surrogateescape"))
        if size <= 0:
            missing.append(video.id)
    labels = Counter(label for video in listed.videos for label in video.all_labels)
    return {
        "files": len(found),
        "bytes": sum(max(size, 0) for size, is_folder in found.values() if not is_folder),
        "images": sum(size for size, is_folder in found.values() if is_folder),
        "classes": {name: labels[index] for index, name in enumerate(listed.class_names)},
        "missing": len(missing),
        "missing_first": [_printable(name) for name in missing[:MAX_NAMED]],
        "sizes_sha256": digest.hexdigest(),
    }


def _look_up(paths: Iterable[str]) -> dict[str, Found]:
    members = {path: split_member(path) for path in paths}
    tars = {member[0] for member in members.values() if member}
    plain = [path for path, member in members.items() if not member]
    with ThreadPoolExecutor(THREADS) as pool:
        chunks = list(_chunks([*plain, *tars]))
        found = {
            path: fact
            for chunk, facts in zip(chunks, pool.map(_facts, chunks), strict=True)
            for path, fact in zip(chunk, facts, strict=True)
        }
    for path, member in members.items():
        if member:
            tar, offset, size = member
            found[path] = (size if offset + size <= found[tar][0] else -1, False)
    return {path: found[path] for path in members}


def _chunks(paths: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(paths)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk


def _facts(paths: list[str]) -> list[Found]:
    return [_fact(path) for path in paths]


def _fact(path: str) -> Found:
    try:
        status = os.stat(path)
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size, False
        return sum(name.lower().endswith(IMAGE_EXTENSIONS) for name in os.listdir(path)), True
    except (OSError, ValueError):
        return -1, False


def _printable(name: str) -> str:
    return name.encode(errors="surrogateescape").decode(errors="replace")
