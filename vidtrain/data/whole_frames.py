"""What the decoders that give only whole RGB frames have in common."""

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from vidtrain.data.packets import PacketTable, shown_at
from vidtrain.data.video import Box, split_member
from vidtrain.data.views import cut_frames


def source(path: str) -> str | bytes:
    """What to open: an address that can only be a local file, or the bytes of a tar member."""
    if member := split_member(path):
        tar, offset, size = member
        with open(tar, "rb") as file:
            file.seek(offset)
            return file.read(size)
    return f"file:{path}"


def turned_size(table: PacketTable) -> tuple[int, int]:
    """Height and width of the frames when they are turned, but not yet stretched."""
    size = table.coded_height, table.coded_width
    return size[::-1] if table.turn[0] else size


def square_pixels(frames: np.ndarray, table: PacketTable) -> np.ndarray:
    """Scales turned frames (T, H, W, 3) to the size at which their pixels are square."""
    height, width = table.height, table.width
    if frames.shape[1:3] == (height, width):
        return frames
    scaled = np.empty((len(frames), height, width, 3), np.uint8)
    for frame, place in zip(frames, scaled, strict=True):
        cv2.resize(frame, (width, height), dst=place, interpolation=cv2.INTER_LINEAR)
    return scaled


def cut(
    read: Callable[[Sequence[int]], np.ndarray],
    indices: Sequence[int],
    boxes: Sequence[Box],
    out: Sequence[np.ndarray],
) -> None:
    """Does `VideoReader.cut` with `VideoReader.read`."""
    frames = read(indices)
    for box, array in zip(boxes, out, strict=True):
        cut_frames(frames, box, array)


def frame_at(table: PacketTable, seconds: float) -> int:
    """Does `VideoReader.frame_at` for a fast table."""
    return shown_at(np.sort(table.pts), table.time_base, seconds)
