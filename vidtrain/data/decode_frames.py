"""Reading a video that is a folder of images, one per frame."""

import os
import re
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image, ImageOps

from vidtrain.data.packets import check_indices
from vidtrain.errors import InputError

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class FrameFolderReader:
    """One folder of images; see `vidtrain.data.video.VideoReader`.

    The frames are the images in the order of the last number in their names (img_00001.jpg,
    frame12.png), which must rise by one. Other files in the folder are left alone.

    Args:
        path: The folder.
        num_frames: Images to use, from the first; None: all.
        fps: Frames per second, which a folder does not state; None: unknown.

    Raises:
        InputError: No images, names that do not count on, or fewer images than num_frames.
    """

    def __init__(
        self, path: str, *, num_frames: int | None = None, fps: float | None = None
    ) -> None:
        self._path = path
        self._names = image_names(path)
        self.num_frames = len(self._names) if num_frames is None else num_frames
        if not 1 <= self.num_frames <= len(self._names):
            raise InputError(
                f"{num_frames} frames are stated for the folder {path}, "
                f"but it holds {len(self._names)} images; correct the list."
            )
        self.fps = fps

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Returns exactly the frames asked for, uint8 (len(indices), H, W, 3) RGB.

        Raises:
            InputError: An image cannot be read or has another size, or an index is too large.
        """
        wanted = check_indices(indices, self.num_frames, self._path)
        frames = {index: self._image(index) for index in wanted}
        first = frames[wanted[0]].shape
        for index in wanted:
            if frames[index].shape != first:
                raise InputError(
                    f"The images in {self._path} have different sizes: {self._names[wanted[0]]} "
                    f"{first[1]}x{first[0]}, {self._names[index]} "
                    f"{frames[index].shape[1]}x{frames[index].shape[0]}."
                )
        return np.stack([frames[int(index)] for index in indices])

    def close(self) -> None:
        """Does nothing: an image file is open only while it is read."""

    def _image(self, index: int) -> np.ndarray:
        path = os.path.join(self._path, self._names[index])
        try:
            with Image.open(path) as image:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            empty = os.path.isfile(path) and os.path.getsize(path) == 0
            reason = "it is empty (0 bytes)" if empty else error
            raise InputError(f"Cannot read the image {path}: {reason}; copy it again.") from None


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
