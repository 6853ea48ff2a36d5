"""Files that would run code, or claim more than they hold, in place of weights."""

import io
import json
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from test_weights_reading import ARRAYS, STATE
from torch import nn

from vidtrain.errors import InputError
from vidtrain.models.weights.reading import read_weights
from vidtrain.models.weights.restricted_pickle import Ignored
from vidtrain.models.weights.restricted_pickle import load as load_pickle


class Touches:
    """Makes a file when it is unpickled by a reader that runs what it is told to."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle", "pickle0"])
def test_code_in_a_file_does_not_run(tmp_path: Path, kind: str) -> None:
    path, trace = tmp_path / "file.pth", tmp_path / "it-ran"
    content = {"state_dict": STATE if kind in ("zip", "legacy") else ARRAYS, "x": Touches(trace)}
    if kind.startswith("pickle"):
        path.write_bytes(pickle.dumps(content, 0 if kind == "pickle0" else 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(InputError, match=r"file\.pth is refused: it wants to import posix\.system"):
        read_weights(path)
    assert not trace.exists()
    path.write_bytes(pickle.dumps(Touches(trace)))
    pickle.loads(path.read_bytes())  # the decoy is a real one
    assert trace.exists()


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"cbuiltins\neval\n(S'1'\ntR.", "builtins.eval"),
        (b"c__builtin__\ngetattr\n.", "builtins.getattr"),
        (b"\x80\x04\x8c\x05numpy\x8c\x11f2py.capi_maps.os\x93.", "numpy.f2py"),
        (b"\x80\x04\x8c\x0bcollections\x8c\x1eOrderedDict.__init__.__class__\x93.", "OrderedDict."),
        (b"ccodecs\nopen\n.", "codecs.open"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "the text encoding rot13"),
        (b"cnumpy.core.multiarray\n_reconstruct\n(N}Vfunction\nNstb.", "in order to change it"),
        (b"ccollections\nOrderedDict\n}Vx\nNsb.", "in order to change it"),
        (b"\x80\x02\x82\x01.", "an object of the number 1"),
        (b"c" + b"m" * 10**5 + b"\nx\n.", "wants to import m{60}$"),
    ],
)
def test_a_pickle_gets_nothing_but_stand_ins(body: bytes, wanted: str) -> None:
    with pytest.raises(pickle.UnpicklingError, match=wanted.replace(".", r"\.")):
        load_pickle(io.BytesIO(body))


NEST = b")" + b"2\x86" * 16  # ((..), (..)), of 2^16 tuples to hash and to print


@pytest.mark.parametrize(
    "body",
    [
        b"}" + NEST + b"Ns.",
        b"}(" + NEST + b"Nu.",
        b"(" + NEST + b"N" + b"d.",
        b"ccollections\nOrderedDict\n]" + NEST + b"N\x86a\x85R.",
        b"ccollections\nOrderedDict\n]" + NEST + b"N\x86a\x85R" + NEST + b"Ns.",
        b"(]" + NEST + b"N\x86aicollections\nOrderedDict\n.",
        b"}\x8a\x09" + bytes(8) + b"\x01Ns.",
        b"}G" + bytes(8) + b"Ns.",
    ],
)
def test_keys_that_take_long_to_hash(body: bytes) -> None:
    with pytest.raises(pickle.UnpicklingError, match="a key of a dict is a"):
        load_pickle(io.BytesIO(b"\x80\x02" + body))


def test_what_is_not_text_is_not_printed() -> None:
    body = b"c_codecs\nencode\n(Vx\n" + NEST + b"tR."
    with pytest.raises(pickle.UnpicklingError, match=r"the text encoding tuple$"):
        load_pickle(io.BytesIO(b"\x80\x02" + body))
    assert load_pickle(io.BytesIO(b"\x80\x02cnumpy\ndtype\n" + NEST + b"\x85R.")).text == ""


@pytest.mark.parametrize(
    "body",
    [
        b"\x8f(" + NEST + b"\x90.",
        b"(" + NEST + b"\x91.",
        b"cbuiltins\nset\n]" + NEST + b"a\x85R.",
        b"c__builtin__\nfrozenset\n]" + NEST + b"a\x85R.",
    ],
)
def test_sets_are_left_out(body: bytes) -> None:
    assert isinstance(load_pickle(io.BytesIO(b"\x80\x04" + body)), Ignored)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"}r" + struct.pack("<I", 10**6) + b".", "a value 1000000 in a file of 9 bytes"),
        (b"}p1000000\n.", "a value 1000000 in a file of 13 bytes"),
        (b"B" + struct.pack("<I", 10**6) + b"x.", "claims 1000000 bytes of a file of 9"),
        (b"\x96" + struct.pack("<Q", 10**6) + b"x.", "claims 1000000 bytes of a file of 13"),
        (b"\x95" + struct.pack("<Q", 10**6) + b"}.", "claims 1000000 bytes of a file of 13"),
        (b"c_codecs\nencode\nq\x00Vlatin1\nq\x01V" + b"x" * 500 + b"\nq\x02"
         + b"h\x00h\x02h\x01\x86R" * 40 + b".", "arrays claim more bytes than it holds"),
        (b"}\xff.", "there is no instruction 255"),
    ],
)  # fmt: skip
def test_a_small_pickle_takes_little_memory(tmp_path: Path, body: bytes, reason: str) -> None:
    path = tmp_path / "file.pkl"
    path.write_bytes(b"\x80\x02" + body)
    with pytest.raises(InputError, match=rf"file\.pkl is damaged or cut short \(.*{reason}"):
        read_weights(path)


def test_arrays_of_the_same_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file.pkl"
    dtype, raw = b"cnumpy\ndtype\n(Vu1\ntR", b"B" + struct.pack("<I", 9999) + bytes(9999) + b"q\x01"
    array = b"cnumpy.core.numeric\n_frombuffer\n(h\x01" + dtype + b"M\x0f\x27\x85VC\ntR"
    start = b"\x80\x02}" + raw + b"0Va\n" + array
    path.write_bytes(start + b"sVb\n" + array + b"s.")
    with pytest.raises(InputError, match=r"its arrays claim more bytes than the \d+ it has"):
        read_weights(path)
    path.write_bytes(start + b"q\x02sVb\nh\x02s.")  # one array of two names
    found = read_weights(path)
    assert found["a"].data_ptr() == found["b"].data_ptr() and len(found["a"]) == 9999


def test_long_keys_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save({"k" * 10**5: torch.zeros(1).expand(9)}, path)
    with pytest.raises(InputError, match=r"its tensor 'k{60}' shows"):
        read_weights(path)
    torch.save({"k" * 10**5: 1, 7: 1, ("a", "b"): 2}, path)
    with pytest.raises(InputError, match=r"a dict with the keys k{60}, 7, tuple; save"):
        read_weights(path)


def test_a_whole_model_is_named(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"wants to import torch\.nn\.modules\.linear\.Linear.*st"):
        read_weights(tmp_path / "net.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated
        torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "net.pt")
    with pytest.raises(InputError, match="is a TorchScript program"):
        read_weights(tmp_path / "net.pt")


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.zeros(1).expand(10**6, 10**6), "claims 4000000000000 bytes of a file"),
        (torch.zeros(1).expand(100, 2), r"shows the same values several times \(strides \(0, 0\)"),
        (torch.zeros(9).as_strided((3, 3), (2, 1)), "shows the same values several times"),
        (torch.eye(3).to_sparse(), "is no dense tensor"),
        ("quantised", "is quantised"),
        (torch.empty(3, device="meta"), "has no values"),
    ],
)
def test_decoys_are_refused_by_key(tmp_path: Path, tensor: Any, reason: str) -> None:
    path = tmp_path / "file.pth"
    if isinstance(tensor, str):
        with warnings.catch_warnings():  # newer PyTorch warns that this will go
            warnings.simplefilter("ignore", UserWarning)
            tensor = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    torch.save({"state_dict": {"fine": torch.ones(2), "head.weight": tensor}}, path)
    with pytest.raises(
        InputError, match=rf"file\.pth is refused: its tensor 'head\.weight' {reason}"
    ):
        read_weights(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_storage_beyond_the_file_is_not_read(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "file.pth"
    torch.save({"w": torch.zeros(1000)}, path, _use_new_zipfile_serialization=zipped)
    entries = {"": path.read_bytes()}
    if zipped:
        with zipfile.ZipFile(path) as archive:
            entries = {info.filename: archive.read(info) for info in archive.infolist()}
    # The length of the storage and of the tensor, 1000, becomes 65535.
    claims = {k: v.replace(b"M\xe8\x03", b"M\xff\xff") for k, v in entries.items()}
    assert claims != entries
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in claims.items():
                archive.writestr(name, content)
    else:
        path.write_bytes(claims[""])
    with pytest.raises(InputError, match=r"file\.pth is damaged or cut short"):
        read_weights(path)


def test_safetensors_that_claim_more(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    entry = {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}
    header = json.dumps({"w": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))
    with pytest.raises(InputError, match=r"damaged or cut short \(its header does not fit"):
        read_weights(path)


def test_archives_that_unpack_to_more_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/data/0", bytes(10**7))
    with pytest.raises(InputError, match=r"entry archive/data\S* is compressed.*never does"):
        read_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other/file.txt", "hello")
    with pytest.raises(InputError, match=r"zip archive, but not one of torch\.save"):
        read_weights(path)


def test_entries_that_share_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save(STATE, path)
    with zipfile.ZipFile(path, "a") as archive:
        big = max(archive.infolist(), key=lambda entry: entry.file_size)
        archive.filelist += [big] * 50
        archive._didModify = True  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="entries overlap"):
        read_weights(path)
