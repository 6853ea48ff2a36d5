"""Reading frames of a video file with PyAV (FFmpeg): exactly those asked for."""

from collections.abc import Generator, Iterator, Sequence
from functools import cached_property

import av
import cv2
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame

from vidtrain.data.colours import cut_frame
from vidtrain.data.packet_trust import NO_PTS
from vidtrain.data.packets import check_indices, packet_table, shown_at
from vidtrain.data.sequential import damaged, decode_all, frame_times
from vidtrain.data.video import Box
from vidtrain.data.video_file import file_key, open_video_file
from vidtrain.errors import InputError

# What a seek to a keyframe costs, in decoded frames: up to so many unwanted ones are decoded
# instead. Measured on 240p to 720p H.264 with B-frames: 2 to 5.
SEEK_COST_FRAMES = 4


class PyavReader:
    """One opened video file; see `vidtrain.data.video.VideoReader`.

    Where the packet table can be trusted (`PacketTable.fast`), frame i is the one with the i-th
    smallest time stamp. It is decoded from the keyframe before it, without the packets that no
    wanted frame depends on. In all other files the frames are numbered as they come out of one
    decoding from the start.

    Args:
        path: A local video file, or a tar member.

    Raises:
        InputError: Not a video file, no frames in it, or cut short.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._table = packet_table(path)
        self.fps = self._table.fps
        self.height, self.width = self._table.height, self._table.width
        self.num_frames = (
            len(self._table.pts) if self._table.fast else len(frame_times(*file_key(path)))
        )
        self._container, self._stream = open_video_file(path, strict=self._table.fast)
        self._walk: Generator[VideoFrame, None, None] | None = None
        self._walked = 0

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Returns exactly the frames asked for, uint8 (len(indices), height, width, 3) RGB.

        Raises:
            InputError: A frame cannot be decoded, or an index is outside the video.
        """
        wanted = check_indices(indices, self.num_frames, self._path)
        frames = {index: self._shown(frame) for index, frame in self._decode(wanted)}
        return np.stack([frames[int(index)] for index in indices])

    def cut(self, indices: Sequence[int], boxes: Sequence[Box], out: Sequence[np.ndarray]) -> None:
        """Writes boxes of the frames, each scaled to the size of its array; decodes once.

        Args:
            indices: Frames; they may repeat and come in any order.
            boxes: Regions, the same for every frame.
            out: For each box a C-contiguous uint8 (len(indices), h, w, 3) array, RGB.

        Raises:
            InputError: A frame cannot be decoded, or an index is outside the video.
        """
        places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            places.setdefault(int(index), []).append(place)
        wanted = check_indices(indices, self.num_frames, self._path)
        sources = [self._coded_box(box) for box in boxes]
        for index, frame in self._decode(wanted):
            first, *others = places[index]
            for source, array in zip(sources, out, strict=True):
                self._cut(frame, source, array[first])
                for other in others:
                    array[other] = array[first]

    def frame_at(self, seconds: float) -> int:
        """Number of the first frame shown at or after a time, counted from the first frame's."""
        times = self._frame_pts if self._table.fast else frame_times(*file_key(self._path))
        if (times == NO_PTS).any():  # only some old containers: frames then last equally long
            if not self.fps:
                raise InputError(f"{self._path} does not tell the times of its frames; convert it.")
            return max(0, int(np.ceil(seconds * self.fps - 1e-6)))
        return shown_at(times, self._table.time_base, seconds)

    def close(self) -> None:
        """Gives the file back. A container that is not closed keeps its memory."""
        self._end_walk()
        self._container.close()

    @cached_property
    def _frame_pts(self) -> np.ndarray:
        return np.sort(self._table.pts)

    def _decode(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Every wanted frame with its number, once, in any order; `wanted` rises.

        Raises:
            InputError: One of them cannot be decoded, or has another size than the first frame.
        """
        missing = set(wanted)
        if self._table.fast:
            for index, frame in self._decode_runs(wanted):
                missing.discard(index)
                yield index, self._checked(frame)
        if missing:
            for index, frame in self._decode_in_order(sorted(missing)):
                yield index, self._checked(frame)

    def _decode_runs(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Wanted frames of a fast file, without those that do not come."""
        table = self._table
        order = np.argsort(table.pts)  # frame number -> packet
        packets = order[wanted]
        for start, first, last in self._runs(wanted, packets):
            chosen = packets[first:last]
            waiting = dict(zip(table.pts[chosen].tolist(), wanted[first:last], strict=True))
            needed = ~table.droppable
            needed[chosen] = True
            # What follows the keyframe but is shown before it refers to frames before the keyframe.
            needed &= (table.pts >= table.pts[start]) | (np.arange(len(needed)) <= start)
            try:
                for frame in self._decode_needed(start, int(chosen.max()), needed):
                    index = waiting.pop(frame.pts, None)  # type: ignore[arg-type]
                    if index is not None and not frame.is_corrupt:
                        yield index, frame
            except av.error.FFmpegError:
                continue  # decoding from the start may still work; if not, that says why

    def _runs(self, wanted: list[int], packets: np.ndarray) -> list[tuple[int, int, int]]:
        """Keyframe packet to start at, and the slice of `wanted` to take from there."""
        table = self._table
        keys = np.flatnonzero(table.keyframe)
        keys = keys[np.argsort(table.pts[keys])]
        starts = keys[np.searchsorted(table.pts[keys], table.pts[packets], side="right") - 1]
        cost = np.cumsum(~table.droppable)
        runs: list[tuple[int, int, int]] = []
        for place, start in enumerate(starts.tolist()):
            # Decoding goes on over a keyframe where few frames between are of no use.
            if runs and (start <= runs[-1][0] or
                         cost[start] - cost[packets[place - 1]] <= SEEK_COST_FRAMES):  # fmt: skip
                runs[-1] = (*runs[-1][:2], place + 1)
            else:
                runs.append((start, place, place + 1))
        return runs

    def _decode_needed(self, start: int, last: int, needed: np.ndarray) -> Iterator[VideoFrame]:
        """Frames of the needed packets from a keyframe to the last packet."""
        for number, packet in self._packets_from(start):
            if needed[number]:
                yield from packet.decode()  # type: ignore[misc]
            if number == last:
                break
        yield from self._stream.decode(None)  # what the decoder still holds

    def _packets_from(self, start: int) -> Iterator[tuple[int, Packet]]:
        """Packets from one on, with their places in the table; nothing if they cannot be found."""
        pts = self._table.pts
        for key in np.flatnonzero(self._table.keyframe[: start + 1])[::-1]:
            self._container.seek(int(pts[key]), stream=self._stream)
            number = -1
            for packet in self._container.demux(self._stream):
                if not packet.size:
                    continue
                if number < 0:
                    # Some containers seek by decoding time, or to what their index holds, and
                    # land late.
                    landed = np.flatnonzero(pts[: start + 1] == packet.pts)
                    if not landed.size:
                        break
                    number = int(landed[0])
                if number >= len(pts) or packet.pts != pts[number]:
                    return
                if number >= start:
                    yield number, packet
                number += 1
            if number >= 0:
                return

    def _decode_in_order(self, wanted: list[int]) -> Iterator[tuple[int, VideoFrame]]:
        """Wanted frames from one decoding of the stream, which a later call may go on with.

        Raises:
            InputError: One of them cannot be decoded.
        """
        # A fast table has already numbered the frames by their time stamps: keep to that.
        by_time: dict[int | None, int] = {}
        if self._table.fast:
            by_time = {int(self._frame_pts[index]): index for index in wanted}
        waiting, reason = set(wanted), "its data is damaged"
        if self._table.fast or wanted[0] < self._walked:
            self._end_walk()
        self._walk = self._walk or decode_all(self._path, strict=self._table.fast)
        try:
            for frame in self._walk:
                index = by_time.get(frame.pts) if self._table.fast else self._walked
                self._walked += 1
                if index in waiting and not frame.is_corrupt:
                    waiting.discard(index)
                    yield index, frame
                if index == wanted[-1]:
                    break
        except av.error.FFmpegError as error:
            reason = str(error.strerror)
        if waiting:
            self._end_walk()
            raise damaged(self._path, min(waiting), reason)

    def _end_walk(self) -> None:
        if self._walk is not None:
            self._walk.close()
        self._walk, self._walked = None, 0

    def _checked(self, frame: VideoFrame) -> VideoFrame:
        expected = (self._table.coded_height, self._table.coded_width)
        if (frame.height, frame.width) != expected:
            raise InputError(
                f"The picture size of {self._path} changes ({expected[1]}x{expected[0]}, "
                f"{frame.width}x{frame.height}); convert it to one size."
            )
        return frame

    def _shown(self, frame: VideoFrame) -> np.ndarray:
        """Pixels of a decoded frame as it is meant to be shown, uint8 (height, width, 3) RGB.

        FFmpeg converts with the frame's own matrix (BT.601, 709, 2020) and range, BT.601 and
        limited where the file states none: at most 2 of 255 from the formulas.
        """
        image: np.ndarray = frame.to_ndarray(format="rgb24", threads=1)
        height, width = self._table.upright_size
        if image.shape[1] != width:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        return self._turned(image)

    def _turned(self, image: np.ndarray) -> np.ndarray:
        swap, mirror_columns, mirror_rows = self._table.turn
        image = image.swapaxes(0, 1) if swap else image
        image = image[:, ::-1] if mirror_columns else image
        return image[::-1] if mirror_rows else image

    def _coded_box(self, box: Box) -> Box:
        """The region of the decoded frames that is shown in a box."""
        top, left, height, width = box.top, box.left, box.height, box.width
        swap, mirror_columns, mirror_rows = self._table.turn
        left = self.width - left - width if mirror_columns else left
        top = self.height - top - height if mirror_rows else top
        if swap:
            top, left, height, width = left, top, width, height
        stretch = self._table.coded_width / self._table.upright_size[1]
        if stretch != 1:
            right = min(self._table.coded_width, max(1, round((left + width) * stretch)))
            left = min(right - 1, round(left * stretch))
            width = right - left
        return Box(top, left, height, width)

    def _cut(self, frame: VideoFrame, box: Box, out: np.ndarray) -> None:
        if not any(self._table.turn):
            cut_frame(frame, box, out)
            return
        swap = self._table.turn[0]
        shape = (out.shape[1], out.shape[0], 3) if swap else out.shape
        upright = np.empty(shape, np.uint8)
        cut_frame(frame, box, upright)
        out[...] = self._turned(upright)


def count_frames(path: str) -> int:
    """Number of frames of a file: from its table, or from one decoding where that says too little.

    Raises:
        InputError: The file cannot be read to its end.
    """
    table = packet_table(path)
    return len(table.pts) if table.fast else len(frame_times(*file_key(path)))
