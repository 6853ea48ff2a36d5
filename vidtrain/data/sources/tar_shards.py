"""Videos in tar files (WebDataset's layout), read where they lie: no shard is unpacked.

Every video is addressed by its place in its shard, so order, splitting over processes and resuming
are as with single files.
"""

import glob
import json
import os
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from vidtrain.data.sources.class_names import read_class_names
from vidtrain.data.sources.folder import VIDEO_SUFFIXES
from vidtrain.data.video import Video, VideoList, tar_member
from vidtrain.errors import InputError

INDEX_VERSION = 1
THREADS = 16  # shards looked at together: a network disk answers many questions at once
MAX_LABEL_BYTES = 1 << 20
LABEL_SUFFIXES = (".cls", ".json", ".txt")  # the first that states a label counts
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")


class Member(NamedTuple):
    """One video of a shard.

    Attributes:
        key: Its name in the shard without the suffix.
        offset: Where its bytes begin in the shard.
        size: Number of its bytes.
        label: Class index or class name.
    """

    key: str
    offset: int
    size: int
    label: int | str


def tar_shards(root: str, *, split: str, class_names: Sequence[str] | None = None) -> VideoList:
    """Returns the videos of the shards that a pattern names, shard by shard.

    A video is KEY.mp4, or of another video suffix, and its label is in KEY.cls (a number),
    KEY.json ({"label": number or name}) or KEY.txt (a name). A key ends at the first dot of a
    member's name; its other members are left alone. A list that `scripts/pack_shards.py` wrote
    beside a shard is used where it still fits the shard; else the whole shard is walked through.

    Args:
        root: Folder that the pattern is relative to.
        split: Names of uncompressed tar files: `train-*.tar` or `train-{000000..000099}.tar`.
        class_names: Names by label; None: the lines of root/classes.txt; without this file, the
            names in the shards in alphabetical order, or numbers up to the highest label.

    Raises:
        InputError: No shard, one that cannot be read or is compressed, a repeated key, a video
            without a label or a label without a video, or a class that is not named.
    """
    shards = _shards(root, split)
    if class_names is None and (Path(root) / "classes.txt").is_file():
        class_names = read_class_names("classes.txt", root)
    with ThreadPoolExecutor(THREADS) as pool:
        listed = list(pool.map(read_shard, shards))
    names = _names(class_names, listed, shards)
    numbers = {name: label for label, name in enumerate(names)}
    videos: dict[str, Video] = {}
    for shard, members in zip(shards, listed, strict=True):
        for key, offset, size, label in members:
            if key in videos:
                raise InputError(
                    f"{shard} holds the key {key!r}, which {videos[key].path.split('@')[0]} holds "
                    "too; give each video its own key"
                )
            number = numbers.get(label, -1) if isinstance(label, str) else label
            if not 0 <= number < len(names):
                raise InputError(
                    f"{shard}: the label {label!r} of {key} is not one of the {len(names)} known "
                    "classes; correct it, or name all classes with data.classes"
                )
            videos[key] = Video(tar_member(shard, offset, size), number, key)
    return VideoList(videos=tuple(videos.values()), class_names=names)


def _names(
    given: Sequence[str] | None, listed: Sequence[list[Member]], shards: Sequence[str]
) -> tuple[str, ...]:
    labels = {member.label for members in listed for member in members}
    if given is not None:
        return tuple(given)
    named = sorted(label for label in labels if isinstance(label, str))
    if named and len(named) < len(labels):
        raise InputError(
            f"some labels in {shards[0]} and its fellows are names and some are numbers; say with "
            "data.classes which name has which number"
        )
    highest = max((label for label in labels if isinstance(label, int)), default=-1)
    return tuple(named or map(str, range(highest + 1)))


def _shards(root: str, split: str) -> list[str]:
    """Returns the absolute paths of the shards that a pattern names, in order."""
    if not Path(root).is_dir():
        raise InputError(f"data.root={root} is no folder; set it to the folder of the shards")
    shards: list[str] = []
    for pattern in _spread(split):
        path = os.path.abspath(os.path.join(root, pattern))
        found = sorted(glob.glob(path)) if set("*?[") & set(pattern) else [path]
        if not found or not os.path.isfile(found[0]):
            raise InputError(
                f"there is no shard {path}; set data.train and data.val to patterns such as "
                "train-*.tar or train-{000000..000099}.tar"
            )
        shards += found
    return list(dict.fromkeys(shards))


def _spread(pattern: str) -> Iterator[str]:
    """Yields what braces stand for: {008..011} counts with leading zeros, {a,b} is a choice."""
    match = re.search(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}", pattern)
    if match is None:
        yield pattern
        return
    first, last, choices = match.groups()
    if first:
        width = len(first) if first.startswith("0") else 0
        words = [f"{number:0{width}d}" for number in range(int(first), int(last) + 1)]
    else:
        words = choices.split(",")
    for word in words:
        yield from _spread(pattern[: match.start()] + word + pattern[match.end() :])


def index_path(shard: str) -> Path:
    """Returns where the list of a shard's videos lies."""
    return Path(f"{shard}.index.json")


def read_shard(shard: str) -> list[Member]:
    """Returns the videos of a shard, from its list where that fits, else from the shard.

    Raises:
        InputError: The shard cannot be read, or what it holds makes no labelled videos.
    """
    status = os.stat(shard)
    file = index_path(shard)
    try:
        content = json.loads(file.read_text("utf-8"))
        fits = [content["version"], content["tar_size"], content["tar_mtime_ns"]]
        if fits == [INDEX_VERSION, status.st_size, status.st_mtime_ns]:
            return [Member(*row) for row in content["videos"]]
        reason = "is of another state of the shard"
    except FileNotFoundError:
        return scan_shard(shard)
    except (OSError, ValueError, KeyError, TypeError):
        reason = "cannot be read"
    print(
        f"{file} {reason}: the whole shard is walked through; write it anew with "
        f"scripts/pack_shards.py --index {shard}",
        file=sys.stderr,
    )
    return scan_shard(shard)


def write_index(shard: str) -> int:
    """Walks through a shard, writes the list of its videos beside it, and returns their number.

    Raises:
        InputError: As `read_shard`; or the list cannot be written.
    """
    members = scan_shard(shard)
    status = os.stat(shard)
    content = {
        "version": INDEX_VERSION, "tar_size": status.st_size, "tar_mtime_ns": status.st_mtime_ns,
        "videos": members,
    }  # fmt: skip
    file = index_path(shard)
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        temporary.write_text(json.dumps(content, ensure_ascii=False), "utf-8")
        os.replace(temporary, file)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}; free some space") from error
    return len(members)


def scan_shard(shard: str) -> list[Member]:
    """Returns the videos of a shard in their order, from the headers of its members.

    Raises:
        InputError: As `read_shard`.
    """
    videos: dict[str, tuple[int, int]] = {}
    labels: dict[str, dict[str, int | str]] = {}
    try:
        with _open(shard) as tar:
            for info in tar:
                folder, _, name = info.name.removeprefix("./").rpartition("/")
                stem, dot, suffix = name.partition(".")
                key, suffix = f"{folder}/{stem}" if folder else stem, f"{dot}{suffix}".lower()
                if not info.isreg() or not stem:
                    continue
                if suffix in VIDEO_SUFFIXES:
                    if key in videos:
                        raise InputError(f"{shard} holds the key {key!r} twice; remove one")
                    if info.issparse():
                        raise InputError(f"{shard}: {info.name} is stored sparse; pack it anew")
                    videos[key] = info.offset_data, info.size
                elif suffix in LABEL_SUFFIXES:
                    label = _label(tar, info, suffix, f"{shard}: {info.name}")
                    if label is not None:
                        labels.setdefault(key, {})[suffix] = label
    except (tarfile.TarError, OSError) as error:
        raise InputError(
            f"{shard} cannot be read to its end ({error}): cut short, or no tar file; copy it again"
        ) from error
    if labels.keys() != videos.keys():
        lonely = min(labels.keys() ^ videos.keys())
        kind = "label without a video" if lonely in labels else "video without a label"
        raise InputError(
            f"{shard}: {lonely} is a {kind}; each key needs a video ({', '.join(VIDEO_SUFFIXES)}) "
            f"and one of {', '.join(LABEL_SUFFIXES)}"
        )
    ordered = [labels[key] for key in videos]
    stated = [next(found[s] for s in LABEL_SUFFIXES if s in found) for found in ordered]
    return [Member(key, *videos[key], label) for key, label in zip(videos, stated, strict=True)]


def _open(shard: str) -> tarfile.TarFile:
    """Opens an uncompressed tar file, whose members lie in it as they are."""
    with open(shard, "rb") as file:
        start = file.read(8)
    if start.startswith(COMPRESSED):
        raise InputError(f"{shard} is compressed, its videos cannot be found in it; uncompress it")
    if not shard.endswith(".tar"):
        raise InputError(f"the shard {shard} must be called NAME.tar; rename it")
    return tarfile.open(shard, "r:")


def _label(tar: tarfile.TarFile, info: tarfile.TarInfo, suffix: str, where: str) -> Any:
    """Returns the class index or name that a member states; None for a JSON without a label."""
    if info.size > MAX_LABEL_BYTES:
        raise InputError(f"{where} has {info.size} bytes, too many for a label")
    content = tar.extractfile(info)
    assert content is not None  # a regular file
    try:
        text = content.read().decode("utf-8-sig").strip()
        if suffix == ".cls":
            return int(text)
        label = text if suffix == ".txt" else json.loads(text).get("label")
    except (ValueError, AttributeError) as error:
        raise InputError(f"{where} does not hold a label: {error}; pack it anew") from error
    if label is None or (
        isinstance(label, int | str) and not isinstance(label, bool) and label != ""
    ):
        return label
    raise InputError(f"{where}: the label {label!r} is neither a number nor a name")
