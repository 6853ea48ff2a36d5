"""Opening a video of any kind with the decoder that was asked for."""

import difflib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vidtrain.data.decode_decord import DecordReader
from vidtrain.data.decode_frames import FrameFolderReader
from vidtrain.data.decode_pyav import PyavReader
from vidtrain.data.video import Video, VideoReader
from vidtrain.errors import InputError, UsageError

DECODERS: dict[str, Callable[[str], VideoReader]] = {"pyav": PyavReader, "decord": DecordReader}


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


@contextmanager
def open_video(
    video: Video, decoder: str = "pyav", fps: float | None = None
) -> Iterator[VideoReader]:
    """Opens a video for the length of a `with` block.

    Args:
        video: The video: a folder is read as images, whatever the decoder.
        decoder: What reads video files: pyav or decord.
        fps: Frames per second of frame folders, which do not state it; None: unknown.

    Yields:
        A reader with `video.num_frames` frames where that is given.

    Raises:
        InputError: The video cannot be read, or has fewer frames than `video.num_frames`.
        UsageError: No decoder of that name.
    """
    check_decoder(decoder)
    reader: VideoReader
    if os.path.isdir(video.path):
        reader = FrameFolderReader(video.path, num_frames=video.num_frames, fps=fps)
    else:
        reader = DECODERS[decoder](video.path)
    try:
        if video.num_frames is not None:
            if not 1 <= video.num_frames <= reader.num_frames:
                raise InputError(
                    f"{video.num_frames} frames are stated for {video.path}, "
                    f"but it holds {reader.num_frames}; correct the list."
                )
            reader.num_frames = video.num_frames
        yield reader
    finally:
        reader.close()
