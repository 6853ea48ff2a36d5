"""How checkpoints get onto the disk: whole or not at all, and removed the same way."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from vidtrain.checkpoints.checkpoint import (
    AVERAGE,
    FORMAT,
    MANIFEST,
    MODEL,
    STATE,
    Tensors,
    facts_of,
)
from vidtrain.checkpoints.weight_files import save_weights
from vidtrain.errors import InputError

REPLACED = ".was"  # end of the hidden name of a checkpoint that another of its step replaces


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
    temporary = begin(folder, step, needed=[model, average or {}, state])
    try:
        save_weights(model, temporary / MODEL, about=about.get("build"))
        if average is not None:
            save_weights(average, temporary / AVERAGE, about=about.get("build"))
    except Exception as error:  # torch and safetensors have types of their own for a full disk
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(_cannot_write(temporary, error)) from error
    return finish(temporary, folder, step, state=state, about=about)


def begin(folder: Path, step: int, *, needed: Iterable[Any]) -> Path:
    """Returns an empty folder for the files of a checkpoint, which has no name to be read by.

    Args:
        folder: Where checkpoints are kept.
        step: Optimizer steps taken.
        needed: What will be written, tensors and plain values, to see whether there is room.

    Raises:
        InputError: There is no room, or the folder cannot be written to.
    """
    temporary = folder / f".step_{step:08d}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        _check_room(folder, needed)
        temporary.mkdir()
    except OSError as error:
        raise InputError(_cannot_write(temporary, error)) from error
    return temporary


def finish(
    temporary: Path, folder: Path, step: int, *, state: dict[str, Any], about: dict[str, Any]
) -> Path:
    """Adds state and manifest to the weights in a folder that `begin` made, and gives it its name.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: It cannot be written; earlier checkpoints are intact.
    """
    final = folder / f"step_{step:08d}"
    try:
        torch.save(state, temporary / STATE)
        written = sorted(path for path in temporary.rglob("*") if path.is_file())
        files = {path.relative_to(temporary).as_posix(): facts_of(path) for path in written}
        manifest = {"format": FORMAT, "step": step, **about, "files": files}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
        for path in (*written, temporary / MANIFEST, *{path.parent for path in written}):
            _sync(path)
        replaced = final.with_name(f".{final.name}{REPLACED}")
        shutil.rmtree(replaced, ignore_errors=True)
        if final.exists():
            os.rename(final, replaced)
        os.rename(temporary, final)
        _sync(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        bring_back(folder)
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


def bring_back(folder: Path) -> None:
    """Gives a checkpoint its name again that was about to be replaced when a kill came.

    Raises:
        InputError: The folder cannot be written.
    """
    for replaced in folder.glob(f".step_*{REPLACED}"):
        final = replaced.with_name(replaced.name.removesuffix(REPLACED)[1:])
        if not final.exists():
            try:
                os.rename(replaced, final)
            except OSError as error:
                raise InputError(_cannot_write(final, error)) from error


def tidy(folder: Path) -> None:
    """Removes what a kill left half written or half removed."""
    for path in folder.glob(".step_*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.tmp"):
        with contextlib.suppress(OSError):
            path.unlink()


def _check_room(folder: Path, parts: Iterable[Any]) -> None:
    needed = int(1.05 * sum(map(size_of, parts))) + 2**20
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"a checkpoint takes {needed / 1e6:.0f} MB and {folder} has {free / 1e6:.0f} MB free; "
            "earlier checkpoints are intact: free some space, or give another folder with runs="
        )


def size_of(value: Any) -> int:
    """Returns the bytes of nested tensors and plain values; of sharded tensors, of all parts."""
    if isinstance(value, torch.Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(size_of, value.values()))
    return sum(map(size_of, value)) if isinstance(value, list | tuple) else 8


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
