"""Checkpoints: whole or not at all, no code on loading, nothing lost on a full disk."""

import pickle
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from vidtrain import checkpoint
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


def test_round_trip(tmp_path: Path) -> None:
    state = {"model": {"w": torch.arange(3)}, "step": 7, "config": {"a": [1, 2.5, None, "x"]}}
    checkpoint.save(tmp_path / "a" / "last.pt", state)
    loaded = checkpoint.load(tmp_path / "a" / "last.pt")
    assert loaded["step"] == 7 and loaded["config"] == state["config"]
    assert torch.equal(loaded["model"]["w"], torch.arange(3))
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["last.pt"]


def test_full_disk_keeps_the_earlier_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"step": 1})
    with (
        full_disk(100_000),
        pytest.raises(InputError, match=r"cannot write .*last\.pt.*earlier last\.pt is intact"),
    ):
        checkpoint.save(path, {"step": 2, "w": torch.zeros(1_000_000)})
    assert checkpoint.load(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_best_keeps_its_content_when_last_moves_on(tmp_path: Path) -> None:
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    checkpoint.save(last, {"step": 1})
    checkpoint.duplicate(last, best)
    checkpoint.save(last, {"step": 2})
    assert checkpoint.load(best)["step"] == 1 and checkpoint.load(last)["step"] == 2


def test_missing_damaged_and_foreign_files_are_named(tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "last.pt", {"step": 1, "w": torch.zeros(1000)})
    with pytest.raises(InputError, match=r"no checkpoint .*best\.pt; the folder has last\.pt"):
        checkpoint.load(tmp_path / "best.pt")
    content = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"cut\.pt cannot be read"):
        checkpoint.load(tmp_path / "cut.pt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match=r"foreign\.pt is not a vidtrain checkpoint"):
        checkpoint.load(tmp_path / "foreign.pt")


class Touch:
    """Leaves a mark when unpickled, as an attacker's object would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.path,))


def test_loading_runs_no_code(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({"format": 1, "evil": Touch(mark)}, tmp_path / "evil.pt")
    with pytest.raises(InputError, match=r"evil\.pt cannot be read"):
        checkpoint.load(tmp_path / "evil.pt")
    assert not mark.exists()
    pickle.loads(pickle.dumps(Touch(mark)))  # the decoy does work where code is run
    assert mark.exists()


def test_config_differences_are_listed_by_key() -> None:
    old = {"a": 1, "b": {"c": [1], "d": 2}, "name": "x"}
    new = {"a": 1, "b": {"c": [2], "d": 2, "e": None}, "name": "y"}
    found = checkpoint.config_differences(old, new, ignore=("name", "q."))
    assert found == ["b.c: [1] -> [2]"]
    assert checkpoint.config_differences(old, new, ignore=("name", "b.")) == []
