"""Reading frames of a video file with decord, for comparison with other projects' loaders."""

import io
import re
from collections.abc import Sequence
from contextlib import closing
from functools import lru_cache

import numpy as np

from vidtrain.data import whole_frames
from vidtrain.data.decode_pyav import PyavReader
from vidtrain.data.packets import check_indices, packet_table
from vidtrain.data.video import Box
from vidtrain.data.video_file import file_key
from vidtrain.errors import InputError, UsageError


class DecordReader:
    """One opened video file; see `vidtrain.data.video.VideoReader`.

    decord seeks by counting packets and silently returns wrong frames where that count is not the
    order of showing (open groups of pictures, edit lists, MPEG-TS, missing time stamps). Such
    files are refused, and so are files to be turned or mirrored, which it does not always do.
    Colours of 10-bit video differ from PyAV's by about 3 of 255; damage that FFmpeg paints over is
    not noticed; frames of another size than the first are scaled to that.

    Args:
        path: A local video file, or a tar member, which is read into memory.

    Raises:
        InputError: Not a video file, or one that decord is not trusted with.
        UsageError: decord is not installed.
    """

    def __init__(self, path: str) -> None:
        try:
            import decord  # decord has no wheels for some platforms
        except ImportError:
            raise UsageError(
                "data.decoder=decord needs the package decord, which is not installed: "
                "run 'pip install decord', or set data.decoder=pyav."
            ) from None
        self._path = path
        # Not errors of one another; the second: more frames are broken than it may replace.
        self._errors = (RuntimeError, decord.DECORDError, decord.DECORDLimitReachedError)
        self._table = table = packet_table(path)
        if table.count_reason:
            raise _not_trusted(path, table.count_reason)
        if any(table.turn):
            raise _not_trusted(path, "it is to be turned or mirrored")
        # Seen in H.264: after a seek to such a group, the frame before is given for its last one.
        last_group = table.pts[np.flatnonzero(table.keyframe)[-1] :]
        if len(last_group) <= 3 and last_group[-1] < last_group.max():
            raise _not_trusted(path, "it ends with a short group of pictures with B-frames")
        self.num_frames = len(table.pts)
        self.fps, self.height, self.width = table.fps, table.height, table.width
        source = whole_frames.source(path)
        try:
            # fault_tol: raise when a frame is broken instead of repeating the one before it.
            self._reader = decord.VideoReader(
                io.BytesIO(source) if isinstance(source, bytes) else source,
                num_threads=1, fault_tol=1,
            )  # fmt: skip
        except self._errors as error:
            raise InputError(
                f"decord cannot open {path} ({_reason(error)}); set data.decoder=pyav."
            ) from None
        if len(self._reader) != self.num_frames:
            reason = f"it finds {len(self._reader)} frames where there are {self.num_frames}"
            raise _not_trusted(path, reason)
        first, expected = self.read([0]), _first_frame(*file_key(path))
        if np.abs(first - expected.astype(float)).mean() > 10:  # colours of 10 bits differ a little
            raise _not_trusted(path, "its first frame is not that of data.decoder=pyav")

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Returns exactly the frames asked for, uint8 (len(indices), height, width, 3) RGB.

        Raises:
            InputError: A frame cannot be decoded, or an index is outside the video.
        """
        wanted = check_indices(indices, self.num_frames, self._path)
        try:
            batch = self._reader.get_batch(wanted)
        except self._errors as error:
            raise InputError(
                f"decord cannot decode frames {wanted[0]} to {wanted[-1]} of {self._path} "
                f"({_reason(error)}); try data.decoder=pyav, which says more."
            ) from None
        # Anyone in this process may have set decord's bridge, which decides what a batch is.
        frames = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)
        if frames.shape[1:3] != whole_frames.turned_size(self._table):
            size = f"{frames.shape[2]}x{frames.shape[1]}"
            raise _not_trusted(self._path, f"it gives frames of {size} pixels")
        frames = whole_frames.square_pixels(frames, self._table)
        return frames[np.searchsorted(wanted, [int(index) for index in indices])]

    def cut(self, indices: Sequence[int], boxes: Sequence[Box], out: Sequence[np.ndarray]) -> None:
        """Writes boxes of the frames, each scaled to the size of its array.

        Raises:
            InputError: A frame cannot be decoded, or an index is outside the video.
        """
        whole_frames.cut(self.read, indices, boxes, out)

    def frame_at(self, seconds: float) -> int:
        """Number of the first frame shown at or after a time, counted from the first frame's."""
        return whole_frames.frame_at(self._table, seconds)

    def close(self) -> None:
        """Gives the file back."""
        del self._reader


@lru_cache(maxsize=16)
def _first_frame(path: str, size: int, mtime_ns: int) -> np.ndarray:
    with closing(PyavReader(path)) as reader:
        return reader.read([0])


def _not_trusted(path: str, reason: str) -> InputError:
    return InputError(
        f"decord may silently return wrong frames of {path}, because {reason}; "
        "set data.decoder=pyav."
    )


def _reason(error: Exception) -> str:
    """The message of decord without time of day, place in the source and stack."""
    return re.sub(r"\[[\d:]+\] \S+: ", "", str(error).strip().splitlines()[0])
