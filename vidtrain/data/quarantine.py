"""The list of bad videos that `vidtrain check` wrote, and a list of videos without them."""

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from vidtrain.data.video import VideoList, split_member
from vidtrain.errors import InputError


def stamp(path: str) -> tuple[int, int] | None:
    """Size in bytes and time of change in ns of what lies at a path; None where nothing does.

    Of a tar member the size is its own and the time that of the tar file. A folder of images has
    the size of all its files and the time of the newest, its own included.
    """
    member = split_member(path)
    try:
        status = os.stat(member[0] if member else path)
        if not os.path.isdir(path):
            return member[2] if member else status.st_size, status.st_mtime_ns
        with os.scandir(path) as entries:
            files = [entry.stat() for entry in entries if entry.is_file()]
    except OSError:
        return None
    times = [status.st_mtime_ns, *(file.st_mtime_ns for file in files)]
    return sum(file.st_size for file in files), max(times)


def read_quarantine(path: str) -> dict[str, dict[str, Any]]:
    """Returns the entries of a quarantine.jsonl by the path of the video.

    Args:
        path: The file: a JSON object a line, with path, id, size, mtime_ns, sha256 and reason.

    Raises:
        InputError: The file cannot be read, or a line is no such entry.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not a text file"
        raise InputError(
            f"data.quarantine={path} cannot be read: {reason}; give the quarantine.jsonl that "
            "`vidtrain check` wrote"
        ) from None
    found = {}
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            found[entry["path"]] = entry
            valid = {"id", "size", "mtime_ns", "reason"} <= entry.keys()
        except (ValueError, KeyError, TypeError):
            valid = False
        if not valid:
            raise InputError(
                f"{path}, line {number}: {line[:80]!r} is not an entry of a quarantine.jsonl; give "
                "the file that `vidtrain check` wrote"
            )
    return found


def leave_out(videos: VideoList, path: str) -> tuple[VideoList, list[str]]:
    """Returns the list without the videos in quarantine, and the ids of those left out.

    A file whose size or time of change is another now has been replaced since it was checked: it
    stays, and a line on standard error says so. Where the data has been moved, files are known by
    their id and size.

    Args:
        videos: The list.
        path: What `vidtrain check` wrote: quarantine.jsonl.

    Raises:
        InputError: The file cannot be read, or nothing remains.
    """
    entries = read_quarantine(path)
    by_id = {entry["id"]: entry for entry in entries.values()}
    for video in videos.videos:  # the data may have been moved since
        entry = by_id.get(video.id)
        if entry is not None and video.path not in entries and not os.path.exists(entry["path"]):
            if (stamp(video.path) or (None,))[0] == entry["size"]:
                entries[video.path] = entry | {"mtime_ns": (stamp(video.path) or (0, 0))[1]}
    listed = [video.path for video in videos.videos if video.path in entries]
    replaced = set()
    for name in dict.fromkeys(listed):
        now, entry = stamp(name), entries[name]
        if now is not None and now != (entry["size"], entry["mtime_ns"]):
            replaced.add(name)
            print(
                f"vidtrain: {name} was in quarantine ({entry['reason']}) and has changed since, so "
                "it is used again; `vidtrain check` tells whether it is good now",
                file=sys.stderr,
            )
    out = set(listed) - replaced
    kept = tuple(video for video in videos.videos if video.path not in out)
    if out and not kept:
        raise InputError(
            f"data.quarantine={path} holds all {len(videos.videos)} videos of the split; check "
            "data.root, and read the reasons there"
        )
    left_out = [video.id for video in videos.videos if video.path in out]
    return dataclasses.replace(videos, videos=kept), left_out
