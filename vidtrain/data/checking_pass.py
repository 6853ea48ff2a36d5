"""One decoding of a video file from beginning to end, and every complaint met on the way."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import av
import numpy as np
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from vidtrain.data import bitstream
from vidtrain.data.packet_trust import MAX_MISSING_SECONDS, NO_PTS, refuse_cut_file
from vidtrain.data.video_file import file_key, open_video_file
from vidtrain.errors import InputError

# No level of H.264, HEVC, VP9 or AV1 that devices decode (6.2 and below) has larger frames.
MAX_PIXELS = 35_651_584
# Decoders that are asked to refuse what they would else repair silently. Others then refuse good
# files too, such as MPEG-4 with packed B-frames.
STRICT = {"h264", "hevc"}
STRICT_OPTIONS = {"err_detect": "crccheck+bitstream+buffer+explode+careful+compliant+aggressive"}
# Bytes that no unit of H.264 or HEVC holds but at its end (7.4.1 of both standards): what lost disk
# sectors, filled with zeros, look like.
FORBIDDEN = re.compile(rb"\x00\x00[\x00-\x02]|\x00\x00\x03[^\x00-\x03]")
MAX_EMPTY_FRAME = 19  # bytes of an MPEG-4 frame that says "as before", which gives no frame
STREAMS = {"mpegts", "mpeg"}  # containers that may begin and end anywhere

MAX_FAULTS = 1000

# How FFmpeg's decoders say that memory ran out; what they return says that the file is damaged.
NO_MEMORY = re.compile(r"get_buffer\(\) failed|allocate memory")

Fault = tuple[str, str]  # a reason, see `checking`, and words


@dataclass
class Pass:
    """What one decoding of a file met.

    Attributes:
        container: FFmpeg's name of the container.
        codec: FFmpeg's name of the codec.
        stated_frames: What the header says; 0 where it does not.
        stated_seconds: What the header says; None where it does not.
        found_seconds: From the first to the end of the last frame, by the packets' times.
        faults: Reasons and words, in the order in which they were met.
        pts: Of the packets with content; NO_PTS where there is none.
        ends: When each ends: by its time of decoding, where it has no other.
        keyframe: Whether each is marked as a keyframe.
        shown: Whether each should give a frame.
        tiny: How many may be empty frames.
        times: Of the frames, as they came out.
        sizes: Different sizes of frames, (width, height), in the order met.
        rotation: Degrees that the first frame is to be turned by.
        interlaced: Whether frames consist of fields, each of which may be a packet.
    """

    container: str = ""
    codec: str = ""
    stated_frames: int = 0
    stated_seconds: float | None = None
    found_seconds: float | None = None
    faults: list[Fault] = field(default_factory=list)
    pts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    keyframe: list[bool] = field(default_factory=list)
    shown: list[bool] = field(default_factory=list)
    tiny: int = 0
    times: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    rotation: int = 0
    interlaced: bool = False

    @property
    def late(self) -> int:
        """Packets at the beginning that need others, which are not there."""
        if not any(self.keyframe):
            return len(self.pts)
        first = self.keyframe.index(True)
        return first + sum(NO_PTS < pts < self.pts[first] for pts in self.pts[first:])

    def complain(self, reason: str, text: str) -> None:
        """Notes a fault; of a file that is wholly damaged, not each one."""
        if len(self.faults) < MAX_FAULTS:
            self.faults.append((reason, text))


def decode_pass(path: str, *, strict: bool) -> Pass:
    """Decodes a file in order, on one thread, with FFmpeg's messages caught.

    The messages come through Python, which is safe only while FFmpeg runs no threads of its own.

    Args:
        path: A video file or tar member.
        strict: Ask the decoder to refuse whatever breaks a rule, where that is known to work.

    Raises:
        InputError: It cannot be opened.
        MemoryError: There is not enough.
    """
    met = Pass()
    with av.logging.Capture() as messages:
        av.logging.set_level(av.logging.INFO)
        repeated = av.logging.get_skip_repeated()
        av.logging.set_skip_repeated(False)  # it would leave out what an earlier file said last
        try:
            container, stream = open_video_file(path)
            with container:
                codec = stream.codec_context
                met.container, met.codec = container.format.name.split(",")[0], codec.name
                contexts = (other.codec_context for other in container.streams)
                others = {context.name for context in contexts if context} - {codec.name}
                _listen(met, messages, others, opening=True)
                _read_header(met, container, stream)
                if _too_large(met, codec.width, codec.height):
                    return met
                if strict and codec.name in STRICT:
                    codec.options = STRICT_OPTIONS
                for _ in _steps(met, container, stream):
                    _listen(met, messages, others)
                    if any(_too_large(met, *size) for size in met.sizes):
                        return met
                _listen(met, messages, others)
                _compare_length(met, path, stream)
        finally:
            av.logging.set_level(None)
            av.logging.set_skip_repeated(repeated)
    return met


def _read_header(met: Pass, container: InputContainer, stream: VideoStream) -> None:
    met.stated_frames = stream.frames
    if stream.duration is not None and stream.time_base is not None:
        # FFmpeg shortens the length of a cut AVI file, but not its count of frames.
        length = max(stream.duration, stream.frames if met.container == "avi" else 0)
        met.stated_seconds = float(length * stream.time_base)
    elif container.duration is not None and len(container.streams) == 1:
        met.stated_seconds = container.duration / 1e6


def _steps(met: Pass, container: InputContainer, stream: VideoStream) -> Iterator[None]:
    """Decodes packet after packet; what cannot be decoded does not end it."""
    unit_length = bitstream.length_size(stream.codec_context)
    try:
        for packet in container.demux(stream):
            if not packet.size:  # an empty one would end the decoding
                continue
            _look_at(met, packet, unit_length)
            try:
                for frame in packet.decode():
                    _take(met, frame)
            except av.error.FFmpegError as error:
                _failed(met, error)
            yield
        for frame in stream.decode(None):
            _take(met, frame)
    except av.error.FFmpegError as error:
        _failed(met, error)
    yield


def _failed(met: Pass, error: av.error.FFmpegError) -> None:
    if isinstance(error, MemoryError):
        raise MemoryError(str(error)) from None
    met.complain(_kind(met), f"packet {len(met.pts) - 1}: {error.strerror}")


def _kind(met: Pass) -> str:
    """The reason for a complaint: a stream that was cut out of another begins with some."""
    if met.container in STREAMS and not met.times and met.keyframe and not met.keyframe[0]:
        return "late_start"
    return "damaged"


def _look_at(met: Pass, packet: Packet, unit_length: int | None) -> None:
    """Notes what a packet tells without being decoded."""
    content = memoryview(packet)
    pts = NO_PTS if packet.pts is None else packet.pts
    place = packet.dts if packet.pts is None else packet.pts
    met.pts.append(pts)
    if place is not None:
        met.ends.append(place + (packet.duration or 0))
    met.keyframe.append(packet.is_keyframe)
    met.shown.append(not packet.is_discard and not _hidden(content, met.codec))
    met.tiny += packet.size <= MAX_EMPTY_FRAME
    if packet.is_corrupt:
        met.complain(_kind(met), f"packet {len(met.pts) - 1} is incomplete")
    if unit_length is not None:
        for unit in bitstream.units(content, unit_length):
            found = FORBIDDEN.search(bytes(unit).rstrip(b"\0"))
            if found is not None:
                met.complain("damaged", f"packet {len(met.pts) - 1} holds bytes that its format "
                             f"does not allow ({found[0].hex(' ')})")  # fmt: skip
                break


def _hidden(content: memoryview, codec: str) -> bool:
    """Whether a packet of VP8 or VP9 holds a frame that is only referred to.

    Source: RFC 6386, 9.1; VP9 bitstream specification, 6.2 and annex B.
    """
    first = content[0]
    if codec in ("vp8", "libvpx"):
        return not first >> 4 & 1
    if codec in ("vp9", "libvpx-vp9") and content[-1] & 0xE0 != 0xC0:  # else frames in one packet
        shift = 0 if first >> 4 & 3 == 3 else 1  # profile 3 has one bit more
        return not first >> shift + 2 & 1 and not first >> shift & 1
    return False


def _take(met: Pass, frame: VideoFrame) -> None:
    """Notes what a frame tells."""
    if not met.times:
        met.rotation = frame.rotation
    met.times.append(NO_PTS if frame.pts is None else frame.pts)
    met.interlaced |= frame.interlaced_frame
    if (frame.width, frame.height) not in met.sizes:
        met.sizes.append((frame.width, frame.height))
    if frame.is_corrupt:
        met.complain("damaged", f"frame {len(met.times) - 1} is marked as damaged")


def _too_large(met: Pass, width: int, height: int) -> bool:
    if width * height <= MAX_PIXELS:
        return False
    met.complain("too_large", f"its frames are {width}x{height} pixels")
    return True


def _listen(
    met: Pass, messages: list[tuple[int, str, str]], others: set[str], *, opening: bool = False
) -> None:
    """Turns FFmpeg's messages into faults, and forgets them.

    Args:
        met: What was met so far.
        messages: Level, part of FFmpeg, and text of each.
        others: Decoders of other streams, which are not ours to judge.
        opening: Whether they come from the search for streams, which decodes some packets without
            their context; damage is met again when decoding.

    Raises:
        MemoryError: FFmpeg says so.
    """
    for level, part, text in messages:
        text = " ".join(re.sub(r"(@ )?0x[0-9a-f]+", "", text).split())
        if NO_MEMORY.search(text):
            raise MemoryError(f"{part}: {text}")
        if part in others:
            continue
        if level <= av.logging.ERROR or "concealing" in text:
            met.complain("header" if opening else _kind(met), f"{part}: {text}")
        elif level <= av.logging.WARNING:
            met.complain("header" if opening else "warning", f"{part}: {text}")
    messages.clear()


def _compare_length(met: Pass, path: str, stream: VideoStream) -> None:
    """Compares what was there with what header and index state."""
    if not met.ends or stream.time_base is None:
        return
    begin = min(pts for pts in met.pts if pts > NO_PTS) if max(met.pts) > NO_PTS else 0
    met.found_seconds = float((max(met.ends) - begin) * stream.time_base)
    try:
        refuse_cut_file(path, file_key(path)[1], stream, np.array(met.ends, np.int64))
    except InputError as error:
        met.complain("cut", str(error))
        return
    if met.container == "mov":
        if met.stated_frames > len(met.pts):
            met.complain("cut", f"its header counts {met.stated_frames} frames, and "
                         f"{len(met.pts)} are there")  # fmt: skip
    elif met.stated_seconds and met.stated_seconds - met.found_seconds > MAX_MISSING_SECONDS:
        met.complain("cut", f"its header states {met.stated_seconds:.2f} s, and "
                     f"{met.found_seconds:.2f} s are there")  # fmt: skip
