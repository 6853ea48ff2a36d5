"""Opening a video of any kind with the decoder that was asked for."""

import difflib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from vidtrain.data.decode_decord import DecordReader
from vidtrain.data.decode_frames import FrameFolderReader
from vidtrain.data.decode_pyav import PyavReader
from vidtrain.data.decode_torchcodec import TorchcodecReader
from vidtrain.data.packets import check_indices
from vidtrain.data.video import Box, Video, VideoReader
from vidtrain.errors import InputError, UsageError

DECODERS: dict[str, Callable[[str], VideoReader]] = {
    "pyav": PyavReader, "decord": DecordReader, "torchcodec": TorchcodecReader,
}  # fmt: skip


def check_decoder(name: str) -> None:
    """Refuses an unknown decoder, before the first video is opened.

    Raises:
        UsageError: No decoder of that name.
    """
    if name not in DECODERS:
        near = difflib.get_close_matches(str(name), DECODERS, n=1, cutoff=0.0)[0]
        raise UsageError(
            f"data.decoder={name}: there is no such decoder; did you mean {near}? "
            f"Choose one of {', '.join(DECODERS)}."
        )


@dataclass(frozen=True)
class Part:
    """Consecutive frames of a video, numbered from 0; see `vidtrain.data.video.VideoReader`."""

    whole: VideoReader
    path: str
    first: int
    num_frames: int

    @property
    def fps(self) -> float | None:
        """Of the whole video."""
        return self.whole.fps

    @property
    def height(self) -> int:
        """Of the frames, pixels."""
        return self.whole.height

    @property
    def width(self) -> int:
        """Of the frames, pixels."""
        return self.whole.width

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Returns frames of this part."""
        return self.whole.read(self._numbers(indices))

    def cut(self, indices: Sequence[int], boxes: Sequence[Box], out: Sequence[np.ndarray]) -> None:
        """Writes boxes of frames of this part."""
        self.whole.cut(self._numbers(indices), boxes, out)

    def frame_at(self, seconds: float) -> int:
        """Number of the first frame at or after a time of the whole video."""
        return self.whole.frame_at(seconds) - self.first

    def close(self) -> None:
        """Closes the whole video."""
        self.whole.close()

    def _numbers(self, indices: Sequence[int]) -> list[int]:
        check_indices(indices, self.num_frames, self.path)
        return [int(index) + self.first for index in indices]


@contextmanager
def open_video(
    video: Video, decoder: str = "pyav", fps: float | None = None
) -> Iterator[VideoReader]:
    """Opens a video for the length of a `with` block.

    Args:
        video: The video: a folder is read as images, whatever the decoder.
        decoder: What reads video files: pyav, decord or torchcodec.
        fps: Frames per second of frame folders, which do not state it; None: unknown.

    Yields:
        A reader of the frames that `video` names.

    Raises:
        InputError: The video cannot be read, or has not the frames or the times that are stated.
        UsageError: No decoder of that name.
    """
    check_decoder(decoder)
    reader: VideoReader
    if os.path.isdir(video.path):
        reader = FrameFolderReader(video.path, fps=fps)
    else:
        reader = DECODERS[decoder](video.path)
    try:
        yield _part(video, reader)
    finally:
        reader.close()


def _part(video: Video, reader: VideoReader) -> VideoReader:
    """The frames that the video's entry in the list names."""
    if (video.start is None and video.end is None and video.num_frames is None
            and not video.first_frame):  # fmt: skip
        return reader
    if video.start is not None or video.end is not None:
        first = reader.frame_at(video.start or 0.0)
        last = reader.num_frames if video.end is None else reader.frame_at(video.end)
        # A segment may end a little after its video, but not begin there.
        last = min(last, reader.num_frames)
        if first >= last:
            raise InputError(
                f"There is no frame from {video.start or 0:g} s to "
                f"{'the end' if video.end is None else f'{video.end:g} s'} in {video.path}, which "
                f"has {reader.num_frames} frames"
                f"{f' at {reader.fps:.3g} per second' if reader.fps else ''}; correct the list."
            )
        return Part(reader, video.path, first, last - first)
    count = video.num_frames
    if count is None:
        count = reader.num_frames - video.first_frame
    if count < 1 or video.first_frame < 0 or video.first_frame + count > reader.num_frames:
        after = f" from frame {video.first_frame} on" if video.first_frame else ""
        raise InputError(
            f"{'some' if video.num_frames is None else video.num_frames} frames{after} are stated "
            f"for {video.path}, "
            f"but it holds {reader.num_frames}; correct the list."
        )
    return Part(reader, video.path, video.first_frame, count)
