"""Checkpoints: folders written whole or not at all, checked by sums, read without running code.

    checkpoints/step_00000120/model.safetensors     the weights
                              average.safetensors   the averaged weights, if there are any
                              shards/               instead of both where processes share weights:
                                                    model., average. and optimizer. tensors
                              state.pt              optimizer, loss scaler, counters
                              manifest.json         step, classes, figures, sizes and sums of files
    checkpoints/last, best                          links to such folders

A folder gets its name when all of its files are on the disk, so one with a name is complete.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from vidtrain.errors import InputError
from vidtrain.parallel import shard_files
from vidtrain.parallel.shards import full

FORMAT = 2
MANIFEST, MODEL, AVERAGE, STATE, SHARDS = (
    "manifest.json", "model.safetensors", "average.safetensors", "state.pt", "shards",
)  # fmt: skip
Tensors = dict[str, torch.Tensor]


def all_steps(folder: Path) -> list[Path]:
    """Returns the checkpoints of a folder, the oldest first."""
    return sorted(path for path in folder.glob("step_*") if path.is_dir())


def manifest_of(path: Path) -> dict[str, Any]:
    """Reads the manifest of a checkpoint: step, class_names, build, figures, files.

    Raises:
        InputError: There is no such checkpoint, or it is damaged.
    """
    file = path / MANIFEST
    try:
        found = json.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        parent = path.parent
        there = [p.name for p in all_steps(parent)] if parent.is_dir() else []
        raise InputError(
            f"no checkpoint {path}; "
            + (f"the folder has {', '.join(there)}" if there else "train the run first")
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"checkpoint {path}: {file.name} is damaged ({error}){_USE}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{path} is not a vidtrain checkpoint of format {FORMAT}")
    return found


_USE = "; use another checkpoint of the run"


def verify(path: Path) -> dict[str, Any]:
    """Reads every file of a checkpoint, holds it against its sum, and returns the manifest.

    Raises:
        InputError: A file is missing or damaged; the message names it.
    """
    manifest = manifest_of(path)
    for name, facts in manifest["files"].items():
        inside = Path(name)
        if inside.is_absolute() or ".." in inside.parts:
            raise InputError(f"checkpoint {path}: {MANIFEST} names {name}, outside of the folder")
        try:
            found = facts_of(path / inside)
        except OSError as error:
            raise InputError(f"checkpoint {path}: {name} is not there ({error}){_USE}") from error
        if found != facts:
            raise InputError(
                f"checkpoint {path}: {name} is damaged ({found['bytes']} of {facts['bytes']} "
                f"bytes, or other content than was written){_USE}"
            )
    return manifest


def weights(path: Path, *, averaged: bool) -> Tensors:
    """Reads the weights of a checkpoint whole, on the CPU; nothing in it is executed.

    Args:
        path: The checkpoint's folder.
        averaged: Take the averaged ones where there are any.

    Raises:
        InputError: They are missing or damaged.
    """
    if is_sharded(path):
        return _from_shards(path / SHARDS, averaged=averaged)
    name = AVERAGE if averaged and (path / AVERAGE).exists() else MODEL
    try:
        return load_file(path / name)
    except Exception as error:  # safetensors has types of its own
        raise InputError(f"checkpoint {path}: {name} cannot be read ({error}){_USE}") from error


def is_sharded(path: Path) -> bool:
    """Returns whether the weights of a checkpoint were written in parts, by several processes."""
    return (path / SHARDS).is_dir()


def has_average(path: Path) -> bool:
    """Returns whether a checkpoint holds averaged weights."""
    if not is_sharded(path):
        return (path / AVERAGE).exists()
    return any(name.startswith("average.") for name in shard_files.contents(path / SHARDS))


def _from_shards(folder: Path, *, averaged: bool) -> Tensors:
    there = shard_files.contents(folder)
    prefix = "average." if averaged and has_average(folder.parent) else "model."
    found = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in there.items()
             if name.startswith(prefix)}  # fmt: skip
    shard_files.read(found, folder)
    return {name.removeprefix(prefix): value for name, value in found.items()}


def state(path: Path) -> dict[str, Any]:
    """Reads what training needs besides the weights, to the CPU; nothing in it is executed.

    Raises:
        InputError: It is missing or damaged.
    """
    try:
        return torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        reason = str(error).splitlines()[0]
        raise InputError(f"checkpoint {path}: {STATE} cannot be read ({reason}){_USE}") from error


def digest(tensors: Tensors) -> str:
    """Returns the SHA-256 over names, types, shapes and bytes, whatever the order and device.

    Where processes share the tensors all of them have to call.
    """
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = full(tensors[name].detach()).cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def config_differences(
    saved: dict[str, Any], current: dict[str, Any], *, ignore: tuple[str, ...]
) -> list[str]:
    """Returns `key: saved -> current` for each setting that differs, sorted by key.

    Args:
        saved: Config of the checkpoint, nested.
        current: Config of this call, nested.
        ignore: Keys, or prefixes that end in a dot, which do not change the result.
    """
    old, new = flat(saved), flat(current)
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in keys
        if not any(key == i or (i.endswith(".") and key.startswith(i)) for i in ignore)
    ]


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Returns nested settings by dotted key."""
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {
        k: v for name, child in node.items() for k, v in flat(child, f"{prefix}{name}.").items()
    }


def facts_of(path: Path) -> dict[str, Any]:
    """Returns size and SHA-256 of a file, as the manifest has them."""
    with open(path, "rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }
