"""The JSON file beside an exported model: all that a consumer needs to feed it and to trust it."""

import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import vidtrain
from vidtrain.export.formats import Exported, replacing
from vidtrain.export.parity import TOLERANCE, Parity

LAYOUT = "B,3,T,H,W RGB float32 normalised"
OUTPUT = "logits; apply {} for probabilities"
PACKAGES = ("torch", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Preprocessing:
    """How a video becomes the tensor `video`, as in evaluation.

    Attributes:
        num_frames: Frames of a clip, T.
        sampling_rate: Distance of two frames of a clip, in source frames.
        short_side: Short side after scaling, pixels.
        crop_size: Side of the square crop, pixels.
        mean: Per-channel RGB mean, for values in [0, 1].
        std: Per-channel RGB standard deviation, for values in [0, 1].
        target_fps: Rate at which sampling_rate counts; None: the video's own.
        clip_sampler: Class in vidtrain.data.clip_samplers that picks the frames.
    """

    num_frames: int
    sampling_rate: int
    short_side: int
    crop_size: int
    mean: Sequence[float]
    std: Sequence[float]
    target_fps: float | None = None
    clip_sampler: str = "ConstantClips"


def write_sidecar(
    path: Path,
    *,
    exported: Exported,
    parity: Parity,
    preprocessing: Preprocessing,
    class_names: Sequence[str],
    run: str,
    checkpoint: str,
    activation: str = "softmax",
    tolerance: float = TOLERANCE,
) -> Path:
    """Writes `<path>.json` atomically and returns its path.

    Args:
        path: The finished model file, already under its final name.
        exported: What the exporter reported.
        parity: What `parity.compare` measured on this file.
        preprocessing: What the model expects.
        class_names: Class names, indexed by label.
        run: Name of the run the weights come from.
        checkpoint: Name of the checkpoint within it.
        activation: softmax, or sigmoid where a video may have several classes.
        tolerance: Largest max_rel that was accepted.

    Raises:
        InputError: The file cannot be written.
    """
    content: dict[str, Any] = {
        "file": path.name,
        "sha256": _sha256(path),
        "bytes": path.stat().st_size,
        **asdict(exported),
        "input": {"name": "video", "layout": LAYOUT, **asdict(preprocessing)},
        "output": {"name": "logits", "meaning": OUTPUT.format(activation)},
        "labels": list(class_names),
        "source": {"run": run, "checkpoint": checkpoint},
        "parity": {**asdict(parity), "tolerance": tolerance},
        "versions": {
            "vidtrain": vidtrain.__version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    sidecar = path.with_name(f"{path.name}.json")
    with replacing(sidecar) as temporary:
        temporary.write_text(text + "\n", "utf-8")
    return sidecar


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
