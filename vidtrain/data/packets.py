"""The packet table of a video file: what can be known of its frames without decoding one."""

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from vidtrain.errors import InputError

# Every level but None makes FFmpeg's threads call Python, which can deadlock (they wait for the
# interpreter lock while its holder waits for them), even where the level silences everything.
av.logging.set_level(None)

# The containers that may be opened. A playlist or a concatenation script is a "container" too and
# would make FFmpeg read other files or addresses; none of those is here, whatever a file is called.
CONTAINERS = "mov,matroska,avi,mpegts,mpeg,mpegvideo,asf,flv,ogg,gif,rm,nut,ivf,mxf,h264,hevc"

# Where one packet gives one frame that carries the packet's time stamp. Others (VP8's hidden
# frames, MPEG-4's packed ones) may hold packets without a frame, which only decoding shows.
FAST_CONTAINERS = {"mov", "matroska"}
FAST_CODECS = {"h264", "hevc", "vp9", "av1", "mjpeg"}

NO_PTS = np.iinfo(np.int64).min
# A file that ends earlier than its header states by more than this has been cut short.
MAX_MISSING_SECONDS = 0.5


@dataclass(frozen=True, eq=False)
class PacketTable:
    """The video packets of a file in the order of decoding. N packets.

    Attributes:
        pts: Presentation time stamps in the stream's time base, int64 (N,); NO_PTS where unknown.
        keyframe: Packets that decoding can start at, bool (N,).
        discard: Packets whose frame is not shown (hidden by an edit list), bool (N,).
        fps: Average frames per second, or None where unknown.
        closed_gop: Whether no packet after a keyframe, and before the next, is shown before it.
        slow_reason: Why the frames cannot be numbered from this table alone; None where they can:
            frame i is then the one with the i-th smallest pts.
        count_reason: Why a frame cannot be found by seeking and counting either, as decord does;
            None where it can.
    """

    pts: np.ndarray
    keyframe: np.ndarray
    discard: np.ndarray
    fps: float | None
    closed_gop: bool
    slow_reason: str | None
    count_reason: str | None

    @property
    def fast(self) -> bool:
        """Whether a frame can be found by its time stamp, from the keyframe before it."""
        return self.slow_reason is None


def file_key(path: str) -> tuple[str, int, int]:
    """Path, size in bytes and time of change in ns of a local regular file: what a cache goes by.

    Raises:
        InputError: Nothing there, not a regular file, or empty.
    """
    if "://" in path:
        raise InputError(f"'{path}' is an address, not a local file; download the video first.")
    try:
        status = os.stat(path)
    except OSError as error:
        raise InputError(f"Cannot read the video {path}: {error.strerror}.") from None
    # Checked before opening: opening a pipe waits for a writer, for ever if there is none.
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, socket or device"
        raise InputError(f"{path} is {kind}, not a video file.")
    if status.st_size == 0:
        raise InputError(f"{path} is empty (0 bytes); copy or download it again.")
    return path, status.st_size, status.st_mtime_ns


def open_video_file(path: str) -> tuple[InputContainer, VideoStream]:
    """Opens a local video file without threads. The caller closes the container.

    Raises:
        InputError: Not a local regular file, not a video container, or no video stream in it.
    """
    file_key(path)
    options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "file"}
    try:
        # "file:" keeps FFmpeg from reading a protocol into the name (concat:a.mp4|b.mp4).
        container = av.open(f"file:{path}", options=options, metadata_errors="ignore")
    except av.error.FFmpegError as error:
        raise InputError(
            f"{path} is not a video file that can be read ({error.strerror}): it is of another "
            "kind, a playlist (never followed) or cut short. Copy or download it again."
        ) from None
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        problem = "has no video stream"
    elif stream.codec_context is None:
        problem = "is coded in a way that the installed PyAV cannot decode"
    else:
        stream.thread_type = "NONE"
        stream.codec_context.thread_count = 1
        return container, stream
    container.close()
    raise InputError(f"{path} {problem}; leave it out or convert it.")


def packet_table(path: str) -> PacketTable:
    """Reads the packet table of a file; a second call for the same, unchanged file is free.

    Raises:
        InputError: The file cannot be read, holds no frames, or ends before its header says.
    """
    return _read_table(*file_key(path))


@lru_cache(maxsize=8192)  # some 5 kB for a clip of ten seconds
def _read_table(path: str, size: int, mtime_ns: int) -> PacketTable:
    container, stream = open_video_file(path)
    with container:
        try:  # numbers only: the packets themselves are the whole file
            rows = [_row(packet, stream) for packet in container.demux(stream) if packet.size]
        except av.error.FFmpegError as error:
            raise InputError(
                f"{path} cannot be read to its end ({error.strerror}); copy or download it again."
            ) from None
        if not rows:
            raise InputError(f"{path} has a video stream without frames; leave it out.")
        pts, dts, duration, marked, discard, keyframe = map(np.array, zip(*rows, strict=True))
        _refuse_cut_file(path, size, stream, pts + duration)
        keys = np.flatnonzero(keyframe)
        last_key = np.maximum.accumulate(np.where(keyframe, np.arange(len(pts)), 0))
        closed_gop = bool((pts >= pts[last_key]).all())
        slow_reason = _slow_reason(container, stream, pts, keyframe, discard)
        if slow_reason or not closed_gop:
            count_reason = slow_reason or "some frames after a keyframe are shown before it"
        elif (marked & ~keyframe).any():
            count_reason = "some of its keyframes need earlier frames"
        elif (dts[keys[1:]] <= pts[keys[:-1]]).any():  # MP4 is searched by time of decoding
            count_reason = "some of its keyframes are decoded before the one before them is shown"
        else:
            count_reason = None
        fps = _frames_per_second(stream, pts)
    return PacketTable(pts, keyframe, discard, fps, closed_gop, slow_reason, count_reason)


def _row(packet: Packet, stream: VideoStream) -> tuple[int, int, int, bool, bool, bool]:
    """Times of showing, decoding and lasting; marked a keyframe, discard, and truly a keyframe."""
    true_key = packet.is_keyframe
    header = stream.codec_context.extradata
    if true_key and stream.codec_context.name == "h264" and header and header[0] == 1:
        true_key = _starts_clean(bytes(packet), length_size=(header[4] & 3) + 1)
    return (
        NO_PTS if packet.pts is None else packet.pts,
        NO_PTS if packet.dts is None else packet.dts,
        packet.duration or 0,
        packet.is_keyframe,
        packet.is_discard,
        true_key,
    )


def _starts_clean(packet: bytes, *, length_size: int) -> bool:
    """Whether an H.264 packet gives right frames from itself on, without what came before it.

    Containers also mark points from which the picture recovers over several frames (intra
    refresh); FFmpeg gives those frames out without a word. Units, each after its length, are
    sorted by type: 5 is a slice of an IDR picture, 6 holds messages.

    Source: ITU-T H.264, 7.3.1, 7.3.2.3 and D.1.8 (recovery point); ISO/IEC 14496-15.
    """
    start = 0
    while start + length_size < len(packet):
        begin = start + length_size
        start = begin + int.from_bytes(packet[start:begin], "big")
        kind = packet[begin] & 31
        if kind == 5:
            return True
        if kind == 6:
            messages = packet[begin + 1 : start].replace(b"\0\0\3", b"\0\0")
            while len(messages) > 2:
                size = messages[1]
                # The count of frames to recovery comes first, and its first bit is set for zero.
                if messages[0] == 6:
                    return messages[2] >= 128
                if size == 255:
                    break
                messages = messages[2 + size :]
    return False


def _frames_per_second(stream: VideoStream, pts: np.ndarray) -> float | None:
    """The stated rate where it agrees with the time stamps; else what those say."""
    stated = float(stream.average_rate) if stream.average_rate else None
    if stream.time_base is None or pts.min() == NO_PTS or pts.max() == pts.min():
        return stated
    measured = (len(pts) - 1) / float((pts.max() - pts.min()) * stream.time_base)
    # MPEG-TS and AVI may state the rate of the encoder's clock, many times that of the frames.
    return stated if stated and abs(stated / measured - 1) < 0.05 else measured


def _slow_reason(
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


def _refuse_cut_file(path: str, size: int, stream: VideoStream, ends: np.ndarray) -> None:
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


def check_indices(indices: Sequence[int], num_frames: int, path: str) -> list[int]:
    """The different frames asked for, in rising order.

    Raises:
        InputError: None is asked for, or one that the video does not have.
    """
    wanted = sorted({int(index) for index in indices})
    if not wanted:
        raise InputError(f"No frame of {path} was asked for; ask for one at least.")
    if wanted[0] < 0 or wanted[-1] >= num_frames:
        wrong = wanted[0] if wanted[0] < 0 else wanted[-1]
        raise InputError(f"{path} has no frame {wrong}: it has {num_frames}, counted from 0.")
    return wanted
