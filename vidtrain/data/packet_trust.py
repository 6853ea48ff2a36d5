"""How far the packets and the header of a file can be trusted."""

import re

import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream

from vidtrain.errors import InputError

# Where one packet gives one frame that carries the packet's time stamp. Others (VP8's hidden
# frames, MPEG-4's packed ones) may hold packets without a frame, which only decoding shows.
FAST_CONTAINERS = {"mov", "matroska"}
FAST_CODECS = {"h264", "hevc", "vp9", "av1", "mjpeg"}

NO_PTS = np.iinfo(np.int64).min
# A file that ends earlier than its header states by more than this has been cut short.
MAX_MISSING_SECONDS = 0.5


def slow_reason(
    container: InputContainer,
    stream: VideoStream,
    pts: np.ndarray,
    keyframe: np.ndarray,
    discard: np.ndarray,
) -> str | None:
    """The first reason not to trust the table with the numbering of frames, or None."""
    if container.format.name.split(",")[0] not in FAST_CONTAINERS:
        return f"its container is {container.format.name}"
    codec = stream.codec_context.codec.canonical_name
    if codec not in FAST_CODECS:
        return f"its codec is {codec}"
    if (pts == NO_PTS).any():
        return "some of its frames carry no time stamp"
    if len(np.unique(pts)) < len(pts):
        return "some of its frames share a time stamp"
    if discard.any():
        return "an edit list hides some of its frames"
    if not keyframe[0] or pts.min() < pts[0]:
        return "it does not start with a keyframe"
    return None


def count_reason(
    pts: np.ndarray, dts: np.ndarray, keyframe: np.ndarray, marked: np.ndarray
) -> str | None:
    """Why seeking to a keyframe and counting frames may miss, in a file with a fast table."""
    keys = np.flatnonzero(keyframe)
    last_key = np.maximum.accumulate(np.where(keyframe, np.arange(len(pts)), 0))
    if (pts < pts[last_key]).any():
        return "some frames after a keyframe are shown before it"
    if (marked & ~keyframe).any():
        return "some of its keyframes need earlier frames"
    if (dts[keys[1:]] <= pts[keys[:-1]]).any():  # MP4 is searched by time of decoding
        return "some of its keyframes are decoded before the one before them is shown"
    return None


def refuse_cut_file(path: str, size: int, stream: VideoStream, ends: np.ndarray) -> None:
    """Compares what is there with what the file states; decoders stop silently at a cut.

    Args:
        path: The file, for messages.
        size: Its size in bytes.
        stream: Its video stream, after all packets have been read.
        ends: Time at which each frame ends, in the stream's time base, int64 (N,).

    Raises:
        InputError: The file's index points past its end, or its last frame comes too early.
    """
    named = max((entry.pos + entry.size for entry in stream.index_entries), default=0)
    if named > size:
        raise InputError(
            f"{path} is cut short: its index names {named} bytes, {size} are there. "
            "Copy or download it again."
        )
    stated = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", stream.metadata.get("DURATION", ""))
    if stated is None or stream.time_base is None:  # only Matroska states it, for each stream
        return
    hours, minutes, seconds = stated.groups()
    stated_seconds = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    found_seconds = float(ends.max() * stream.time_base)
    if stated_seconds - found_seconds > MAX_MISSING_SECONDS:
        raise InputError(
            f"{path} is cut short: it states {stated_seconds:.1f} s, {found_seconds:.1f} s are "
            "there. Copy or download it again."
        )
