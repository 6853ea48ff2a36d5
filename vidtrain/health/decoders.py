"""Each decoder reads one frame of a small H.264 file."""

import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from vidtrain.data.reading import DECODERS, open_video
from vidtrain.data.sources.motion_clips import encode_h264
from vidtrain.data.video import Video
from vidtrain.errors import InputError
from vidtrain.health.findings import Finding


def decoders(wanted: str) -> Iterator[Finding]:
    """Tries every decoder.

    Args:
        wanted: The one that a training would use: without it there is none.
    """
    frames = np.stack([np.full((64, 64, 3), grey, np.uint8) for grey in range(0, 250, 25)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.mp4"
        path.write_bytes(encode_h264(frames, rate=Fraction(25), group_size=12))
        for name in DECODERS:
            verdict, remedy = "ok", ""
            try:
                with open_video(Video(str(path), 0, "probe"), name) as reader:
                    grey = float(reader.read([4]).mean())
                found = f"frame 4 reads {grey:.0f} of 100"
                if abs(grey - 100) >= 4:
                    verdict, remedy = "fail", f"install {name} again, or use another data.decoder"
            except (InputError, ImportError, OSError, RuntimeError) as error:
                verdict = "fail" if name == wanted else "warn"
                found, remedy = str(error).splitlines()[0], "another data.decoder may do"
            yield Finding(f"decoder {name}", verdict, found, remedy)
