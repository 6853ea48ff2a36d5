"""What a video is to vidtrain: one list of labelled videos, one interface to read frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Video:
    """One labelled video: a file, or a folder of frame images.

    Attributes:
        path: Absolute path of the file or folder.
        label: Class index, 0 <= label < number of classes.
        id: Name that is unique within its list (the path as the list or folder states it).
        num_frames: Frames to use, counted from the first; None means all there are.
    """

    path: str
    label: int
    id: str
    num_frames: int | None = None


@dataclass(frozen=True)
class VideoList:
    """The videos of one split and the names of the classes, indexed by label."""

    videos: tuple[Video, ...]
    class_names: tuple[str, ...]


class VideoReader(Protocol):
    """An opened video. Frames are numbered in display order from 0.

    Attributes:
        num_frames: Number of frames that can be read.
        fps: Average frames per second, or None where unknown (frame folders).
    """

    num_frames: int
    fps: float | None

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Returns exactly the frames asked for, uint8 (len(indices), H, W, 3) RGB.

        Indices may repeat and come in any order.

        Raises:
            InputError: A frame cannot be decoded, or an index is outside the video.
        """
        ...

    def close(self) -> None:
        """Gives the file back."""
        ...
