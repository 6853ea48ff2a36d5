"""What a run was made of: versions, command, data."""

import hashlib
import importlib.metadata
import platform
import sys
import time
from typing import Any

import torch

import vidtrain
from vidtrain.data.video import VideoList
from vidtrain.distributed import World

PACKAGES = ("torch", "torchvision", "pytorchvideo", "timm", "hydra-core", "omegaconf", "av",
            "decord", "torchcodec", "opencv-python-headless", "numpy", "onnx",
            "onnxruntime")  # fmt: skip


def fingerprint(videos: VideoList) -> dict[str, Any]:
    """Returns the number of videos and a SHA-256 over their ids and labels, in order."""
    digest = hashlib.sha256()
    for video in videos.videos:
        part = (video.num_frames, video.first_frame, video.start, video.end, video.labels)
        digest.update(f"{video.id}\0{video.label}\0{part}\n".encode(errors="surrogateescape"))
    return {"videos": len(videos.videos), "sha256": digest.hexdigest()}


def record(world: World, *, seed: int, data: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of run.json, plain values only."""
    return {
        "vidtrain": vidtrain.__version__,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": seed,
        "world_size": world.size,
        "device": str(world.device),
        "gpu": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "data": data,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
