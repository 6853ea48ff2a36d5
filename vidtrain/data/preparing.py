"""Folders of videos encoded for training: where each file goes, and what is done already."""

import errno
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from vidtrain.data.decode_frames import image_names
from vidtrain.data.reencode import Settings, reencode
from vidtrain.data.video import Video, VideoList, split_member
from vidtrain.data.video_file import file_key, file_sum
from vidtrain.errors import InputError

MANIFEST = "manifest.jsonl"
OUTSIDE = "_outside"
UNFINISHED = ".unfinished"
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


@dataclass
class Manifest:
    """What a prepared folder holds.

    Attributes:
        settings: How its files were encoded; None: nothing is there yet.
        versions: Of the programs that encoded last.
        rows: A row for each file by its `source`, the name that `place` gives it.
        whole_bytes: Length of the file without a last line that a kill cut.
    """

    settings: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
    whole_bytes: int = 0


@dataclass(frozen=True)
class Job:
    """One video to encode.

    Attributes:
        path: The video: a file, tar member or frame folder.
        source: Its name in the manifest.
        target: The new file, relative to the prepared folder.
        unfinished: File to write first.
        folder: The prepared folder.
        settings: How to encode.
        known: Row of the manifest for an earlier state of the video.
    """

    path: str
    source: str
    target: str
    unfinished: str
    folder: str
    settings: Settings
    known: dict[str, Any] | None


def place(path: str, root: str) -> tuple[str, str]:
    """Name of a video in the manifest, and its file below the prepared folder.

    Below the root both are the path relative to it; a tar member becomes a file in a folder that
    is called like the tar file. Elsewhere the name is the whole path, and the file lies in
    `_outside/HASH/`, one for each folder.

    Args:
        path: As `Video.path`.
        root: Folder of the data set, absolute; or a link to it.
    """
    member = split_member(path)
    file = member[0] if member else path
    tail = f"@{member[1]}+{member[2]}" if member else ""
    for base in _spellings(root):
        if file.startswith(base):
            name = file[len(base) :]
            target = os.path.join(name, tail[1:]) if member else name
            return name + tail, target
    folder, name = os.path.split(file)
    mark = hashlib.sha256(folder.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    return path, os.path.join(OUTSIDE, mark, name, *([tail[1:]] if member else []))


@lru_cache
def _spellings(root: str) -> tuple[str, str]:
    """Sources give paths with links followed, or as they are."""
    return os.path.join(root, ""), os.path.join(os.path.realpath(root), "")


def state(path: str) -> tuple[int, int]:
    """What tells that a video changed: bytes, or images in a folder, and time of change in ns.

    Raises:
        InputError: It is not there.
    """
    if os.path.isdir(path):
        return len(image_names(path)), os.stat(path).st_mtime_ns
    return file_key(path)[1:]


def read_manifest(folder: str) -> Manifest:
    """Reads the manifest of a prepared folder; an empty one where there is none.

    Raises:
        InputError: It is damaged, or not one of `vidtrain prepare`.
    """
    found, file = Manifest(), Path(folder) / MANIFEST
    try:
        content = file.read_bytes() if file.exists() else b""
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
    found.whole_bytes = content.rfind(b"\n") + 1
    for number, line in enumerate(content[: found.whole_bytes].splitlines(), start=1):
        try:
            row = json.loads(line)
            if "settings" in row:
                found.settings, found.versions = row["settings"], row["versions"]
            else:
                found.rows[row["source"]] = row
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{file}, line {number} is damaged: {line[:80]!r}; remove the line and run "
                "`vidtrain prepare` again, or prepare into a new folder"
            ) from None
    if found.settings is None and found.rows:
        raise InputError(f"{file} does not start with settings: it was not made by prepare")
    return found


def append(file: IO[bytes], row: dict[str, Any]) -> None:
    """Adds a line to an open manifest, for good."""
    file.write(json.dumps(row).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def header(settings: Settings, versions: dict[str, str]) -> dict[str, Any]:
    """The manifest's first line."""
    return {"settings": asdict(settings), "versions": versions}


def prepared_videos(videos: VideoList, root: str, prepared: str) -> VideoList:
    """Replaces the path of every video by its prepared file.

    Args:
        videos: As the source listed them.
        root: Folder of the data set.
        prepared: Folder that `vidtrain prepare` wrote.

    Raises:
        InputError: One video is not prepared, changed since, or its new file is not whole.
    """
    root, prepared = (os.path.abspath(os.path.expanduser(folder)) for folder in (root, prepared))
    manifest = read_manifest(prepared)
    if manifest.settings is None:
        raise InputError(f"data.prepared={prepared} holds no {MANIFEST}: run `vidtrain prepare`")
    new, wrong = {}, {}
    for path in dict.fromkeys(video.path for video in videos.videos):
        name, target = place(path, root)
        row, file = manifest.rows.get(name), os.path.join(prepared, target)
        new[path] = file
        if row is None:
            wrong[name] = "not prepared"
        elif (row["size"], row["mtime_ns"]) != state(path):
            wrong[name] = "changed since"
        elif _size(file) != row["target_size"]:
            wrong[name] = "prepared file lost or changed"
    if wrong:
        first = "; ".join(f"{name} ({reason})" for name, reason in list(wrong.items())[:3])
        raise InputError(
            f"{len(wrong)} of {len(new)} videos cannot be taken from data.prepared={prepared}: "
            f"{first}{' ...' if len(wrong) > 3 else ''}. Run `vidtrain prepare` with "
            f"output={prepared} again, or train without data.prepared"
        )
    moved: tuple[Video, ...] = tuple(replace(v, path=new[v.path]) for v in videos.videos)
    return replace(videos, videos=moved)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def prepared_record(prepared: str) -> dict[str, Any]:
    """What run.json says of the prepared folder: settings, and a hash of the files' hashes.

    Raises:
        InputError: There is no manifest, or it is damaged.
    """
    folder = os.path.abspath(os.path.expanduser(prepared))
    manifest = read_manifest(folder)
    if manifest.settings is None:
        raise InputError(f"data.prepared={prepared} holds no {MANIFEST}: run `vidtrain prepare`")
    made = sorted((name, row["target_sha256"]) for name, row in manifest.rows.items())
    digest = hashlib.sha256(json.dumps(made).encode()).hexdigest()
    return {"settings": manifest.settings, "versions": manifest.versions, "sha256": digest}


def content_hash(path: str) -> str:
    """SHA-256 of a file, of a tar member's bytes, or of a folder's image names and bytes."""
    if os.path.isdir(path):
        digest = hashlib.sha256()
        for name in image_names(path):
            digest.update(name.encode("utf-8", "surrogateescape") + b"\0")
            with open(os.path.join(path, name), "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()
    return file_sum(path)


def prepare_one(job: Job) -> dict[str, Any] | str | OSError:
    """Encodes one video into `job.unfinished`; see `keep` for the next step.

    Returns:
        The manifest's row, a reason (str), or an OSError where no file can be written at all.
    """
    try:
        return _row(job)
    except InputError as error:
        return str(error)
    except Exception as error:  # a fault with one file must not end all others
        number = getattr(error, "errno", None)
        if number in NO_ROOM:
            return OSError(number, os.strerror(number))
        return f"{type(error).__name__}: {error}"


def keep(job: Job, row: dict[str, Any], manifest: IO[bytes]) -> OSError | str | None:
    """Moves a finished file to its place, and notes it.

    Returns:
        None, a reason (str), or an OSError where no file can be written at all.
    """
    file = os.path.join(job.folder, job.target)
    try:
        if os.path.exists(job.unfinished):
            os.makedirs(os.path.dirname(file), exist_ok=True)
            os.replace(job.unfinished, file)
            folder = os.open(os.path.dirname(file), os.O_RDONLY)
            os.fsync(folder)
            os.close(folder)
        append(manifest, row)
    except OSError as error:
        return error if error.errno in NO_ROOM else f"cannot write {file}: {error.strerror}"
    return None


def _row(job: Job) -> dict[str, Any]:
    before = state(job.path)
    digest = content_hash(job.path)
    row = {
        "source": job.source, "size": before[0], "mtime_ns": before[1], "sha256": digest,
        "target": job.target,
    }  # fmt: skip
    file, known = os.path.join(job.folder, job.target), job.known
    # Copied or touched, but the same: encoded as it is already.
    if known is not None and known["sha256"] == digest and os.path.isfile(file):
        if content_hash(file) == known["target_sha256"]:
            return known | row
    facts = reencode(job.path, job.unfinished, job.settings)
    if state(job.path) != before:
        raise InputError(f"{job.path} changed while it was read; run `vidtrain prepare` again")
    return row | facts | {
        "target_sha256": content_hash(job.unfinished),
        "target_size": os.path.getsize(job.unfinished),
    }  # fmt: skip
