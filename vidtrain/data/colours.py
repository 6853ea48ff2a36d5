"""From a decoded frame's planes to RGB pixels of one region at one size.

The planes are cut and scaled each for itself, and only the scaled pixels are converted: less work
than converting whole frames, and the same for every matrix, range, depth and subsampling.
"""

from functools import lru_cache

import cv2
import numpy as np
from av.video.frame import VideoFrame

from vidtrain.data.video import Box
from vidtrain.data.views import scale

# Pixel format -> bits, and how many columns and rows share one colour sample.
FORMATS = {
    "yuv420p": (8, 2, 2), "yuvj420p": (8, 2, 2), "yuv422p": (8, 2, 1), "yuvj422p": (8, 2, 1),
    "yuv444p": (8, 1, 1), "yuvj444p": (8, 1, 1), "yuv440p": (8, 1, 2), "yuv411p": (8, 4, 1),
    "yuv420p10le": (10, 2, 2), "yuv422p10le": (10, 2, 1), "yuv444p10le": (10, 1, 1),
    "yuv420p12le": (12, 2, 2), "yuv422p12le": (12, 2, 1), "yuv444p12le": (12, 1, 1),
}  # fmt: skip
# FFmpeg's number of the matrix -> shares of red and blue in the luma; 2 is "not stated", for
# which FFmpeg takes BT.601. Source: ITU-T H.273, table 4.
BT601 = (0.299, 0.114)
LUMA_SHARES = {
    1: (0.2126, 0.0722), 2: BT601, 4: (0.30, 0.11), 5: BT601, 6: BT601, 7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}  # fmt: skip
FULL_RANGE = 2  # FFmpeg's number


def cut_frame(frame: VideoFrame, box: Box, out: np.ndarray) -> None:
    """Cuts a box from a decoded frame, scales it to the size of `out` and writes it there.

    Args:
        frame: As decoded: not turned.
        box: Region in the frame's own pixels.
        out: (h, w, 3) uint8 RGB, C-contiguous.
    """
    known = FORMATS.get(frame.format.name)
    shares = LUMA_SHARES.get(int(frame.colorspace))
    if known is None or shares is None:  # RGB, grey, palettes and rare matrices: FFmpeg converts
        rows, columns = slice(box.top, box.top + box.height), slice(box.left, box.left + box.width)
        scale(frame.to_ndarray(format="rgb24", threads=1)[rows, columns], out)
        return
    bits, share_x, share_y = known
    dtype = np.uint8 if bits == 8 else np.uint16
    full = frame.format.name.startswith("yuvj") or int(frame.color_range) == FULL_RANGE
    height, width = out.shape[:2]
    # The commonest kind of video has a kernel of its own. It takes colour at half the size, which
    # is as much as there is, unless the picture is made smaller.
    common = (
        known == (8, 2, 2) and shares == BT601 and not (full or height % 2 or width % 2)
        and box.height <= height and box.width <= width
    )  # fmt: skip
    if common:
        flat = np.empty(height * width * 3 // 2, np.uint8)
        colour = flat[height * width :].reshape(2, height // 2, width // 2)
        scaled = [flat[: height * width].reshape(height, width), *colour]
    else:
        scaled = [np.empty((height, width), dtype) for _ in range(3)]
    for number, plane in enumerate(frame.planes):
        sx, sy = (share_x, share_y) if number else (1, 1)
        pixels = np.frombuffer(plane, dtype).reshape(plane.height, -1)  # type: ignore[call-overload]
        top, bottom = box.top // sy, -(-(box.top + box.height) // sy)
        left, right = box.left // sx, -(-(box.left + box.width) // sx)
        scale(pixels[top:bottom, left:right], scaled[number])
    if common:
        cv2.cvtColor(flat.reshape(height * 3 // 2, width), cv2.COLOR_YUV2RGB_I420, dst=out)
        return
    matrix = _to_rgb(shares, full, bits)
    if bits == 8:
        cv2.transform(cv2.merge(scaled), matrix, dst=out)
    else:
        cv2.convertScaleAbs(cv2.transform(cv2.merge(scaled), matrix), dst=out)


@lru_cache(maxsize=64)
def _to_rgb(shares: tuple[float, float], full: bool, bits: int) -> np.ndarray:
    """(3, 4) float32 that takes (Y, Cb, Cr, 1) of `bits` bits to RGB in 0 to 255.

    Source: ITU-R BT.601-7, BT.709-6 and BT.2020-2; ranges as in ITU-T H.273, 8.3.
    """
    red, blue = shares
    green = 1.0 - red - blue
    unit = 2 ** (bits - 8)
    black, luma, chroma = (0, 2**bits - 1, 2**bits - 1) if full else (
        16 * unit, 219 * unit, 224 * unit)  # fmt: skip
    y, c = 255.0 / luma, 255.0 / chroma
    linear = np.array([
        [y, 0.0, 2 * (1 - red) * c],
        [y, -2 * (1 - blue) * blue / green * c, -2 * (1 - red) * red / green * c],
        [y, 2 * (1 - blue) * c, 0.0],
    ])  # fmt: skip
    offset = -linear @ np.array([black, 128.0 * unit, 128.0 * unit])
    return np.column_stack([linear, offset]).astype(np.float32)
