"""From a file of weights to a flat dict of tensors, without trusting the file.

No code of the file runs, and what it claims is held against what it has before memory is taken.
"""

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from vidtrain.errors import InputError
from vidtrain.models.weights import restricted_pickle
from vidtrain.models.weights.restricted_pickle import Array, shortened

# Where libraries keep the weights within a checkpoint; the first that holds tensors is taken. Of
# V-JEPA's encoders it is the averaged one, which its publisher evaluates.
WRAPPERS = (
    "model_state", "state_dict", "model", "module", "target_encoder", "ema_encoder", "encoder",
    "model_ema", "state_dict_ema", "blobs",
)  # fmt: skip
DEEPEST = 3  # wrappers within one another
PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile
LARGEST_GIB = 64  # of all tensors of a file; the largest published video models take half of it
_TORCH_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch.save before its version 1.6


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Reads safetensors, PyTorch's two formats, Caffe2's pickles and our own checkpoints.

    The weights are taken out of known wrappers (`state_dict`, `model_state` ...; of our own
    checkpoints the averaged ones, if there are any), and a `module.` before all keys is dropped.
    What is no tensor is left out.

    Args:
        path: The file. It must stay as it is while the tensors are in use: they may be mapped.

    Returns:
        Key -> tensor on the CPU.

    Raises:
        InputError: No such file, no weights in it, a damaged one, one that wants to run code, or
            tensors that claim more than the file holds.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise InputError(f"weights {path} cannot be read: {error.strerror}") from error
    wrong = what_it_is_instead(head)
    if wrong:
        raise InputError(f"{path} holds no weights: it is {wrong}; download the file again")
    try:
        found = _load(path, head)
    except InputError:
        raise
    except Exception as error:  # a damaged file raises anything, from KeyError to RuntimeError
        raise InputError(_refusal(path, error)) from error
    held = _unwrap(found, path)
    values = {id(value): value for value in held.values()}
    if sum(_array_bytes(value) for value in values.values()) > size:  # of the same bytes
        raise InputError(f"{path} is refused: its arrays claim more bytes than the {size} it has")
    tensors = {number: _as_tensor(value) for number, value in values.items()}
    state = {
        str(key): tensor.detach()
        for key, value in held.items()
        if (tensor := tensors[id(value)]) is not None
    }
    claimed = 0
    for key, tensor in state.items():
        reason = _decoy(tensor, size)
        if reason:
            raise InputError(f"{path} is refused: its tensor {shortened(key)!r} {reason}")
        claimed += tensor.nbytes
    if claimed > LARGEST_GIB * 2**30:
        raise InputError(
            f"{path} is refused: its tensors claim {claimed / 2**30:.0f} GiB together, and "
            f"{LARGEST_GIB} are allowed"
        )
    return _without_prefix(state)


def what_it_is_instead(head: bytes) -> str:
    """Returns what a file is that came in place of weights, or nothing.

    Args:
        head: Its first bytes.
    """
    if not head:
        return "empty"
    if head.startswith(b"\x89HDF"):
        return "an HDF5 file of Keras, not of PyTorch"
    start = b"" if b"\0" in head[:8] else head.lstrip()[:64].lower()  # else no text
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, which stands for a file that has not been fetched (git lfs pull)"
    if start.startswith(b"<"):
        return "a web page, perhaps a log-in or error page"
    if start.startswith(b'{"'):
        return "JSON text, perhaps a server's error message"
    return ""


def _load(path: Path, head: bytes) -> Any:
    if head.startswith(b"PK"):
        _check_zip(path)
        return _torch_load(path, mmap=True)
    if head.startswith(_TORCH_LEGACY):
        return _torch_load(path, mmap=False)
    if head[5:9] == b"\0\0\0{":  # a length of 8 bytes, then JSON
        return load_file(path)
    if head[:1] in (b"\x80", b"(", b"}", b"]", b"c"):  # the protocols from 2 on, and 0 and 1
        with path.open("rb") as file:
            return restricted_pickle.load(file)
    raise InputError(
        f"{path} holds no weights that can be read: it is neither safetensors nor a file of "
        "torch.save nor a pickle of Caffe2"
    )


def _check_zip(path: Path) -> None:
    """Refuses archives that unpack to more than they hold; torch.save never compresses."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = {entry.filename.partition("/")[2] for entry in entries}
    if "data.pkl" not in names:
        raise InputError(f"{path} holds no weights: it is a zip archive, but not one of torch.save")
    if "constants.pkl" in names:
        raise InputError(
            f"{path} is a TorchScript program; load it in a program of its own and save its "
            "state_dict() with torch.save"
        )
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise InputError(
                f"{path} is refused: its entry {entry.filename} is compressed, {entry.file_size} "
                f"bytes in {entry.compress_size}, which torch.save never does"
            )
    total = sum(entry.file_size for entry in entries)
    if total > path.stat().st_size:
        raise InputError(f"{path} is refused: its entries overlap, {total} bytes in all")


def _torch_load(path: Path, *, mmap: bool) -> Any:
    safe: list[Any] = [(made, name) for name, made in restricted_pickle.SAFE.items()]
    with torch.serialization.safe_globals(safe), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what other libraries once wrote
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)


def _unwrap(found: Any, path: Path) -> Mapping[Any, Any]:
    """Returns the innermost dict that holds the tensors."""
    if isinstance(found, Mapping) and "format" in found and "average" in found:  # one of ours
        found = found["average"] or found["model"]
    for _ in range(DEEPEST):
        keys = WRAPPERS if isinstance(found, Mapping) else ()
        found = next((found[key] for key in keys if _holds_tensors(found.get(key))), found)
    if isinstance(found, Mapping) and _holds_tensors(found):
        return found
    what = f"a {type(found).__name__}"
    if isinstance(found, Mapping):
        what = f"a dict with the keys {', '.join(map(shortened, list(found)[:8]))}"
    raise InputError(
        f"{path} holds no weights where they are expected but {what}; save a dict of tensors, as "
        "state_dict() returns it"
    )


def _holds_tensors(node: Any, depth: int = DEEPEST) -> bool:
    """Whether a dict has tensors in it, or in a wrapper in it."""
    if not isinstance(node, Mapping) or not depth:
        return False
    if any(isinstance(value, torch.Tensor | Array) for value in node.values()):
        return True
    return any(_holds_tensors(node.get(key), depth - 1) for key in WRAPPERS)


def _array_bytes(value: Any) -> int:
    return value.value.nbytes if isinstance(value, Array) and value.value is not None else 0


def _as_tensor(value: Any) -> torch.Tensor | None:
    if isinstance(value, torch.Tensor):
        return value
    if isinstance(value, Array) and value.value is not None:
        native = value.value.dtype.newbyteorder("=")  # torch knows the machine's byte order only
        return torch.from_numpy(value.value.astype(native))
    return None


def _decoy(tensor: torch.Tensor, file_size: int) -> str:
    """Returns why a tensor is not what weights are, or nothing."""
    if tensor.is_meta:
        return "has no values (meta device)"
    if tensor.is_quantized:
        return "is quantised; give the weights before quantisation"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"is no dense tensor ({tensor.layout}); give dense weights"
    if tensor.nbytes > file_size:
        return f"claims {tensor.nbytes} bytes of a file of {file_size}"
    reach = 0  # of the axes looked at so far: the element farthest from the first
    for stride, length in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if length > 1 and tensor.numel():
            if stride <= reach:
                return f"shows the same values several times (strides {tuple(tensor.stride())})"
            reach += stride * (length - 1)
    return ""


def _without_prefix(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    for prefix in PREFIXES * 2:  # they come in either order
        if state and all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return state


def _refusal(path: Path, error: Exception) -> str:
    text = str(error)
    found = re.search(r"Unsupported global: GLOBAL (\S+)|GLOBAL (\S+) whose module", text)
    wanted = error.wanted if isinstance(error, restricted_pickle.RefusedPickle) else (
        found and (found[1] or found[2])
    )  # fmt: skip
    if wanted:
        return (
            f"{path} is refused: it wants to import {wanted[:60]}, and weights need no code; load "
            "it where you trust it, and save a dict of tensors (state_dict()) with torch.save"
        )
    if isinstance(error, zipfile.BadZipFile):
        text = "the file ends before its table of contents"
    elif isinstance(error, SafetensorError):
        text = f"its header does not fit its content ({text})"
    elif isinstance(error, pickle.UnpicklingError):
        text = text.split("Check the documentation")[0].split("WeightsUnpickler error: ")[-1]
    first = next((line for line in text.splitlines() if line.strip()), type(error).__name__)
    return f"{path} is damaged or cut short ({first.strip()[:200]}); get the file again"
