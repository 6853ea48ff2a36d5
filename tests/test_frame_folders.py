"""Folders of images: every kind of image file, turned, damaged, and their times."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from vidtrain.data.decode_frames import FrameFolderReader
from vidtrain.data.video import Box
from vidtrain.errors import InputError

GREY = np.linspace(0, 65535, 40 * 30).reshape(30, 40)
COLOUR = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], -1)


def image_of(kind: str) -> tuple[Image.Image, np.ndarray]:
    """An image of 40x30 and the RGB pixels that it shows."""
    eight = (COLOUR / 257).round().astype(np.uint8)
    if kind == "16-bit grey":
        return Image.fromarray(GREY.astype(np.uint16)), np.repeat((GREY / 257)[..., None], 3, 2)
    if kind in ("L", "LA", "1"):
        image = Image.fromarray(eight).convert("L")
        image = image.point(lambda level: 255 * (level > 99)) if kind == "1" else image
        return image.convert(kind), np.repeat(np.asarray(image)[..., None], 3, 2)
    image = Image.fromarray(eight)
    if kind == "P":
        image = image.quantize(32)
        return image, np.asarray(image.convert("RGB"))
    if kind == "RGBA":
        image.putalpha(90)
    return (image.convert("CMYK") if kind == "CMYK" else image), eight


@pytest.mark.parametrize(
    ("kind", "extension"),
    [("16-bit grey", "png"), ("L", "png"), ("LA", "png"), ("1", "png"), ("P", "png"),
     ("RGBA", "png"), ("RGB", "png"), ("RGB", "bmp"), ("P", "bmp"), ("RGB", "webp"),
     ("L", "jpg"), ("RGB", "jpg"), ("CMYK", "jpg")],
)  # fmt: skip
def test_images_of_every_kind(tmp_path: Path, kind: str, extension: str) -> None:
    image, expected = image_of(kind)
    options: dict[str, Any] = {"jpg": {"quality": 98, "subsampling": 0}, "webp": {"lossless": True}}
    image.save(tmp_path / f"0.{extension}", **options.get(extension, {}))
    reader = FrameFolderReader(str(tmp_path))
    assert (reader.height, reader.width) == (30, 40)
    frame = reader.read([0])[0]
    assert frame.dtype == np.uint8 and frame.shape == (30, 40, 3)
    difference = np.abs(frame - expected.astype(float))
    assert difference.max() <= (12 if extension == "jpg" else 1)
    assert difference.mean() <= 2


def test_sixteen_bit_colours(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), COLOUR[..., ::-1].astype(np.uint16))
    frame = FrameFolderReader(str(tmp_path)).read([0])[0]
    assert np.abs(frame - COLOUR / 257).max() <= 1


@pytest.mark.parametrize("extension", ["jpg", "png"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_exif_asks(tmp_path: Path, orientation: int, extension: str) -> None:
    image, exif = image_of("RGB")[0], Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    for number in range(2):
        image.save(tmp_path / f"{number}.{extension}", exif=exif)
    with Image.open(tmp_path / f"1.{extension}") as saved:
        expected = np.asarray(ImageOps.exif_transpose(saved))
    reader = FrameFolderReader(str(tmp_path))
    assert (reader.height, reader.width) == expected.shape[:2]
    assert expected.shape[:2] == ((30, 40) if orientation < 5 else (40, 30))
    np.testing.assert_array_equal(reader.read([1])[0], expected)
    out = np.empty((1, 10, 12, 3), np.uint8)
    reader.cut([1], [Box(4, 6, 10, 12)], [out])
    np.testing.assert_array_equal(out[0], expected[4:14, 6:18])


def test_cut_short_jpeg_is_refused(tmp_path: Path) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    for number in range(2):
        image.save(tmp_path / f"{number}.jpg")
    path = tmp_path / "1.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    reader = FrameFolderReader(str(tmp_path))
    assert reader.read([0]).shape == (1, 64, 64, 3)
    with pytest.raises(InputError, match=r"Cannot read the image .*1\.jpg: .*truncated"):
        reader.read([0, 1])


def test_times_in_a_folder_of_images(tmp_path: Path) -> None:
    for number in range(5):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{number}.png")
    with pytest.raises(InputError, match=r"does not tell its frames per second.*frame_folder_fps"):
        FrameFolderReader(str(tmp_path)).frame_at(1.0)
    reader = FrameFolderReader(str(tmp_path), fps=4.0)
    assert [reader.frame_at(t) for t in (-1, 0, 0.1, 0.25, 0.26, 1.0)] == [0, 0, 1, 1, 2, 4]
