"""What the units of H.264 and HEVC packets tell: where decoding can start, what nobody needs."""

from collections.abc import Iterator

from av.codec.context import CodecContext

# Units of H.264 that hold picture data, and the first type of HEVC's units that does not.
H264_SLICES = {1, 2, 3, 4, 5}
HEVC_NON_VCL = 32


def length_size(codec: CodecContext) -> int | None:
    """Bytes of the length before each unit, as MP4 and Matroska store it; None: no such units."""
    header = codec.extradata
    if codec.name == "h264" and header and header[0] == 1:
        return (header[4] & 3) + 1
    if codec.name == "hevc" and header and header[0] == 1 and len(header) > 22:
        return (header[21] & 3) + 1
    return None


def units(packet: memoryview, size: int) -> Iterator[memoryview]:
    """The units of a packet, each stored after its length of `size` bytes.

    Source: ISO/IEC 14496-15, 5.2.3 and 8.3.3.
    """
    start = 0
    while start + size < len(packet):
        begin = start + size
        start = begin + int.from_bytes(packet[start:begin], "big")
        if start > begin:
            yield packet[begin:start]


def starts_clean(packet: memoryview, size: int) -> bool:
    """Whether an H.264 packet gives right frames from itself on, without what came before it.

    Containers also mark points from which the picture recovers over several frames (intra
    refresh); FFmpeg gives those frames out without a word. Unit type 5 is a slice of an IDR
    picture, 6 holds messages.

    Source: ITU-T H.264, 7.3.1, 7.3.2.3 and D.1.8 (recovery point).
    """
    for unit in units(packet, size):
        kind = unit[0] & 31
        if kind == 5:
            return True
        if kind == 6:
            messages = bytes(unit[1:]).replace(b"\0\0\3", b"\0\0")
            while len(messages) > 2:
                length = messages[1]
                # The count of frames to recovery comes first, and its first bit is set for zero.
                if messages[0] == 6:
                    return messages[2] >= 128
                if length == 255:
                    break
                messages = messages[2 + length :]
    return False


def nobody_refers_to(packet: memoryview, codec: str, size: int) -> bool:
    """Whether no other packet needs this one to be decoded.

    HEVC's non-reference pictures may still be referred to from higher temporal layers, so a unit
    of any but the lowest layer counts as needed; `has_layers` tells for the whole stream.

    Source: ITU-T H.264, 7.4.1 (nal_ref_idc); ITU-T H.265, table 7-1 (sub-layer non-reference).
    """
    found = False
    for unit in units(packet, size):
        if codec == "h264":
            if unit[0] & 31 in H264_SLICES:
                found = True
                if unit[0] & 0x60:
                    return False
        else:
            kind = unit[0] >> 1 & 63
            if kind < HEVC_NON_VCL:
                found = True
                if kind >= 16 or kind % 2:
                    return False
    return found


def has_layers(packet: memoryview, size: int) -> bool:
    """Whether an HEVC packet belongs to a temporal layer above the lowest, or another layer."""
    return any(
        unit[0] >> 1 < HEVC_NON_VCL and (len(unit) < 2 or unit[1] & 7 != 1 or unit[1] >> 3)
        for unit in units(packet, size)
    )
