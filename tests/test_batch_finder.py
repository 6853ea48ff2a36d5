"""`train.accumulate=auto`: what is chosen, against memory that the test sets."""

import dataclasses
import math
import pickle
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
import yaml
from conftest import REPO, loaded, vidtrain
from hydra.core.global_hydra import GlobalHydra

from vidtrain.command import composing
from vidtrain.config.data import DataConfig
from vidtrain.config.train import LoopConfig, TrainConfig
from vidtrain.distributed import World
from vidtrain.errors import UsageError
from vidtrain.running import batch_finder
from vidtrain.running.batch_finder import find_accumulate, micro_batches, settled
from vidtrain.training.batch_search import largest_by_halving, largest_on_line

ALONE = World(rank=0, size=1, device=torch.device("cpu"))
MIX = {"_target_": "vidtrain.training.mixing.Mix"}


def settings(batch: int, *, views: int = 1, mix: Any = None) -> TrainConfig:
    return TrainConfig(train=LoopConfig(batch_size=batch, accumulate="auto"), mix=mix,
                       data=DataConfig(views_per_decode=views))  # fmt: skip


@pytest.mark.parametrize(
    ("config", "world", "sizes"),
    [
        (settings(12), 1, [1, 2, 3, 4, 6, 12]),
        (settings(12), 2, [1, 2, 3, 6]),
        (settings(12, mix=MIX), 1, [2, 4, 6, 12]),
        (settings(24, views=2), 1, [2, 4, 6, 8, 12, 24]),
        (settings(24, views=2, mix=MIX), 2, [4, 12]),
        (settings(7), 1, [1, 7]),
    ],
)
def test_sizes_divide_the_batch_and_keep_pairs_and_views_together(
    config: TrainConfig, world: int, sizes: list[int]
) -> None:
    assert micro_batches(config, world) == sizes


def test_a_batch_that_cannot_be_divided_is_refused() -> None:
    with pytest.raises(UsageError, match="batch_size=10 must be a multiple of 4"):
        micro_batches(settings(10, mix=MIX), 2)


@pytest.mark.parametrize("memory", [0, 9, 11, 15, 31, 50, 170, 171, 10**6])
def test_both_searches_find_the_largest_that_fits(memory: float) -> None:
    runs: list[int] = []

    def take(size: int) -> float:
        runs.append(size)
        return 10 + size + size**1.5 / 4  # bent: a straight line promises too much

    sizes = [1, 2, 3, 4, 6, 8, 12, 24, 48]
    expected = max((size for size in sizes if take(size) <= memory), default=0)
    runs.clear()
    tried: dict[int, float] = {}
    assert largest_on_line(sizes, take, memory, tried) == expected
    assert sorted(tried) == sorted(runs) and len(runs) == len(set(runs))
    runs.clear()
    assert largest_by_halving(sizes, lambda size: take(size) <= memory) == expected
    assert len(runs) <= 5


def test_a_line_is_followed_in_strides_because_small_sizes_differ_by_chance() -> None:
    tried: dict[int, float] = {}
    sizes = [2**power for power in range(12)]
    assert largest_on_line(sizes, lambda size: max(20.0, size), 300, tried) == 256
    assert max(tried) <= 8 * 256


def test_a_process_that_is_killed_for_memory_does_not_fit() -> None:
    tried: dict[int, float] = {}
    taken = {1: 10.0, 2: 11.0, 4: math.inf, 8: math.inf}
    assert largest_on_line([1, 2, 4, 8], taken.__getitem__, 100, tried) == 2
    assert tried == taken


FREE = """
import numpy as np
from vidtrain.training.host_memory import available_memory, peak_rss, rss

free, before = available_memory(), rss()
assert 0 < before <= peak_rss() and free > 0
block = np.ones(64 * 2**20, np.uint8)
assert rss() > before + 50 * 2**20
assert block[-1] == 1
"""


def test_memory_that_is_free_is_less_than_there_is() -> None:
    # In a process of its own: one that has run other tests may have room left over from them.
    done = subprocess.run([sys.executable, "-c", FREE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def composed(small_run: tuple[str, ...], *words: str) -> TrainConfig:
    """The config that a command line makes."""
    given = [word for word in small_run if not word.startswith("--") and "/" not in word[:1]]
    GlobalHydra.instance().clear()
    composing.register_schemas()
    search = f"hydra.searchpath=[file://{REPO}/tests/my_conf]"
    with hydra.initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        return composing.to_objects(
            hydra.compose("train", [search, "run_dir=none", *given, *words])
        )


@pytest.mark.slow
def test_steps_are_run_in_processes_of_their_own_and_global_generators_stay(
    small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    config = composed(
        small_run, "train.accumulate=auto", "train.batch_size=8", "model.input.num_frames=16",
        "model.input.crop_size=64", "model.input.short_side=[64,64]",
    )  # fmt: skip
    states = torch.get_rng_state(), pickle.dumps(np.random.get_state()), random.getstate()
    assert find_accumulate(config, ALONE) == 1
    after = torch.get_rng_state(), pickle.dumps(np.random.get_state()), random.getstate()
    assert torch.equal(states[0], after[0]) and states[1:] == after[1:]
    said = capsys.readouterr().err
    assert "8 clips" in said and "train.accumulate=1" in said
    with pytest.raises(UsageError, match="not even micro-batches of 1 clip fit"):
        find_accumulate(config, ALONE, memory=2**20)
    wrong = dataclasses.replace(config, optimizer={"_target_": "torch.optim.SGD", "lr": -1.0})
    with pytest.raises(UsageError, match="UsageError: optimizer"):
        find_accumulate(wrong, ALONE)


@pytest.mark.slow
def test_the_number_is_recorded_and_used_again(
    cli: Callable[..., int], small_run: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = (*small_run, "train.accumulate=auto")
    assert cli("train", *run, "train.max_steps=3") == 0
    recorded = yaml.safe_load(Path("runs/small/config.yaml").read_text("utf-8"))
    assert recorded["train"]["accumulate"] == 1
    monkeypatch.delattr(batch_finder, "find_accumulate")  # searching again would fail
    assert cli("train", *run) == 0
    assert loaded("runs/small")["step"] == 12


def test_a_given_number_is_left_alone() -> None:
    config = dataclasses.replace(settings(8), train=LoopConfig(accumulate=2))
    assert settled(config, ALONE) is config


@pytest.mark.slow
@pytest.mark.dist
def test_all_ranks_take_the_same_number_and_hear_of_the_same_error(
    small_run: tuple[str, ...], tmp_path: Path
) -> None:
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vidtrain")
    run = ("train", *small_run, "train.accumulate=auto", "train.dry_run=true")
    done = vidtrain(*run, cwd=tmp_path, prefix=launch)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("taken: 1 micro-batch of 2 clips") == 1
    assert "training step of 4 clips (1 x 2 micro-batches of 2 clips)" in done.stderr
    done = vidtrain(*run, "optimizer.lr=-1", cwd=tmp_path, prefix=launch)
    assert done.returncode != 0
    for rank in ("", "rank 1: "):
        assert f"vidtrain: {rank}train.accumulate=auto: a step on generated clips" in done.stderr
