"""What a run was made of: code, settings, packages, machine, data. Written to run.json."""

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import av
import torch

import vidtrain
from vidtrain.data.inventory import inventory
from vidtrain.data.video import VideoList
from vidtrain.distributed import World
from vidtrain.targets import ALLOW_VARIABLE

PACKAGES = ("torch", "torchvision", "pytorchvideo", "timm", "hydra-core", "omegaconf", "av",
            "decord", "torchcodec", "opencv-python-headless", "numpy", "onnx",
            "onnxruntime")  # fmt: skip
# Variables that can change a figure, and words of names whose value is nobody's business.
NUMERIC = ("ATEN_", "CUBLAS_", "CUDA_", "CUDNN_", "DNNL_", "GOMP_", "KMP_", "MKL_", "NCCL_",
           "NVIDIA_TF32", "OMP_", "ONEDNN_", "OPENBLAS_", "PYTHONHASHSEED", "PYTORCH_", "TORCH",
           "VIDTRAIN_")  # fmt: skip
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|AUTH|CREDENTIAL|COOKIE|://[^/]*@", re.IGNORECASE)
CODE = (".py", ".yaml", ".yml")


def fingerprint(videos: VideoList) -> dict[str, Any]:
    """Returns the number of videos and a SHA-256 over their ids and labels, in order."""
    digest = hashlib.sha256()
    for video in videos.videos:
        part = (video.num_frames, video.first_frame, video.start, video.end, video.labels)
        digest.update(f"{video.id}\0{video.label}\0{part}\n".encode(errors="surrogateescape"))
    return {"videos": len(videos.videos), "sha256": digest.hexdigest()}


def record(
    world: World, *, seed: int, data: Mapping[str, Any], config: Mapping[str, Any],
    videos: Mapping[str, VideoList] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Returns the content of run.json, plain JSON values only.

    Args:
        world: This process and its device.
        seed: Seed of the run.
        data: What every checkpoint holds of the data: `fingerprint` by split.
        config: The resolved config, nested plain values.
        videos: The splits, whose files are looked up, not read; see `inventory`.
    """
    files = {split: inventory(listed) for split, listed in (videos or {}).items()}
    return {
        "vidtrain": vidtrain.__version__,
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "seed": seed,
        "world_size": world.size,
        "device": str(world.device),
        **machine(world.device),
        "packages": packages(),
        "libraries": libraries(),
        "decoder": decoder((config.get("data") or {}).get("decoder")),
        "environment": environment(os.environ),
        "code": code(),
        "config_sha256": hash_of(config),
        "config": config,
        "data": {
            part: {**found, **files[part]} if part in files else found
            for part, found in data.items()
        },
    }


def hash_of(value: Any) -> str:
    """Returns the SHA-256 of plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def machine(device: torch.device) -> dict[str, Any]:
    """Returns processor, graphics card, threads and systems."""
    on_cuda = device.type == "cuda"
    return {
        "gpu": torch.cuda.get_device_name(device) if on_cuda else None,
        "gpu_capability": list(torch.cuda.get_device_capability(device)) if on_cuda else None,
        "threads": torch.get_num_threads(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cpu": _cpu_facts().get("model name") or platform.processor() or platform.machine(),
        "cpu_flags": " ".join(sorted((_cpu_facts().get("flags") or "").split())),
        "cpu_kernels": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def _cpu_facts() -> dict[str, str]:
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    facts = {key.strip(): value.strip() for key, _, value in pairs}
    return facts | {"flags": facts.get("flags") or facts.get("Features") or ""}  # x86, ARM


def packages() -> dict[str, str]:
    """Returns every installed package with its version; of those from git, the commit too."""
    found = {}
    for package in importlib.metadata.distributions():
        name = package.metadata["Name"]
        if not name or name in found:  # half removed, or hidden by one before it on the path
            continue
        commit = re.search(r'"commit_id": *"(\w+)"', package.read_text("direct_url.json") or "")
        found[name] = package.version + (f" @ {commit[1]}" if commit else "")
    return dict(sorted(found.items(), key=lambda pair: pair[0].lower()))


def libraries() -> dict[str, Any]:
    """Returns the versions of what is inside the packages: CUDA, cuDNN, NCCL, FFmpeg."""
    nccl = None
    if torch.version.cuda and torch.distributed.is_nccl_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
    return {
        "torch": torch.__version__,
        "torch_commit": torch.version.git_version,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": nccl,
        "ffmpeg_of_pyav": ffmpeg_of_pyav(),
    }


def ffmpeg_of_pyav() -> dict[str, str]:
    """Returns the versions of FFmpeg's libraries in PyAV, by name."""
    return {name: ".".join(map(str, version)) for name, version in av.library_versions.items()}


def decoder(name: str | None) -> dict[str, Any]:
    """Returns the decoder in use; of TorchCodec, which takes the system's FFmpeg, its version.

    PyAV's FFmpeg is among `libraries`; decord's is part of its wheel and does not say its version.
    """
    ffmpeg = None
    if name == "torchcodec":
        try:
            core = importlib.import_module("torchcodec._core")
            ffmpeg = json.loads(json.dumps(core.get_ffmpeg_library_versions(), default=str))
        except (ImportError, OSError, RuntimeError, AttributeError) as error:
            ffmpeg = f"unknown: {str(error).splitlines()[0]}"
    return {"name": name, "ffmpeg": ffmpeg}


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that can change a figure; none whose name or value is a secret's."""
    return {
        name: value
        for name, value in sorted(variables.items())
        if name.startswith(NUMERIC) and not SECRET.search(name) and not SECRET.search(value)
    }


def code() -> dict[str, Any]:
    """Returns what identifies the source of vidtrain, of its YAML files and of allowed packages."""
    package = Path(vidtrain.__file__).resolve().parent
    inside = package / "conf"  # in a wheel; beside the package in a checkout
    conf = inside if inside.is_dir() else package.parent / "conf"
    found = {"vidtrain": source(package), "conf": source(conf)}
    for name in os.environ.get(ALLOW_VARIABLE, "").split(","):
        top = name.strip().split(".")[0]
        spec = None
        if top:
            with contextlib.suppress(ValueError):  # a module made at run time has no file
                spec = importlib.util.find_spec(top)
        where = next(iter(spec.submodule_search_locations or ()), spec.origin) if spec else None
        if where and Path(where).exists():
            found[top] = source(Path(where))
    return found


def source(path: Path) -> dict[str, Any]:
    """Returns hash, git commit and hash of uncommitted changes of a package or a module.

    Args:
        path: Its folder or file.

    Returns:
        sha256: over names and bytes of its source files. commit, diff_sha256: None where it is not
        tracked by git; the latter also where it is as committed.
    """
    folder = path if path.is_dir() else path.parent
    name = "." if path.is_dir() else path.name
    tracked = _git(folder, "ls-files", "--", name)
    diff = _git(folder, "diff", "--no-ext-diff", "--no-textconv", "HEAD", "--", name)
    return {
        "sha256": source_hash(path),
        "commit": (_git(folder, "rev-parse", "HEAD") or "").strip() or None if tracked else None,
        "diff_sha256": hashlib.sha256(diff.encode(errors="surrogateescape")).hexdigest()
        if tracked and diff else None,
    }  # fmt: skip


def source_hash(path: Path) -> str:
    """Returns a SHA-256 over names and bytes of a folder's Python and YAML files, or of a file."""
    digest = hashlib.sha256()
    for file in _code_files(path):
        name = file.relative_to(path).as_posix() if file != path else file.name
        digest.update(f"{name}\0".encode(errors="surrogateescape"))
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _code_files(path: Path) -> Iterable[Path]:
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in CODE and file.is_file())


def _git(folder: Path, *words: str) -> str | None:
    """Output of a git command that reads only, or None without git or outside a checkout."""
    quiet = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-c", "core.fsmonitor=false", "-C", str(folder), *words],
            capture_output=True, text=True, errors="surrogateescape", timeout=60, check=False,
            env=quiet,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
