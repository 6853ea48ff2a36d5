"""Checkpoints: written whole or not at all, read without running code, never lost to a failure."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from vidtrain.errors import InputError

FORMAT = 1


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes a checkpoint atomically: temporary file, fsync, rename, fsync of the folder.

    Args:
        path: Final file.
        state: Tensors and plain Python values only, so that it loads with weights_only.

    Raises:
        InputError: It cannot be written; what stood at the path before still stands there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save({"format": FORMAT, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        raise InputError(_cannot_write(path, error)) from error
    finally:
        temporary.unlink(missing_ok=True)


def duplicate(source: Path, path: Path) -> None:
    """Makes a second name for a checkpoint's present content, atomically.

    A hard link where the file system has them, else a copy. `save` replaces files and never
    writes into them, so both names keep what they have.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise InputError(_cannot_write(path, error)) from error


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Reads a checkpoint; nothing in the file is executed.

    Raises:
        InputError: The file is missing, damaged, or not one of ours.
    """
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.pt"))
        raise InputError(
            f"no checkpoint {path}; "
            + (f"the folder has {', '.join(there)}" if there else "train the run first")
        )
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many types for damaged files
        raise InputError(
            f"checkpoint {path} cannot be read ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}); use another checkpoint of the run"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} is not a vidtrain checkpoint of format {FORMAT}")
    return state


def config_differences(
    saved: dict[str, Any], current: dict[str, Any], *, ignore: tuple[str, ...]
) -> list[str]:
    """Returns `key: saved -> current` for each setting that differs, sorted by key.

    Args:
        saved: Config of the checkpoint, nested.
        current: Config of this call, nested.
        ignore: Keys, or prefixes that end in a dot, which do not change the result.
    """
    old, new = _flat(saved), _flat(current)
    keys = sorted(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
    return [
        f"{key}: {old.get(key)!r} -> {new.get(key)!r}"
        for key in keys
        if not any(key == i or (i.endswith(".") and key.startswith(i)) for i in ignore)
    ]


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {prefix[:-1]: node}
    return {
        k: v for name, child in node.items() for k, v in _flat(child, f"{prefix}{name}.").items()
    }


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cannot_write(path: Path, error: Exception) -> str:
    try:
        free = f"{shutil.disk_usage(path.parent).free / 1e6:.0f} MB free there"
    except OSError:
        free = "the folder cannot be read"
    kept = f"; the earlier {path.name} is intact" if path.exists() else ""
    return (
        f"cannot write {path}: {str(error).splitlines()[0]} ({free}){kept}; "
        "free some space or give another folder with runs="
    )
