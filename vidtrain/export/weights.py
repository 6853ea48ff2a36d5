"""The weights of a run as one safetensors file, whatever number of processes wrote them."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from vidtrain.checkpoints.weight_files import save_weights
from vidtrain.errors import InputError


def write_weights(model: nn.Module, path: Path, *, about: dict[str, Any]) -> int:
    """Writes all parameters and buffers by their names, reads them back and compares.

    Args:
        model: The network, on the CPU.
        path: File to write; see `formats.replacing`.
        about: Plain values for the file's header.

    Returns:
        Number of tensors.

    Raises:
        InputError: The file does not hold what was written.
    """
    tensors = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_weights(tensors, path, about=about)
    found = load_file(path)
    wrong = [name for name, value in tensors.items() if not torch.equal(found[name], value)]
    if wrong:
        raise InputError(f"{path} reads other values than were written for {wrong[0]}; disk?")
    return len(tensors)
