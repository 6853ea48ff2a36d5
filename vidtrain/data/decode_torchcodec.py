"""Reading frames of a video file with TorchCodec, which uses the FFmpeg of the system."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from vidtrain.data import whole_frames
from vidtrain.data.packets import check_indices, packet_table
from vidtrain.data.video import Box
from vidtrain.data.video_file import open_video_file
from vidtrain.errors import InputError, UsageError

REMEDY = "pip install 'vidtrain[torchcodec]' and install FFmpeg, or set data.decoder=pyav"


class TorchcodecReader:
    """One opened video file; see `vidtrain.data.video.VideoReader`.

    TorchCodec numbers frames by the time stamps of packets, so only files whose packet table is
    trusted with that (`PacketTable.fast`) are read; the time stamp of every returned frame is
    compared with the table's. Other files are refused, as are mirrored ones, which TorchCodec
    shows unmirrored, and H.264 with keyframes that need earlier frames. Damage that FFmpeg paints
    over is not noticed; data.decoder=pyav notices it. Colours of 10-bit video differ by about 3 of
    255 from those of PyAV (FFmpeg 5).

    Args:
        path: A local video file, or a tar member, which is read into memory.

    Raises:
        InputError: Not a video file, or one that TorchCodec is not trusted with.
        UsageError: TorchCodec is not installed, or finds no FFmpeg.
    """

    def __init__(self, path: str) -> None:
        VideoDecoder = _decoder_class()
        self._path = path
        self._table = table = packet_table(path)
        if table.slow_reason:
            raise _not_trusted(path, table.slow_reason)
        self.num_frames = len(table.pts)
        self.fps, self.height, self.width = table.fps, table.height, table.width
        try:
            self._decoder = VideoDecoder(
                whole_frames.source(path), stream_index=_stream_index(path), dimension_order="NHWC",
                num_ffmpeg_threads=1, device="cpu", seek_mode="exact",
            )  # fmt: skip
        except (RuntimeError, ValueError) as error:
            if "libtorchcodec" in str(error):
                raise _no_libraries() from None
            raise InputError(
                f"TorchCodec cannot open {path} ({_reason(error)}); set data.decoder=pyav."
            ) from None
        if reason := self._difference():
            raise _not_trusted(path, reason)
        self._seconds = np.sort(table.pts) * float(table.time_base)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Returns exactly the frames asked for, uint8 (len(indices), height, width, 3) RGB.

        Raises:
            InputError: A frame cannot be decoded, or an index is outside the video.
        """
        wanted = check_indices(indices, self.num_frames, self._path)
        try:
            batch = self._decoder.get_frames_at(wanted)
        except (RuntimeError, ValueError, IndexError) as error:
            raise InputError(
                f"TorchCodec cannot decode frames {wanted[0]} to {wanted[-1]} of {self._path} "
                f"({_reason(error)}); try data.decoder=pyav, which says more."
            ) from None
        late = np.abs(batch.pts_seconds.numpy() - self._seconds[wanted])
        if late.max() > float(self._table.time_base) / 2:
            wrong = wanted[int(late.argmax())]
            raise _not_trusted(self._path, f"for frame {wrong} it gives one of another time")
        frames = whole_frames.square_pixels(batch.data.numpy(), self._table)
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
        del self._decoder

    def _difference(self) -> str | None:
        """What TorchCodec sees otherwise than the packet table; None: nothing."""
        table, decoder = self._table, self._decoder
        if len(decoder) != self.num_frames:
            return f"it finds {len(decoder)} frames where there are {self.num_frames}"
        keys = getattr(decoder, "_get_key_frame_indices", None)  # which it seeks to
        if len(keys()) != table.keyframe.sum() if keys else table.count_reason:
            return "some of its keyframes need earlier frames"
        if any(table.turn):
            if sum(table.turn) % 2:
                return "it does not mirror frames"
            if not getattr(decoder.metadata, "rotation", None):
                return "before version 0.11 it does not turn frames"
        size = decoder.metadata.height, decoder.metadata.width
        if size != whole_frames.turned_size(table):
            return f"it sees frames of {size[1]}x{size[0]} pixels"
        return None


def _decoder_class() -> Any:
    try:
        from torchcodec.decoders import VideoDecoder
    except ImportError:
        raise UsageError(
            "data.decoder=torchcodec needs the package torchcodec, which is not installed: "
            f"{REMEDY}."
        ) from None
    except (RuntimeError, OSError):
        raise _no_libraries() from None
    return VideoDecoder


def _no_libraries() -> UsageError:
    return UsageError(
        "data.decoder=torchcodec: the package is installed, but cannot load FFmpeg's shared "
        f"libraries (or was built for another PyTorch): {REMEDY}."
    )


def _stream_index(path: str) -> int:
    container, stream = open_video_file(path)
    with container:
        return stream.index


def _not_trusted(path: str, reason: str) -> InputError:
    return InputError(
        f"TorchCodec is not trusted with {path}, because {reason}; set data.decoder=pyav."
    )


def _reason(error: Exception) -> str:
    """The message of TorchCodec without function and place in the source."""
    return re.sub(r"^\w+, \S+:\d+, ", "", str(error).strip().splitlines()[0])
