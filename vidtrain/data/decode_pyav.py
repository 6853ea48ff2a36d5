"""Reading frames of a video file with PyAV (FFmpeg): exactly those asked for."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from itertools import chain
from typing import Any

import av
import numpy as np
from av.video.frame import VideoFrame

from vidtrain.data.packets import check_indices, file_key, open_video_file, packet_table
from vidtrain.errors import InputError

# What a seek to a keyframe costs, in decoded frames: up to so many unwanted ones are decoded
# instead. Measured on 240p to 720p H.264 with B-frames: 2 to 5.
SEEK_COST_FRAMES = 4


class PyavReader:
    """One opened video file; see `vidtrain.data.video.VideoReader`.

    Where the packet table can be trusted (`PacketTable.fast`), frame i is the one with the i-th
    smallest time stamp and is decoded from the keyframe before it. In all other files the frames
    are numbered as they come out of one decoding from the start.

    Args:
        path: A local video file.

    Raises:
        InputError: Not a video file, no frames in it, or cut short.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._table = packet_table(path)
        self.fps = self._table.fps
        self.num_frames = (
            len(self._table.pts) if self._table.fast else _count_frames(*file_key(path))
        )
        self._shown = np.sort(self._table.pts)
        self._container, self._stream = open_video_file(path)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Returns exactly the frames asked for, uint8 (len(indices), H, W, 3) RGB.

        Raises:
            InputError: A frame cannot be decoded, or an index is outside the video.
        """
        wanted = check_indices(indices, self.num_frames, self._path)
        frames = self._read_by_time(wanted) if self._table.fast else {}
        missing = [index for index in wanted if index not in frames]
        if missing:
            frames |= self._read_in_order(missing)
        sizes = {f"{frame.shape[1]}x{frame.shape[0]}" for frame in frames.values()}
        if len(sizes) > 1:
            raise InputError(
                f"The picture size of {self._path} changes ({', '.join(sorted(sizes))}); "
                "convert it to one size."
            )
        return np.stack([frames[int(index)] for index in indices])

    def close(self) -> None:
        """Gives the file back. A container that is not closed keeps its memory."""
        self._container.close()

    def _read_by_time(self, wanted: list[int]) -> dict[int, np.ndarray]:
        """Wanted frames by index, without those that do not come."""
        frames = {}
        for start, indices in self._runs(wanted):
            waiting: dict[int | None, int] = {int(self._shown[i]): i for i in indices}
            last = self._shown[indices[-1]]
            try:
                for frame in self._decode_from(start):
                    index = waiting.pop(frame.pts, None)
                    if index is not None and not frame.is_corrupt:
                        frames[index] = _to_rgb(frame, self._path)
                    if not waiting or (frame.pts is not None and frame.pts >= last):
                        break
            except av.error.FFmpegError:
                continue  # decoding from the start may still work; if not, that says why
        return frames

    def _runs(self, wanted: list[int]) -> list[tuple[int, list[int]]]:
        """Packets to start decoding at, and the frames to take from there."""
        keys = np.flatnonzero(self._table.keyframe)
        keys = keys[np.argsort(self._table.pts[keys])]
        key_index = np.searchsorted(self._shown, self._table.pts[keys])  # as frames are numbered
        runs: list[tuple[int, list[int]]] = []
        for index in wanted:
            key = np.searchsorted(key_index, index, side="right") - 1
            if runs and key_index[key] - runs[-1][1][-1] <= SEEK_COST_FRAMES:
                runs[-1][1].append(index)
            else:
                runs.append((int(keys[key]), [index]))
        return runs

    def _decode_from(self, start: int) -> Iterator[VideoFrame]:
        """Frames in display order, decoded from a keyframe packet or one before it."""
        for key in np.flatnonzero(self._table.keyframe[: start + 1])[::-1]:
            self._container.seek(int(self._table.pts[key]), stream=self._stream)
            packets = (packet for packet in self._container.demux(self._stream) if packet.size)
            first = next(packets, None)
            # Some containers seek by decoding time, or to what their index holds, and land late.
            if first is not None and first.pts in self._table.pts[: start + 1]:
                for packet in chain([first], packets):
                    yield from packet.decode()
                yield from self._stream.decode(None)
                return

    def _read_in_order(self, wanted: list[int]) -> dict[int, np.ndarray]:
        """Wanted frames by index, from one decoding of the whole stream.

        Raises:
            InputError: One of them cannot be decoded.
        """
        # A fast table has already numbered the frames by their time stamps: keep to that.
        by_time: dict[int | None, int] = {}
        if self._table.fast:
            by_time = {int(self._shown[index]): index for index in wanted}
        frames: dict[int, np.ndarray] = {}
        waiting = set(wanted)
        reason = "its data is damaged"
        try:
            with closing(_decode_all(self._path)) as decoded:
                for order, frame in enumerate(decoded):
                    index = by_time.get(frame.pts) if self._table.fast else order
                    if index in waiting and not frame.is_corrupt:
                        frames[index] = _to_rgb(frame, self._path)
                    if index == wanted[-1]:
                        break
        except av.error.FFmpegError as error:
            reason = str(error.strerror)
        lost = next((index for index in wanted if index not in frames), None)
        if lost is not None:
            raise _damaged(self._path, lost, reason)
        return frames


def _decode_all(path: str) -> Generator[VideoFrame, None, None]:
    """All frames of a file in the order of showing, without seeking."""
    container, stream = open_video_file(path)
    with container:
        for packet in container.demux(stream):
            if packet.size:  # an empty one would end the decoding
                yield from packet.decode()
        yield from stream.decode(None)


@lru_cache(maxsize=65536)
def _count_frames(path: str, size: int, mtime_ns: int) -> int:
    """Number of frames that come out of a file; size and mtime_ns tell changed files apart.

    Raises:
        InputError: Decoding fails before the end, or there are no frames.
    """
    count = 0
    try:
        for _ in _decode_all(path):
            count += 1
    except av.error.FFmpegError as error:
        raise _damaged(path, count, str(error.strerror)) from None
    if count == 0:
        raise _damaged(path, 0, "nothing comes out of the decoder")
    return count


def _damaged(path: str, index: int, reason: str) -> InputError:
    return InputError(
        f"Frame {index} of {path} cannot be decoded ({reason}): the file is damaged or cut short. "
        "Copy or download it again, or leave it out."
    )


def _to_rgb(frame: VideoFrame, path: str) -> np.ndarray:
    """Pixels of a decoded frame as it is meant to be shown, uint8 (H, W, 3) RGB.

    PyAV converts with the frame's own matrix (BT.601, 709, 2020) and range, BT.601 and limited
    where the file states none, as FFmpeg does: at most 2 of 255 from the formulas, which a test
    holds. It does not turn the picture.

    Raises:
        InputError: The file asks for a rotation that is no multiple of 90 degrees.
    """
    image = frame.to_ndarray(format="rgb24", threads=1)
    side_data: Any = frame.side_data.get("DISPLAYMATRIX")
    if side_data is None:
        return image
    # Shown column = a x + c y and row = b x + d y, in units of 1/65536: turns and mirrors.
    a, b, _, c, d = np.frombuffer(side_data, dtype=np.int32)[:5].astype(np.int64)
    if not ((a == d == 0) or (b == c == 0)):
        raise InputError(f"{path} is to be shown at {frame.rotation} degrees; convert it.")
    if a == 0:
        image, a, d = image.swapaxes(0, 1), c, b
    if a < 0:
        image = image[:, ::-1]
    if d < 0:
        image = image[::-1]
    return image
