"""Checking one video: everything in it is decoded, and compared with what the file states."""

import hashlib
import os
import time
from itertools import pairwise
from typing import Any

import numpy as np

from vidtrain.data.checking_pass import MAX_PIXELS, Fault, Pass, decode_pass
from vidtrain.data.decode_frames import FrameFolderReader, image_names
from vidtrain.data.packet_trust import NO_PTS
from vidtrain.data.packets import packet_table
from vidtrain.data.quarantine import stamp
from vidtrain.data.video_file import file_key, file_sum
from vidtrain.errors import InputError

# What can be wrong, the worst first: a video has one reason, the first of those that hold.
BAD = {
    "changed": "its content is not what the list of SHA-256 sums states",
    "unreadable": "cannot be opened: missing, empty, not a video, no video stream",
    "memory": "takes more memory to decode than memory_gib allows, or says so by damage",
    "hang": "was not decoded within timeout_seconds",
    "crash": "ended the process that decoded it",
    "too_large": f"its frames have more than {MAX_PIXELS / 1e6:.0f} million pixels",
    "cut": "ends before its header or its index says",
    "damaged": "the decoder reports errors, or fills in what it could not decode",
    "frames": "gives more or fewer frames than its packets promise",
    "times": "its frames carry no time stamps, or times that run backwards",
    "size_changes": "its frames have different sizes",
    "folder": "the images of the folder do not form one series without gaps",
    "unsupported": "cannot be shown as it asks: its rotation or the shape of its pixels",
}
WARN = {
    "late_start": "the first packets cannot be decoded: it was cut out of a longer stream",
    "strict": "decodes, but breaks rules of its format",
    "header": "decodes, but its header contradicts itself or the content",
    "repeated_times": "some of its frames share a time stamp",
    "warning": "decodes, but the decoder warns",
}
VERSION = 1  # of what is found; raise it when a rule changes, and files are checked again
PROMISES_TIMES = {"mov", "matroska"}


def check_file(path: str, sha256: str | None = None) -> dict[str, Any]:
    """Decodes a video wholly and tells what it is and what is wrong with it.

    Whatever the file does, no exception leaves this function but those of the operating system
    and of too little memory; it may take long, and a decoder may crash: call it in a process that
    can be killed.

    Args:
        path: A video file, a tar member or a folder of images.
        sha256: What the content should be, in hexadecimal; None: not known.

    Returns:
        JSON values: path, status (ok, warn, bad), reason (a key of BAD or WARN, or None), detail,
        expected_frames, decoded_frames, pts_order, rotation (degrees), sample_aspect,
        size_changes, width, height (pixels, as decoded), codec, fps, stated_seconds,
        found_seconds, keyframe_distance (frames), route (fast, or why not), seconds (taken), size,
        mtime_ns, sha256 (of a folder: of its images' names and contents).
    """
    start = time.perf_counter()
    row: dict[str, Any] = {"path": path, "status": "ok", "reason": None, "detail": ""}
    row["size"], row["mtime_ns"] = stamp(path) or (None, None)
    row["sha256"] = None
    faults: list[Fault] = []
    try:
        folder = os.path.isdir(path)
        if not folder:
            file_key(path)  # refuses pipes, which opening would wait at
        row["sha256"] = _folder_sum(path) if folder else file_sum(path)
        if sha256 is not None and sha256 != row["sha256"]:
            faults.append(("changed", f"its SHA-256 sum was {sha256}"))
        faults += _check_folder(path, row) if folder else _check_video(path, row)
    except InputError as error:
        faults.append(("unreadable", str(error)))
    except OSError as error:
        faults.append(("unreadable", f"{path} cannot be read: {error.strerror or error}"))
    except MemoryError as error:
        faults.append(("memory", f"there is too little memory for it ({error})"))
    order = [*BAD, *WARN]
    if faults:
        row["reason"] = min((reason for reason, _ in faults), key=order.index)
        row["status"] = "bad" if row["reason"] in BAD else "warn"
        told = dict.fromkeys(text for reason, text in faults if reason == row["reason"])
        others = dict.fromkeys(r for r, _ in faults if r != row["reason"])
        also = f" (also: {', '.join(others)})" if others else ""
        more = f"; and {len(told) - 3} more" if len(told) > 3 else ""
        row["detail"] = "; ".join(list(told)[:3]) + more + also
    row["seconds"] = round(time.perf_counter() - start, 3)
    return row


def _folder_sum(path: str) -> str:
    """SHA-256 of the names and SHA-256 sums of all files of a folder."""
    found = hashlib.sha256()
    for name in sorted(os.listdir(path)):
        file = os.path.join(path, name)
        if os.path.isfile(file):
            found.update(f"{name}\0{file_sum(file)}\n".encode("utf-8", "surrogateescape"))
    return found.hexdigest()


def _check_folder(path: str, row: dict[str, Any]) -> list[Fault]:
    """Decodes every image of a frame folder; returns what is wrong."""
    row |= {"codec": "images", "fps": None, "pts_order": "ok", "route": "images", "rotation": 0}
    try:
        names = image_names(path)
    except InputError as error:
        return [("folder", str(error))]
    reader, good = FrameFolderReader(path), 0
    faults: list[Fault] = []
    sizes: dict[tuple[int, int], None] = {}
    for index in range(len(names)):
        try:
            height, width = reader.read([index]).shape[1:3]
            sizes[(width, height)] = None
            good += 1
        except InputError as error:
            faults.append(("damaged", str(error)))
    row |= {"expected_frames": len(names), "decoded_frames": good, "keyframe_distance": 1}
    return faults + _note_sizes(list(sizes), row)


def _note_sizes(sizes: list[tuple[int, int]], row: dict[str, Any]) -> list[Fault]:
    row["size_changes"] = len(sizes) > 1
    row["width"], row["height"] = sizes[0] if sizes else (None, None)
    told = ", then ".join(f"{width}x{height}" for width, height in sizes[:4])
    return [("size_changes", f"its frames are {told} pixels")] if len(sizes) > 1 else []


def _check_video(path: str, row: dict[str, Any]) -> list[Fault]:
    """Decodes a video file; returns what is wrong."""
    met = decode_pass(path, strict=True)
    strict = [fault for fault in met.faults if fault[0] == "damaged"]
    if strict:
        # What training will see; a fault that only the strict decoder finds is none to it.
        met = decode_pass(path, strict=False)
        if not any(reason == "damaged" for reason, _ in met.faults):
            painted = any("conceal" in text or "while decoding" in text for _, text in strict)
            reason = "damaged" if painted and _is_fast(path) else "strict"
            met.faults += [(reason, text) for _, text in strict]
    faults = met.faults
    row |= {
        "codec": met.codec, "rotation": met.rotation, "stated_seconds": met.stated_seconds,
        "found_seconds": met.found_seconds, "decoded_frames": len(met.times),
        "expected_frames": sum(met.shown), "pts_order": _order(met.times),
    }  # fmt: skip
    faults += _note_sizes(met.sizes, row)
    if any(reason == "too_large" for reason, _ in faults):
        return faults
    route = None
    try:
        table = packet_table(path)
    except InputError as error:
        known = [reason for reason, _ in faults if reason in BAD]
        faults.append((known[0] if known else "unsupported", str(error)))
    else:
        route = table.slow_reason or "fast"
        keys = np.append(np.flatnonzero(table.keyframe), len(table.pts))
        row |= {
            "fps": table.fps, "route": route,
            "sample_aspect": f"{table.sar.numerator}:{table.sar.denominator}",
            "keyframe_distance": int(np.diff(keys, prepend=0).max()),
        }  # fmt: skip
    return faults + _count(met, fast=route == "fast") + _judge_times(met, row["pts_order"])


def _is_fast(path: str) -> bool:
    """Whether training reads the file strictly; see `decode_pyav`."""
    try:
        return packet_table(path).fast
    except InputError:
        return False


def _count(met: Pass, *, fast: bool) -> list[Fault]:
    """Compares the frames that came out with those that the packets promise."""
    found, promised = len(met.times), sum(met.shown)
    told = f"{found} frames come out of {promised} packets"
    if fast:
        wanted = sorted(pts for pts, shown in zip(met.pts, met.shown, strict=True) if shown)
        if found == promised and sorted(met.times) != wanted:
            told = "frames come out with other times than their packets have"
        return [] if sorted(met.times) == wanted else [("frames", told)]
    fewest = promised - met.tiny
    if met.interlaced:  # two packets, one for each field, may make a frame
        fewest = min(fewest, promised // 2)
    if fewest <= found <= promised and found:
        return []
    if found and fewest - met.late <= found < promised:
        return [("late_start", told)]
    return [("frames", told)]


def _order(times: list[int]) -> str:
    """Whether times are missing, run backwards, are repeated or are as they should be."""
    if NO_PTS in times:
        return "missing"
    if any(after < before for before, after in pairwise(times)):
        return "backwards"
    return "duplicate" if len(set(times)) < len(times) else "ok"


def _judge_times(met: Pass, order: str) -> list[Fault]:
    """Returns what is wrong with the times of the frames, where the container promises them."""
    if order == "duplicate":
        return [("repeated_times", f"{len(met.times) - len(set(met.times))} frames share a time")]
    if order == "ok" or met.container not in PROMISES_TIMES:
        return []
    if order == "missing":
        return [("times", f"{met.times.count(NO_PTS)} frames carry no time")]
    first = next(n for n, (a, b) in enumerate(pairwise(met.times), start=1) if b < a)
    return [("times", f"frame {first} is to be shown before frame {first - 1}")]
