"""Files of sharded tensors: read whole, damaged, or hostile. (Ranks: test_parallel.py.)"""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from vidtrain.checkpoints import checkpoint, checkpoint_writing
from vidtrain.checkpoints.saving import newest_intact
from vidtrain.errors import InputError
from vidtrain.parallel import shard_files

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def tensors() -> Tensors:
    rng = torch.Generator().manual_seed(0)
    return {
        "model.weight": torch.randn(6, 5, generator=rng),
        "model.count": torch.tensor(7),
        "average.weight": torch.randn(6, 5, generator=rng),
        "average.count": torch.tensor(7),
        "optimizer.0.exp_avg": torch.randn(6, 5, generator=rng).to(torch.bfloat16),
    }


def saved(folder: Path, step: int, tensors: Tensors) -> Path:
    temporary = checkpoint_writing.begin(folder, step, needed=[tensors])
    shard_files.write(tensors, temporary / checkpoint.SHARDS, None, background=False)()
    return checkpoint_writing.finish(
        temporary, folder, step, state={"seen": 3}, about={"class_names": ["a", "b"]}
    )


def test_tensors_come_back_and_weights_are_told_apart(tmp_path: Path, tensors: Tensors) -> None:
    path = saved(tmp_path, 3, tensors)
    assert checkpoint.is_sharded(path) and checkpoint.has_average(path)
    assert checkpoint.verify(path)["step"] == 3 and checkpoint.state(path) == {"seen": 3}
    for averaged, prefix in ((False, "model."), (True, "average.")):
        found = checkpoint.weights(path, averaged=averaged)
        assert found.keys() == {"weight", "count"}
        for name, value in found.items():
            assert torch.equal(value, tensors[prefix + name])
    room = {"optimizer.0.exp_avg": torch.empty(6, 5, dtype=torch.bfloat16)}
    shard_files.read(room, path / checkpoint.SHARDS)
    assert torch.equal(room["optimizer.0.exp_avg"], tensors["optimizer.0.exp_avg"])


@pytest.mark.parametrize("name", ["shards/.metadata", "shards/__0_0.distcp", "state.pt"])
@pytest.mark.parametrize("damage", ["gone", "cut", "flipped"])
def test_a_damaged_file_is_named_and_the_one_before_is_taken(
    tmp_path: Path, tensors: Tensors, name: str, damage: str
) -> None:
    good, bad = saved(tmp_path, 3, tensors), saved(tmp_path, 4, tensors)
    content = bytearray((bad / name).read_bytes())
    if damage == "gone":
        (bad / name).unlink()
    elif damage == "cut":
        (bad / name).write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2] ^= 1
        (bad / name).write_bytes(content)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        checkpoint.verify(bad)
    said: list[str] = []
    assert newest_intact(tmp_path, said.append) == good
    assert len(said) == 1 and name in said[0]


def test_a_tensor_that_is_not_there_is_named(tmp_path: Path, tensors: Tensors) -> None:
    path = saved(tmp_path, 3, tensors)
    with pytest.raises(InputError, match=r"no model\.bias in it"):
        shard_files.read({"model.bias": torch.empty(6)}, path / checkpoint.SHARDS)


class Evil:
    """Unpickles by running a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def test_an_index_that_runs_code_is_refused(tmp_path: Path, tensors: Tensors) -> None:
    path, marker = saved(tmp_path, 3, tensors), tmp_path / "ran"
    index = path / checkpoint.SHARDS / shard_files.INDEX
    honest = index.read_bytes()
    index.write_bytes(pickle.dumps(Evil(marker)))
    with pytest.raises(InputError, match="has no place in a checkpoint"):
        checkpoint.weights(path, averaged=False)
    pickle.loads(index.read_bytes())
    assert marker.exists(), "it would have run"
    index.write_bytes(honest)
    assert checkpoint.weights(path, averaged=False)


def test_an_index_that_leads_out_of_its_folder_is_refused(tmp_path: Path, tensors: Tensors) -> None:
    path = saved(tmp_path, 3, tensors)
    index = path / checkpoint.SHARDS / shard_files.INDEX
    found = pickle.loads(index.read_bytes())
    for place in found.storage_data.values():
        place.relative_path = "../../../elsewhere"
    index.write_bytes(pickle.dumps(found))
    with pytest.raises(InputError, match="names a file outside of it"):
        checkpoint.weights(path, averaged=False)


def test_a_manifest_that_leads_out_of_its_folder_is_refused(
    tmp_path: Path, tensors: Tensors
) -> None:
    path = saved(tmp_path, 3, tensors)
    manifest = path / checkpoint.MANIFEST
    manifest.write_text(manifest.read_text().replace("state.pt", "../../state.pt"))
    with pytest.raises(InputError, match="outside of the folder"):
        checkpoint.verify(path)
