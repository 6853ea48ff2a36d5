"""One safetensors file of weights, whose bytes are a function of what it holds."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def save_weights(tensors: dict[str, torch.Tensor], path: Path, *, about: Any) -> None:
    """Writes tensors by their names, contiguous ones that share no memory.

    Equal tensors and facts give equal files: the library writes the facts in an order that it
    draws anew each time, which is undone here.

    Args:
        tensors: On the CPU.
        path: File to write, which nobody reads yet.
        about: Plain JSON values for the header, under "vidtrain".

    Raises:
        OSError, SafetensorError: It cannot be written.

    Source: the format's description, https://huggingface.co/docs/safetensors: eight bytes with the
    length of a JSON header, that header, padded with spaces, and the tensors.
    """
    save_file(tensors, path, metadata={"format": "pt", "vidtrain": json.dumps(about)})
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= length:  # as long as both write strings alike
            file.seek(8)
            file.write(text.ljust(length))
