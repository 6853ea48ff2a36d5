"""The packet table of a video file: what can be known of its frames without decoding them."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import av
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidtrain.data import bitstream, packet_trust, table_store
from vidtrain.data.packet_trust import NO_PTS
from vidtrain.data.video_file import file_key, open_video_file
from vidtrain.errors import InputError

# Pixels further from square than this are taken for a mistake of the file.
MAX_STRETCH = 8


@dataclass(frozen=True, eq=False)
class PacketTable:
    """The video packets of a file in the order of decoding, N of them, and how frames are shown.

    Attributes:
        pts: Presentation time stamps in units of time_base, int64 (N,); NO_PTS where unknown.
        keyframe: Packets that decoding can start at, bool (N,).
        discard: Packets whose frame is not shown (hidden by an edit list), bool (N,).
        droppable: Packets that no other packet needs to be decoded, bool (N,).
        time_base: Seconds per unit of pts.
        fps: Average frames per second, or None where unknown.
        coded_height: Of the decoded frames, pixels.
        coded_width: Of the decoded frames, pixels.
        sar: Width of a pixel over its height.
        turn: How decoded frames become shown ones: whether rows and columns change places, then
            whether columns are mirrored, then rows.
        pix_fmt: FFmpeg's name of the decoded pixel format.
        codec: FFmpeg's name of the codec.
        slow_reason: Why the frames cannot be numbered from this table alone; None where they can:
            frame i is then the one with the i-th smallest pts.
        count_reason: Why a frame cannot be found by seeking and counting either, as decord does;
            None where it can.
    """

    pts: np.ndarray
    keyframe: np.ndarray
    discard: np.ndarray
    droppable: np.ndarray
    time_base: Fraction
    fps: float | None
    coded_height: int
    coded_width: int
    sar: Fraction
    turn: tuple[bool, bool, bool]
    pix_fmt: str
    codec: str
    slow_reason: str | None
    count_reason: str | None

    @property
    def fast(self) -> bool:
        """Whether a frame can be found by its time stamp, from the keyframe before it."""
        return self.slow_reason is None

    @property
    def upright_size(self) -> tuple[int, int]:
        """Height and width with square pixels, before turning."""
        return self.coded_height, max(1, round(self.coded_width * self.sar))

    @property
    def height(self) -> int:
        """Of the frames as shown, pixels."""
        return self.upright_size[1 if self.turn[0] else 0]

    @property
    def width(self) -> int:
        """Of the frames as shown, pixels."""
        return self.upright_size[0 if self.turn[0] else 1]


def packet_table(path: str) -> PacketTable:
    """Reads the packet table of a file; a second call for the same, unchanged file is free.

    Raises:
        InputError: The file cannot be read, holds no frames, or ends before its header says.
    """
    return _table(*file_key(path))


@lru_cache(maxsize=1024)  # some 4 kB for a clip of ten seconds, 2 MB for an hour
def _table(path: str, size: int, mtime_ns: int) -> PacketTable:
    key = ("table", path, size, mtime_ns)
    stored = table_store.load(*key)
    if stored is not None:
        told, arrays = stored
        fractions = {name: Fraction(*told[name]) for name in ("time_base", "sar")}
        return PacketTable(**told | arrays | fractions | {"turn": tuple(told["turn"])})
    table = _read_table(path, size)
    arrays = {n: getattr(table, n) for n in ("pts", "keyframe", "discard", "droppable")}
    facts: dict[str, Any] = {n: v for n, v in vars(table).items() if n not in arrays}
    for name in ("time_base", "sar"):
        facts[name] = [facts[name].numerator, facts[name].denominator]
    table_store.save(*key, facts, arrays)
    return table


def _read_table(path: str, size: int) -> PacketTable:
    container, stream = open_video_file(path)
    with container:
        codec = stream.codec_context
        unit_length = bitstream.length_size(codec)
        rows, layers, frame = [], False, None
        try:  # numbers only: the packets themselves are the whole file
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                rows.append(_row(packet, codec.name, unit_length))
                layers |= (
                    codec.name == "hevc"
                    and unit_length is not None
                    and bitstream.has_layers(memoryview(packet), unit_length)
                )
                frame = frame or _first_of(packet)
            frame = frame or next(iter(stream.decode(None)), None)
        except av.error.FFmpegError as error:
            raise InputError(
                f"{path} cannot be read to its end ({error.strerror}); copy or download it again."
            ) from None
        if not rows:
            raise InputError(f"{path} has a video stream without frames; leave it out.")
        pts, dts, duration, marked, discard, keyframe, droppable = map(
            np.array, zip(*rows, strict=True)
        )
        packet_trust.refuse_cut_file(path, size, stream, pts + duration)
        slow_reason = packet_trust.slow_reason(container, stream, pts, keyframe, discard)
        return PacketTable(
            pts, keyframe, discard,
            droppable=droppable & ~keyframe & (not layers),
            time_base=stream.time_base or Fraction(1),
            fps=_frames_per_second(stream, pts),
            coded_height=frame.height if frame else codec.height,
            coded_width=frame.width if frame else codec.width,
            sar=_pixel_shape(path, stream),
            turn=_turn(path, frame),
            pix_fmt=frame.format.name if frame else str(codec.pix_fmt),
            codec=codec.codec.canonical_name,
            slow_reason=slow_reason,
            count_reason=slow_reason or packet_trust.count_reason(pts, dts, keyframe, marked),
        )  # fmt: skip


def _row(
    packet: Packet, codec: str, unit_length: int | None
) -> tuple[int, int, int, bool, bool, bool, bool]:
    """Times of showing, decoding, lasting; marked a key, discard, truly a key, droppable."""
    true_key, droppable = packet.is_keyframe, False
    if unit_length is not None:
        content = memoryview(packet)
        if codec == "h264" and true_key:
            true_key = bitstream.starts_clean(content, unit_length)
        droppable = bitstream.nobody_refers_to(content, codec, unit_length)
    return (
        NO_PTS if packet.pts is None else packet.pts,
        NO_PTS if packet.dts is None else packet.dts,
        packet.duration or 0,
        packet.is_keyframe,
        packet.is_discard,
        true_key,
        droppable,
    )


def _first_of(packet: Packet) -> VideoFrame | None:
    """The first frame that comes out when a packet goes in; damaged ones are met when reading."""
    try:
        return next((f for f in packet.decode() if isinstance(f, VideoFrame)), None)
    except av.error.FFmpegError:
        return None


def _pixel_shape(path: str, stream: VideoStream) -> Fraction:
    """Width of a pixel over its height; 1 where the file does not say."""
    sar = stream.sample_aspect_ratio or Fraction(1)
    if not 1 / MAX_STRETCH <= sar <= MAX_STRETCH:
        raise InputError(
            f"{path} states pixels of {sar.numerator}:{sar.denominator} (its sample aspect "
            "ratio), which cannot be meant; correct the file or leave it out."
        )
    return sar


def _turn(path: str, frame: VideoFrame | None) -> tuple[bool, bool, bool]:
    """How the file asks for its frames to be turned and mirrored; see `PacketTable.turn`.

    Raises:
        InputError: By an angle that is no multiple of 90 degrees.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX") if frame else None
    if matrix is None:
        return False, False, False
    # Shown column = a x + c y and row = b x + d y, in units of 1/65536.
    a, b, _, c, d = np.frombuffer(matrix, dtype=np.int32)[:5].tolist()
    if a == d == 0:
        return True, c < 0, b < 0
    if b == c == 0:
        return False, a < 0, d < 0
    raise InputError(
        f"{path} is to be shown at {frame.rotation if frame else 0} degrees; convert it."
    )


def _frames_per_second(stream: VideoStream, pts: np.ndarray) -> float | None:
    """The stated rate where it agrees with the time stamps; else what those say."""
    stated = float(stream.average_rate) if stream.average_rate else None
    if stream.time_base is None or pts.min() == NO_PTS or pts.max() == pts.min():
        return stated
    measured = (len(pts) - 1) / float((pts.max() - pts.min()) * stream.time_base)
    # MPEG-TS and AVI may state the rate of the encoder's clock, many times that of the frames.
    return stated if stated and abs(stated / measured - 1) < 0.05 else measured


def shown_at(times: np.ndarray, time_base: Fraction, seconds: float) -> int:
    """Number of the first frame shown at or after a time, counted from the first frame's.

    Args:
        times: Time stamps of the frames in the order of showing, int64 (N,).
        time_base: Seconds per unit of the time stamps.
        seconds: The time.
    """
    since_first = (times - times[0]) * float(time_base)
    return int(np.searchsorted(since_first, seconds - 1e-6))


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
