"""Checkpoints: whole or not at all, no code on loading, nothing lost on a full disk."""

import json
import os
import pickle
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from vidtrain.checkpoints import checkpoint, checkpoint_writing
from vidtrain.checkpoints.saving import Saver, newest_intact
from vidtrain.errors import InputError


@contextmanager
def full_disk(free_bytes: int) -> Iterator[None]:
    """The system refuses files longer than this, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


WEIGHTS = {"w": torch.arange(3), "n": torch.tensor(7), "h": torch.ones(2, 2, dtype=torch.bfloat16)}


def write(folder: Path, step: int, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "model": WEIGHTS, "average": None, "state": {"step": step, "a": [1, 2.5, None, "x"]},
        "about": {"class_names": ["a"], "build": None},
    }  # fmt: skip
    return checkpoint_writing.write(folder, step, **content | changes)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_equal_checkpoints_are_equal_files(tmp_path: Path) -> None:
    about = {"class_names": ["a"], "build": {"_target_": "tête", "sizes": [1, None, '\x1f/"\x7f']}}
    paths = [write(tmp_path / str(number), 3, about=about) for number in range(12)]
    for name in names(paths[0]):
        assert len({(path / name).read_bytes() for path in paths}) == 1, name
    with safe_open(paths[0] / "model.safetensors", "pt") as file:
        found = file.metadata()
        assert {name: file.get_tensor(name).tolist() for name in file.keys()} == {  # noqa: SIM118
            name: value.tolist() for name, value in WEIGHTS.items()
        }
    assert found == {"format": "pt", "vidtrain": json.dumps(about["build"])}


def test_round_trip(tmp_path: Path) -> None:
    path = write(tmp_path / "a", 7, average={"w": torch.ones(3)})
    assert names(tmp_path / "a") == ["step_00000007"]
    assert names(path) == ["average.safetensors", "manifest.json", "model.safetensors", "state.pt"]
    assert checkpoint.verify(path)["step"] == 7
    assert checkpoint.state(path) == {"step": 7, "a": [1, 2.5, None, "x"]}
    found = checkpoint.weights(path, averaged=False)
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], value) for name, value in WEIGHTS.items())
    assert checkpoint.digest(found) == checkpoint.digest(WEIGHTS)
    assert torch.equal(checkpoint.weights(path, averaged=True)["w"], torch.ones(3))


def test_the_digest_tells_bits_names_types_and_shapes_apart() -> None:
    plain = {"w": torch.zeros(4), "v": torch.ones(2)}
    others = [
        {"w": torch.tensor([0.0, -0.0, 0.0, 0.0]), "v": torch.ones(2)},
        {"w": torch.zeros(2, 2), "v": torch.ones(2)},
        {"w": torch.zeros(4, dtype=torch.int32), "v": torch.ones(2)},
        {"u": torch.zeros(4), "v": torch.ones(2)},
    ]
    sums = {checkpoint.digest(state) for state in (plain, *others)}
    assert len(sums) == 5
    assert checkpoint.digest(dict(reversed(plain.items()))) == checkpoint.digest(plain)


def test_full_disk_keeps_the_earlier_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, 1)
    with full_disk(100_000), pytest.raises(InputError, match=r"cannot write .*2.*are intact"):
        write(tmp_path, 2, model={"w": torch.zeros(1_000_000)})
    assert names(tmp_path) == ["step_00000001"]
    assert checkpoint.verify(tmp_path / "step_00000001")["step"] == 1


def test_room_is_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(2**50)  # claims 4 PiB and takes 4 bytes
    with pytest.raises(InputError, match=r"takes .* MB and .* MB free; earlier .* intact"):
        write(tmp_path, 1, model={"w": huge})
    assert names(tmp_path) == []


def test_last_and_best_are_kept_and_the_rest_removed(tmp_path: Path) -> None:
    saver = Saver(tmp_path, keep_last=2, background=True)
    content: dict[str, Any] = {
        "model": WEIGHTS, "average": None, "state": {}, "about": {"class_names": []},
    }  # fmt: skip
    for step in range(1, 7):
        saver.save(step, [2] if step >= 2 else [], content)
    saver.wait()
    assert names(tmp_path) == ["best", "last", "step_00000002", "step_00000005", "step_00000006"]
    assert (tmp_path / "best").resolve().name == "step_00000002"
    assert (tmp_path / "last").resolve().name == "step_00000006"
    saver.close()


def test_an_error_in_the_background_is_raised_at_the_next_save(tmp_path: Path) -> None:
    saver = Saver(tmp_path / "file", keep_last=2, background=True)
    (tmp_path / "file").write_text("in the way")
    content = {"model": WEIGHTS, "average": None, "state": {}, "about": {}}
    saver.save(1, [], content)
    with pytest.raises(InputError, match="cannot write"):
        saver.save(2, [], content)
    saver.close()


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_damaged_newest_checkpoint_is_passed_by(tmp_path: Path, file: str, how: str) -> None:
    for step in (1, 2):
        write(tmp_path, step)
    victim = tmp_path / "step_00000002" / file
    content = victim.read_bytes()
    if how == "gone":
        victim.unlink()
    elif how == "cut":
        victim.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        flipped = bytes([content[middle] ^ 255])
        victim.write_bytes(content[:middle] + flipped + content[middle + 1 :])
    said: list[str] = []
    found = newest_intact(tmp_path, said.append)
    assert found == tmp_path / "step_00000001"
    assert len(said) == 1 and "step_00000002" in said[0] and "going back" in said[0]
    # It is written anew when training comes by again.
    write(tmp_path, 2)
    assert newest_intact(tmp_path, said.append) == tmp_path / "step_00000002"


def test_all_damaged_is_an_error_and_none_is_none(tmp_path: Path) -> None:
    assert newest_intact(tmp_path / "nothing", print) is None
    (write(tmp_path, 1) / "state.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"state\.pt is damaged \(0 of \d+ bytes"):
        newest_intact(tmp_path, lambda text: None)


def test_what_a_kill_left_is_tidied_and_never_read(tmp_path: Path) -> None:
    write(tmp_path, 1)
    for left in (".step_00000002.tmp", ".step_00000000.old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "model.safetensors").write_bytes(b"half")
    assert newest_intact(tmp_path, print) == tmp_path / "step_00000001"
    checkpoint_writing.tidy(tmp_path)
    assert names(tmp_path) == ["step_00000001"]


def test_missing_and_foreign_folders_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, 1)
    with pytest.raises(InputError, match=r"no checkpoint .*best; the folder has step_00000001"):
        checkpoint.verify(tmp_path / "best")
    (path / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(InputError, match="is not a vidtrain checkpoint of format 2"):
        checkpoint.verify(path)


class Touch:
    """Leaves a mark when unpickled, as an attacker's object would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_loading_runs_no_code(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    path = write(tmp_path, 1)
    torch.save({"evil": Touch(mark)}, path / "state.pt")
    with pytest.raises(InputError, match=r"state\.pt cannot be read"):
        checkpoint.state(path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Touch(mark)))  # the decoy does work where code is run
    assert mark.exists()


def test_config_differences_are_listed_by_key() -> None:
    old = {"a": 1, "b": {"c": [1], "d": 2}, "name": "x"}
    new = {"a": 1, "b": {"c": [2], "d": 2, "e": None}, "name": "y"}
    found = checkpoint.config_differences(old, new, ignore=("name", "q."))
    assert found == ["b.c: [1] -> [2]"]
    assert checkpoint.config_differences(old, new, ignore=("name", "b.")) == []


@pytest.mark.parametrize("calls", [0, 1, 2])
def test_one_that_replaces_another_of_its_step_loses_neither_to_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    write(tmp_path, 3)
    rename, left = os.rename, [calls]

    def until_killed(source: Path, target: Path) -> None:
        if not left[0]:
            raise KeyboardInterrupt  # nothing of ours catches it, as nothing would a kill
        left[0] -= 1
        rename(source, target)

    monkeypatch.setattr(os, "rename", until_killed)
    if calls < 2:
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path, 3, state={"step": 3, "a": "new"})
    else:
        write(tmp_path, 3, state={"step": 3, "a": "new"})
    monkeypatch.undo()
    checkpoint_writing.bring_back(tmp_path)
    found = newest_intact(tmp_path, print)
    assert found is not None
    assert checkpoint.state(found)["a"] == ("new" if calls == 2 else [1, 2.5, None, "x"])
    checkpoint_writing.tidy(tmp_path)
    assert names(tmp_path) == ["step_00000003"]
