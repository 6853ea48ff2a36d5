"""Files of weights of every kind, and files that are not what they claim to be."""

import argparse
import pickle
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vidtrain.errors import InputError
from vidtrain.models.weights.reading import read_weights

STATE = {
    "conv.weight": torch.arange(24.0).reshape(2, 3, 4),
    "conv.bias": torch.tensor([1.0, -2.0]),
    "norm.num_batches_tracked": torch.tensor(7),
    "half": torch.ones(3, dtype=torch.bfloat16),
}
ARRAYS = {"conv1_w": np.arange(12, dtype=np.float32).reshape(3, 4), "lr": np.float64(0.1)}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and torch.equal(found[key], tensor), key
        assert not found[key].requires_grad


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_each_format_gives_the_same_tensors(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.bin"  # the content tells, not the name
    if kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    same(read_weights(path), STATE)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model_state": state, "optimizer_state": {"state": {}}, "cfg": "text"},
        lambda state: {"state_dict": state, "meta": {"epoch": 3}},
        lambda state: {"model": state, "args": argparse.Namespace(lr=0.1), "max_accuracy": 0.5},
        lambda state: {"epoch": torch.tensor(3), "module": state},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"encoder": {"x": torch.zeros(1)}, "target_encoder": state, "opt": {}},
        lambda state: {f"module.{key}": value for key, value in state.items()},
        lambda state: {"state_dict": {f"module._orig_mod.{k}": v for k, v in state.items()}},
        lambda state: {key: nn.Parameter(value, False) for key, value in state.items()},
        lambda state: OrderedDict(state, version=3, classes=["a", "b"], numbers=np.zeros(2)),
        lambda state: {"format": 1, "model": {"x": torch.zeros(1)}, "average": state, "step": 3},
        lambda state: {"format": 1, "model": state, "average": None, "optimizer": {}},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_wrappers_are_taken_off(tmp_path: Path, wrap: Any, zipped: bool) -> None:
    path = tmp_path / "file.pth"
    torch.save(wrap(STATE), path, _use_new_zipfile_serialization=zipped)
    found = read_weights(path)
    found.pop("numbers", None)
    same(found, STATE)


def test_a_prefix_of_some_keys_only_stays(tmp_path: Path) -> None:
    state = {"module.a": torch.zeros(1), "b": torch.ones(1)}
    torch.save(state, tmp_path / "file.pth")
    same(read_weights(tmp_path / "file.pth"), state)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("wrapper", ["blobs", None])
def test_caffe2_pickles(tmp_path: Path, protocol: int, wrapper: str | None) -> None:
    arrays: dict[str, Any] = {
        **ARRAYS,
        "columns": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4"),
        "names": np.array(["a", "b"], dtype=object),
        "empty": np.zeros((0, 3), np.float32),
    }
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps({wrapper: arrays} if wrapper else arrays, protocol))
    found = read_weights(path)
    assert found.keys() == {"conv1_w", "columns", "big", "empty"}
    for key, tensor in found.items():
        assert np.array_equal(tensor.numpy(), arrays[key]), key


def python2_array(shape: tuple[int, ...], raw: bytes) -> bytes:
    """A pickle of {'blobs': {'w': array}} as Python 2 with an old NumPy writes it, protocol 2."""

    def text(value: bytes) -> bytes:  # its str, which is bytes
        return b"T" + struct.pack("<i", len(value)) + value

    dims = b"(" + b"".join(b"J" + struct.pack("<i", size) for size in shape) + b"t"
    dtype = b"cnumpy\ndtype\n" + text(b"f4") + b"K\x00K\x01\x87R(K\x03" + text(b"<")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b")
    array += b"\x87R(K\x01" + dims + dtype + b"\x89" + text(raw) + b"tb"
    return b"\x80\x02}" + text(b"blobs") + b"}" + text(b"w") + array + b"ss."


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    path = tmp_path / "model.pkl"
    values = np.linspace(-3, 3, 6, dtype="<f4")  # bytes above 127 among them
    path.write_bytes(python2_array((2, 3), values.tobytes()))
    assert np.array_equal(read_weights(path)["w"].numpy(), values.reshape(2, 3))
    path.write_bytes(python2_array((10**6, 10**6), values.tobytes()))
    with pytest.raises(InputError, match=r"model\.pkl is damaged or cut short"):
        read_weights(path)


def test_parts_of_a_storage_are_no_decoys(tmp_path: Path) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    state = {
        "slice": whole[1:3, ::2],
        "turned": whole.t(),
        "tied": whole,
        "row": whole[:1].expand(1, 6),
    }
    torch.save(state, tmp_path / "file.pth")
    same(read_weights(tmp_path / "file.pth"), state)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "Git LFS pointer"),
        (b"\n <!DOCTYPE html><html>", "it is a web page"),
        (b'{"error": "gated"}', "it is JSON text"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "HDF5 file of Keras"),
        (b"RIFF" + bytes(600), "neither safetensors nor"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, what: str) -> None:
    path = tmp_path / "file.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=what):
        read_weights(path)


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors", "pickle"])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_files_that_are_cut_short(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "file.pth"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(ARRAYS, 2))
    elif kind == "safetensors":
        save_file(STATE, path)
    else:
        torch.save(STATE, path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(
        InputError, match=r"file\.pth is damaged or cut short \(\S.*get the file again"
    ):
        read_weights(path)


@pytest.mark.parametrize("content", [{}, {"step": 3}, [torch.zeros(1)], torch.zeros(2)])
def test_files_without_weights_say_what_they_hold(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(InputError, match=r"holds no weights where they are expected but a \w+"):
        read_weights(tmp_path / "file.pth")


def test_dicts_that_hold_themselves_end(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"x": 1}
    loop["model"] = {"state_dict": loop}
    torch.save(loop, tmp_path / "file.pth")
    with pytest.raises(InputError, match="holds no weights"):
        read_weights(tmp_path / "file.pth")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pth cannot be read: No such file"):
        read_weights(tmp_path / "none.pth")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_weights(tmp_path)
