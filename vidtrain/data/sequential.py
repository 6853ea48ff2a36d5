"""Decoding a whole file in order: how frames are numbered where its packets do not tell."""

from collections.abc import Generator
from functools import lru_cache

import av
import numpy as np
from av.video.frame import VideoFrame

from vidtrain.data import table_store
from vidtrain.data.packet_trust import NO_PTS
from vidtrain.data.video_file import open_video_file
from vidtrain.errors import InputError


def decode_all(path: str, *, strict: bool = False) -> Generator[VideoFrame, None, None]:
    """All frames of a file in the order of showing, without seeking; see `open_video_file`."""
    container, stream = open_video_file(path, strict=strict)
    with container:
        for packet in container.demux(stream):
            if packet.size:  # an empty one would end the decoding
                yield from packet.decode()  # type: ignore[misc]
        yield from stream.decode(None)


@lru_cache(maxsize=1024)
def frame_times(path: str, size: int, mtime_ns: int) -> np.ndarray:
    """Time stamps of the frames as they come out of one decoding of the file, int64 (N,).

    Args:
        path: The file.
        size: With mtime_ns what tells changed files apart; see `file_key`.
        mtime_ns: See size.

    Raises:
        InputError: Decoding fails before the end, or there are no frames.
    """
    stored = table_store.load("frames", path, size, mtime_ns)
    if stored is not None:
        return stored[1]["pts"]
    times: list[int] = []
    try:
        for frame in decode_all(path):
            times.append(NO_PTS if frame.pts is None else frame.pts)
    except av.error.FFmpegError as error:
        raise damaged(path, len(times), str(error.strerror)) from None
    if not times:
        raise damaged(path, 0, "nothing comes out of the decoder")
    pts = np.array(times, np.int64)
    table_store.save("frames", path, size, mtime_ns, {}, {"pts": pts})
    return pts


def damaged(path: str, index: int, reason: str) -> InputError:
    """What to raise where a frame does not come out."""
    return InputError(
        f"Frame {index} of {path} cannot be decoded ({reason}): the file is damaged or cut short. "
        "Copy or download it again, or leave it out."
    )
