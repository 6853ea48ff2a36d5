"""Reading a video that is a folder of images, one per frame."""

import io
import math
import os
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from vidtrain.data import whole_frames
from vidtrain.data.packets import check_indices
from vidtrain.data.video import Box
from vidtrain.errors import InputError

# By content, whatever a file is called: Pillow would start an interpreter for PostScript.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP")
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
PILLOW_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


class FrameFolderReader:
    """One folder of images; see `vidtrain.data.video.VideoReader`.

    The frames are the images in the order of the last number in their names (img_00001.jpg,
    frame12.png), which must rise by one. Other files in the folder are left alone.

    Args:
        path: The folder.
        fps: Frames per second, which a folder does not state; None: unknown.

    Raises:
        InputError: No images, or names that do not count on.
    """

    def __init__(self, path: str, *, fps: float | None = None) -> None:
        self._path = path
        self._names = image_names(path)
        self.num_frames = len(self._names)
        self.fps = fps

    @property
    def height(self) -> int:
        """Of the first image, pixels."""
        return self._size[0]

    @property
    def width(self) -> int:
        """Of the first image, pixels."""
        return self._size[1]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Returns exactly the frames asked for, uint8 (len(indices), height, width, 3) RGB.

        Raises:
            InputError: An image cannot be read or has another size, or an index is too large.
        """
        wanted = check_indices(indices, self.num_frames, self._path)
        frames = {index: self._image(index) for index in wanted}
        height, width = self._size
        for index, frame in frames.items():
            if frame.shape[:2] != (height, width):
                raise InputError(
                    f"The images in {self._path} have different sizes: {self._names[0]} "
                    f"{width}x{height}, {self._names[index]} {frame.shape[1]}x{frame.shape[0]}."
                )
        return np.stack([frames[int(index)] for index in indices])

    def cut(self, indices: Sequence[int], boxes: Sequence[Box], out: Sequence[np.ndarray]) -> None:
        """Writes boxes of the frames, each scaled to the size of its array.

        Raises:
            InputError: An image cannot be read or has another size, or an index is too large.
        """
        whole_frames.cut(self.read, indices, boxes, out)

    def frame_at(self, seconds: float) -> int:
        """Number of the first frame shown at or after a time, counted from the first frame's.

        Raises:
            InputError: The frames per second are not known.
        """
        if not self.fps:
            raise InputError(
                f"The folder of images {self._path} does not tell its frames per second, so "
                "times cannot be found in it; set data.frame_folder_fps."
            )
        return max(0, math.ceil((seconds - 1e-6) * self.fps))

    def close(self) -> None:
        """Does nothing: an image file is open only while it is read."""

    @cached_property
    def _size(self) -> tuple[int, int]:
        """Height and width of the first image, turned, from its header."""
        path = os.path.join(self._path, self._names[0])
        try:
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        except PILLOW_ERRORS as error:
            raise _unreadable(path, error) from None
        return (width, height) if turned else (height, width)

    def _image(self, index: int) -> np.ndarray:
        path = os.path.join(self._path, self._names[index])
        try:
            with open(path, "rb") as file:
                content = file.read()
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                return _pixels(image, content)
        except PILLOW_ERRORS as error:
            raise _unreadable(path, error) from None


def _pixels(image: Image.Image, content: bytes) -> np.ndarray:
    """Pixels of an opened image as it is to be shown, (H, W, 3) uint8 RGB."""
    # OpenCV decodes JPEG to the same values in half the time, and turns it as EXIF asks. It says
    # nothing where a file is cut short, so those without an end are left to Pillow, which does.
    whole = content.rstrip(b"\0").endswith(b"\xff\xd9")
    if image.format == "JPEG" and image.mode in ("RGB", "L") and whole:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        if decoded is not None:
            return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scaling
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _unreadable(path: str, error: Exception) -> InputError:
    empty = os.path.isfile(path) and os.path.getsize(path) == 0
    reason = "it is empty (0 bytes)" if empty else error
    return InputError(f"Cannot read the image {path}: {reason}; copy it again.")


def image_names(path: str) -> list[str]:
    """Names of the images in a folder, in the order of their numbers.

    Raises:
        InputError: No folder, no images in it, several series of images, or a gap in the numbers.
    """
    try:
        entries = os.listdir(path)
    except OSError as error:
        raise InputError(f"Cannot read the folder {path}: {error.strerror}.") from None
    numbered = {}
    for name in entries:
        stem, extension = os.path.splitext(name)
        if extension.lower() not in IMAGE_EXTENSIONS or name.startswith("."):
            continue
        match = re.fullmatch(r"(.*?)(\d+)(\D*)", stem)
        if match is None:
            raise InputError(f"The image {name} in {path} has no number to order it by.")
        before, number, after = match.groups()
        numbered[name] = (f"{before}*{after}", int(number))
    if not numbered:
        kinds = " ".join(IMAGE_EXTENSIONS)
        raise InputError(f"The folder {path} holds no images ({kinds}).")
    series = sorted({pattern for pattern, _ in numbered.values()})
    if len(series) > 1:
        raise InputError(
            f"The folder {path} holds several series of images ({', '.join(series)}); "
            "keep each in a folder of its own."
        )
    names = sorted(numbered, key=lambda name: (numbered[name][1], name))
    for previous, name in pairwise(names):
        number, expected = numbered[name][1], numbered[previous][1] + 1
        if number < expected:
            raise InputError(f"{previous} and {name} in {path} carry the same number.")
        if number > expected:
            raise InputError(
                f"The images in {path} have a gap: number {expected} is missing "
                f"(after {previous} comes {name})."
            )
    return names
