"""What a video is to vidtrain: one list of labelled videos, one interface to read frames."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np


@dataclass(frozen=True)
class Video:
    """One labelled video: a file, a part of one, a member of a tar file, or a folder of images.

    Attributes:
        path: Absolute path of the file or folder; a tar member as `tar_member` writes it.
        label: Class index, 0 <= label < number of classes; the first of several, -1 for none.
        id: Name that is unique within its list (the path as the list or folder states it).
        num_frames: Frames to use, counted from first_frame; None means all there are.
        first_frame: First frame to use.
        start: Time that the part to use begins at, seconds from the first frame; None: the
            beginning. Only where first_frame and num_frames are not given.
        end: Time that the part ends before, seconds from the first frame; None: the end.
        labels: All classes of a video that may have several; empty where `label` is all there is.
    """

    path: str
    label: int
    id: str
    num_frames: int | None = None
    first_frame: int = 0
    start: float | None = None
    end: float | None = None
    labels: tuple[int, ...] = ()

    @property
    def all_labels(self) -> tuple[int, ...]:
        """All classes, whether the data set gives one or several to a video."""
        return self.labels or ((self.label,) if self.label >= 0 else ())


@dataclass(frozen=True)
class VideoList:
    """The videos of one split and the names of the classes, indexed by label.

    Attributes:
        videos: The videos, in a fixed order.
        class_names: Names by label.
        multi_label: Whether a video may have several classes, or none; `Video.labels` holds them.
    """

    videos: tuple[Video, ...]
    class_names: tuple[str, ...]
    multi_label: bool = False


@dataclass(frozen=True)
class Box:
    """A region of a video's frames as they are shown, in pixels."""

    top: int
    left: int
    height: int
    width: int


class VideoReader(Protocol):
    """An opened video. Frames are numbered in display order from 0.

    Frames are as they are shown: turned and mirrored as the file asks, with square pixels.
    """

    @property
    def num_frames(self) -> int:
        """Number of frames that can be read."""
        ...

    @property
    def fps(self) -> float | None:
        """Average frames per second, or None where unknown (frame folders)."""
        ...

    @property
    def height(self) -> int:
        """Of the frames, pixels."""
        ...

    @property
    def width(self) -> int:
        """Of the frames, pixels."""
        ...

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Returns exactly the frames asked for, uint8 (len(indices), height, width, 3) RGB.

        Indices may repeat and come in any order.

        Raises:
            InputError: A frame cannot be decoded, or an index is outside the video.
        """
        ...

    def cut(self, indices: Sequence[int], boxes: Sequence[Box], out: Sequence[np.ndarray]) -> None:
        """Writes boxes of the frames, each scaled to the size of its array; decodes once.

        Args:
            indices: Frames; they may repeat and come in any order.
            boxes: Regions, the same for every frame.
            out: For each box a C-contiguous uint8 (len(indices), h, w, 3) array, RGB.

        Raises:
            InputError: A frame cannot be decoded, or an index is outside the video.
        """
        ...

    def frame_at(self, seconds: float) -> int:
        """Number of the first frame shown at or after a time, counted from the first frame's.

        Raises:
            InputError: The file's times are not known.
        """
        ...

    def close(self) -> None:
        """Gives the file back."""
        ...


_MEMBER = re.compile(r"(?P<tar>.+)@(?P<offset>\d+)\+(?P<size>\d+)", re.DOTALL)


def tar_member(tar: str, offset: int, size: int) -> str:
    """Returns the path that stands for the bytes of one member of an uncompressed tar file."""
    return f"{tar}@{offset}+{size}"


def split_member(path: str) -> tuple[str, int, int] | None:
    """Returns the tar file, the offset and the size in bytes of a tar member; None for others."""
    match = _MEMBER.fullmatch(path) if ".tar@" in path else None
    return (match["tar"], int(match["offset"]), int(match["size"])) if match else None
