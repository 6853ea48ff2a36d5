"""Reading frames of a video file with decord, for comparison with other projects' loaders."""

import re
from collections.abc import Sequence
from contextlib import closing
from functools import lru_cache

import numpy as np

from vidtrain.data.decode_pyav import PyavReader
from vidtrain.data.packets import check_indices, file_key, packet_table
from vidtrain.errors import InputError, UsageError


class DecordReader:
    """One opened video file; see `vidtrain.data.video.VideoReader`.

    decord seeks by counting packets and silently returns wrong frames where that count is not the
    order of showing (open groups of pictures, edit lists, MPEG-TS, missing time stamps). Such
    files are refused. Colours of 10-bit video differ from PyAV's by about 3 of 255.

    Args:
        path: A local video file.

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
        table = packet_table(path)
        if table.count_reason:
            raise _not_trusted(path, table.count_reason)
        self._path = path
        self._error = decord.DECORDError
        self.num_frames = len(table.pts)
        self.fps = table.fps
        try:
            # fault_tol: raise when a frame is broken instead of repeating the one before it.
            self._reader = decord.VideoReader(f"file:{path}", num_threads=1, fault_tol=1)
        except (RuntimeError, decord.DECORDError) as error:
            raise InputError(
                f"decord cannot open {path} ({_reason(error)}); set data.decoder=pyav."
            ) from None
        if len(self._reader) != self.num_frames:
            reason = f"it finds {len(self._reader)} frames where there are {self.num_frames}"
            raise _not_trusted(path, reason)
        first, expected = self.read([0]), _first_frame(*file_key(path))
        # decord turns pictures, but does not mirror them. Colours may differ a little (10 bits).
        if first.shape != expected.shape or np.abs(first - expected.astype(float)).mean() > 10:
            raise _not_trusted(path, "its first frame is not that of data.decoder=pyav")

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Returns exactly the frames asked for, uint8 (len(indices), H, W, 3) RGB.

        Raises:
            InputError: A frame cannot be decoded, or an index is outside the video.
        """
        wanted = check_indices(indices, self.num_frames, self._path)
        try:
            batch = self._reader.get_batch(wanted)
        except (RuntimeError, self._error) as error:
            raise InputError(
                f"decord cannot decode frames {wanted[0]} to {wanted[-1]} of {self._path} "
                f"({_reason(error)}); try data.decoder=pyav, which says more."
            ) from None
        # Anyone in this process may have set decord's bridge, which decides what a batch is.
        frames = batch.asnumpy() if hasattr(batch, "asnumpy") else np.asarray(batch)
        return frames[np.searchsorted(wanted, [int(index) for index in indices])]

    def close(self) -> None:
        """Gives the file back."""
        del self._reader


@lru_cache(maxsize=1024)
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
