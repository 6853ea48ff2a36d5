"""Checkpoints: folders written whole or not at all, checked by sums, read without running code.

    checkpoints/step_00000120/model.safetensors     the weights
                              average.safetensors   the averaged weights, if there are any
                              state.pt              optimizer, loss scaler, counters
                              manifest.json         step, classes, figures, sizes and sums of files
    checkpoints/last, best                          links to such folders

A folder gets its name when all of its files are on the disk, so one with a name is complete.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vidtrain.errors import InputError

FORMAT = 2
MANIFEST, MODEL, AVERAGE, STATE = ("manifest.json", "model.safetensors", "average.safetensors",
                                   "state.pt")  # fmt: skip
Tensors = dict[str, torch.Tensor]


def write(
    folder: Path, step: int, *, model: Tensors, average: Tensors | None, state: dict[str, Any],
    about: dict[str, Any],
) -> Path:  # fmt: skip
    """Writes the checkpoint of a step; an unfinished or damaged one of that step is replaced.

    Args:
        folder: Where checkpoints are kept.
        step: Optimizer steps taken.
        model: Weights and buffers on the CPU, contiguous.
        average: The averaged ones, or None.
        state: What training needs besides: tensors and plain values, for `weights_only` loading.
        about: Plain JSON values for the manifest.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: It cannot be written; earlier checkpoints are intact.
    """
    final = folder / f"step_{step:08d}"
    temporary = folder / f".{final.name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        _check_room(folder, [model, average or {}, state])
        temporary.mkdir()
        meta = {"format": "pt", "vidtrain": json.dumps(about.get("build"))}
        save_file(model, temporary / MODEL, metadata=meta)
        if average is not None:
            save_file(average, temporary / AVERAGE, metadata=meta)
        torch.save(state, temporary / STATE)
        files = {path.name: _facts(path) for path in sorted(temporary.iterdir())}
        manifest = {"format": FORMAT, "step": step, **about, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
        for path in (*temporary.iterdir(), temporary):
            _sync(path)
        remove(final)
        os.rename(temporary, final)
        _sync(folder)
    except Exception as error:  # torch and safetensors have types of their own for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, InputError):
            raise
        raise InputError(_cannot_write(final, error)) from error
    return final


def point(link: Path, target: Path) -> None:
    """Makes `link` (last, best) lead to a checkpoint beside it, atomically."""
    temporary = link.with_name(f".{link.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        os.symlink(target.name, temporary)
        os.replace(temporary, link)
        _sync(link.parent)
    except OSError as error:
        raise InputError(_cannot_write(link, error)) from error


def remove(path: Path) -> None:
    """Removes a checkpoint; half removed it has no name that anyone would read."""
    if not path.exists():
        return
    gone = path.with_name(f".{path.name}.old")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(path, gone)
    shutil.rmtree(gone, ignore_errors=True)


def tidy(folder: Path) -> None:
    """Removes what a kill left half written or half removed."""
    for path in folder.glob(".step_*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


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
        file = path / Path(name).name
        try:
            found = _facts(file)
        except OSError as error:
            raise InputError(f"checkpoint {path}: {name} is not there ({error}){_USE}") from error
        if found != facts:
            raise InputError(
                f"checkpoint {path}: {name} is damaged ({found['bytes']} of {facts['bytes']} "
                f"bytes, or other content than was written){_USE}"
            )
    return manifest


def weights(path: Path, *, averaged: bool) -> Tensors:
    """Reads the weights of a checkpoint, on the CPU; nothing in it is executed.

    Args:
        path: The checkpoint's folder.
        averaged: Take the averaged ones where there are any.

    Raises:
        InputError: They are missing or damaged.
    """
    name = AVERAGE if averaged and (path / AVERAGE).exists() else MODEL
    try:
        return load_file(path / name)
    except Exception as error:  # safetensors has types of its own
        raise InputError(f"checkpoint {path}: {name} cannot be read ({error}){_USE}") from error


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
    """Returns the SHA-256 over names, types, shapes and bytes, whatever the order and device."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
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


def _facts(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {
            "bytes": path.stat().st_size,
            "sha256": hashlib.file_digest(file, "sha256").hexdigest(),
        }


def _check_room(folder: Path, parts: Iterable[Any]) -> None:
    needed = int(1.05 * sum(map(_bytes, parts))) + 2**20
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"a checkpoint takes {needed / 1e6:.0f} MB and {folder} has {free / 1e6:.0f} MB free; "
            "earlier checkpoints are intact: free some space, or give another folder with runs="
        )


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 8


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: Exception) -> str:
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB free there"
    except OSError:
        free = "the folder cannot be read"
    return (
        f"cannot write {path}: {str(error).splitlines()[0]} ({free}); earlier checkpoints are "
        "intact: free some space or give another folder with runs="
    )
