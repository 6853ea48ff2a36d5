"""Sharded tensors in files: each process writes its parts, any number of processes reads them.

The files are those of torch.distributed.checkpoint. Their index is a pickle: it is read with an
allow-list of the few types that stand in it, since a checkpoint may come from somebody else.
"""

import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from vidtrain.errors import InputError

INDEX = ".metadata"
_METADATA = "torch.distributed.checkpoint.metadata"
_KNOWN = {
    *((_METADATA, name) for name in (
        "Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "BytesStorageMetadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING",
    )),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"), ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"), ("pathlib._local", "PosixPath"),
}  # fmt: skip
Tensors = dict[str, torch.Tensor]


def write(
    tensors: Tensors, folder: Path, group: dist.ProcessGroup | None, *, background: bool
) -> Callable[[], None]:
    """Writes the tensors of all processes; to be called by all of them.

    Args:
        tensors: By name, the same names everywhere. They may change when this has returned.
        folder: Where the files go; all processes see it.
        group: Processes that no other call uses at the same time, with gloo; None: this one alone.
        background: Return when the tensors are copied, and write behind the caller's back.

    Returns:
        What waits until the files are on the disk; it raises InputError, on all processes alike,
        where one of them could not write.
    """
    # What all have whole, such as batch-norm statistics, is rank 0's, as it is without shards.
    planner = DefaultSavePlanner(dedup_save_to_lowest_rank=True)
    options: dict[str, Any] = {
        "checkpoint_id": str(folder), "process_group": group, "planner": planner
    }  # fmt: skip

    def wait() -> None:
        try:
            if isinstance(under_way, Future):
                under_way.result()
        except Exception as error:  # torch wraps what went wrong on each process
            raise InputError(_said(folder, error)) from error

    under_way: Any = None
    try:
        if background:
            under_way = dcp.async_save(tensors, **options)
        else:
            dcp.save(tensors, **options)
    except Exception as error:
        raise InputError(_said(folder, error)) from error
    return wait


def read(tensors: Tensors, folder: Path) -> None:
    """Fills tensors from files, in place; each process reads what it needs.

    Args:
        tensors: By name; whole ones, or sharded over any number of processes.
        folder: Where the files are.

    Raises:
        InputError: A file is missing or damaged, or a tensor is not there.
    """
    lacking = tensors.keys() - contents(folder).keys()
    if lacking:
        raise InputError(f"checkpoint {folder.parent}: no {min(lacking)} in it")
    try:
        with warnings.catch_warnings():  # of being one process, which is what is meant
            warnings.simplefilter("ignore", UserWarning)
            dcp.load(tensors, storage_reader=_Reader(str(folder)), no_dist=True)
    except Exception as error:  # torch raises many types for damaged files
        raise InputError(_said(folder, error)) from error


def contents(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Returns shape and type of each tensor in the files, by name.

    Raises:
        InputError: The index is missing, damaged, or holds what is no tensor.
    """
    return {
        name: (entry.size, entry.properties.dtype)
        for name, entry in _index(folder).state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Reads the index with nothing in it executed."""
        found = _index(Path(self.path))
        found.storage_meta = StorageMeta(load_id=self.load_id)
        return found


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Returns a type of the allow-list.

        Raises:
            pickle.UnpicklingError: It is not in the list.
        """
        dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if dtype or (module, name) in _KNOWN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} has no place in a checkpoint")


def _index(folder: Path) -> Metadata:
    try:
        with open(folder / INDEX, "rb") as file:
            found = _Unpickler(file).load()
        entries = found.state_dict_metadata.values()
    except Exception as error:  # pickle raises many types for damaged files
        raise InputError(_said(folder, error)) from error
    if not all(isinstance(entry, TensorStorageMetadata) for entry in entries):
        raise InputError(f"{folder} holds something else than tensors; it is not read")
    # The index of one folder must not lead out of it.
    for place in (found.storage_data or {}).values():
        if Path(place.relative_path).name != place.relative_path:
            raise InputError(f"{folder} names a file outside of it ({place.relative_path})")
    return found


def _said(folder: Path, error: Exception) -> str:
    failures = getattr(error, "failures", None) or {}
    causes = [f"rank {rank}: {_first(cause[0])}" for rank, cause in failures.items()]
    return f"checkpoint {folder.parent}: {'; '.join(causes) or _first(error)}"


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or '?').splitlines()[0]}"
