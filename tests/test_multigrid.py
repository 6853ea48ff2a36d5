"""Multigrid training: shapes and epochs against the published ones, exact at every step."""

import dataclasses
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import REPO, same_state
from test_loading import clips, copies

from vidtrain.data.clip_samplers import ConstantClips, RandomClip, TsnSegments, with_frames
from vidtrain.data.loading import train_batches
from vidtrain.data.multigrid import Multigrid, Shape
from vidtrain.data.plan import Plan
from vidtrain.errors import UsageError
from vidtrain.targets import component

HALF = 0.5**0.5
LONG = ((0.25, HALF), (0.5, HALF), (0.5, 1.0), (1.0, 1.0))
PUBLISHED = Multigrid(32, 224, long_cycle=LONG, short_cycle=(0.5, HALF))
# 4 frames at 24 pixels: (2, 17) x 4, (2, 24) x 2 and (4, 24); in between, 12 pixels.
SMALL = Multigrid(4, 24, ((0.5, HALF), (0.5, 1), (1, 1)), (0.5,), stages=(1, 1))


def planned(**changes: Any) -> Plan:
    settings: dict[str, Any] = {"num_videos": 100, "batch_size": 4, "accumulate": 1, "epochs": 6,
                                "world_size": 1, "shapes": SMALL}  # fmt: skip
    return Plan(**(settings | changes))


def ends(epochs: tuple) -> list[int]:
    """Epochs after which the shapes change, and the last."""
    return [i for i, (now, then) in enumerate(pairwise(epochs), 1) if now != then] + [len(epochs)]


def test_epochs_are_those_that_the_authors_code_logs() -> None:
    # The log in facebookresearch/SlowFast#231, up to where it is cut off: 239 epochs of a baseline
    # with rate steps at 94, 154 and 196, times 1.5. The code rounds 358.5 only at the end.
    logged = [73, 110, 142, 158, 205, 228, 248, 259, 291, 308]
    assert ends(PUBLISHED.epochs(358.5))[:10] == logged  # type: ignore[arg-type]
    assert all(abs(a - b) <= 1 for a, b in zip(ends(PUBLISHED.epochs(358)), logged, strict=False))
    base = [cycle[-1] for cycle in dict.fromkeys(PUBLISHED.epochs(358))]
    assert base == [Shape(8, 8, 158), Shape(4, 16, 158), Shape(2, 16, 224), Shape(1, 32, 224)]
    assert PUBLISHED.epochs(358)[-1][-1] == Shape(1, 32, 224)


@pytest.mark.parametrize(
    ("choice", "dropped"), [("both", []), ("long", ["short_cycle"]), ("short", ["long_cycle"])]
)
def test_choices_are_the_published_ones(choice: str, dropped: list[str]) -> None:
    node = yaml.safe_load((REPO / "conf" / "multigrid" / f"{choice}.yaml").read_text())
    built = component(node, "multigrid", num_frames=32, crop_size=224)
    without: dict[str, Any] = dict.fromkeys(dropped, ())
    assert built == dataclasses.replace(PUBLISHED, **without)


def test_a_short_cycle_goes_through_the_published_crops() -> None:
    # Half the crop is 4 times the batch; short crops are shares of the full crop, not of the base.
    assert PUBLISHED.epochs(358)[0] == (Shape(16, 8, 112), Shape(8, 8, 158), Shape(8, 8, 158))
    assert PUBLISHED.epochs(358)[130] == (Shape(8, 16, 112), Shape(4, 16, 158), Shape(2, 16, 224))
    short = Multigrid(32, 224, short_cycle=(0.5, HALF))
    assert set(short.epochs(3)) == {(Shape(4, 32, 112), Shape(2, 32, 158), Shape(1, 32, 224))}
    assert {short.lr_factor(cycle) for cycle in short.epochs(3)} == {1.0}


@pytest.mark.parametrize(
    ("rule", "factors"), [("linear", [8, 4, 2, 1]), ("sqrt", [8**0.5, 2, 2**0.5, 1])]
)
def test_the_rate_follows_the_base_batch(rule: Any, factors: list[float]) -> None:
    grid = dataclasses.replace(PUBLISHED, lr_rule=rule)
    plan = planned(shapes=grid, num_videos=32, batch_size=1, epochs=40)
    rates = [plan.lr_factor(step) for step in range(plan.total_steps)]
    assert list(dict.fromkeys(rates)) == factors
    changes = [i for i, (now, then) in enumerate(pairwise(rates), 1) if now != then]
    assert set(changes) <= set(np.cumsum(plan.epoch_steps))  # with the epochs, at no other time


@pytest.mark.parametrize(("frames", "crop"), [(32, 224), (16, 224), (13, 160), (8, 112), (16, 312)])
def test_a_step_holds_about_as_much_whatever_its_shape(frames: int, crop: int) -> None:
    grid = dataclasses.replace(PUBLISHED, num_frames=frames, crop_size=crop)
    full = frames * crop**2
    for cycle in set(grid.epochs(100)):
        for shape in cycle:
            share = shape.batch * shape.num_frames * shape.crop_size**2 / full
            assert 0.9 < share < 1.07, shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"long_cycle": (), "short_cycle": ()}, "neither a long_cycle nor"),
        ({"short_cycle": (1.5,)}, "at most 1"),
        ({"long_cycle": ((0.5, 1.0),)}, r"must end with \[1, 1\]"),
        ({"stages": (1,)}, "two lengths or more"),
        ({"stages": (1, 0, 1)}, "above 0"),
    ],
)
def test_what_makes_no_schedule_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(PUBLISHED, **changes)


def test_too_little_training_is_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"train\.epochs=18 are too few.*stages"):
        PUBLISHED.epochs(18)
    assert len(dataclasses.replace(PUBLISHED, stages=(1, 0)).epochs(18)) == 18
    # A short cycle of SMALL takes up to 8 + 4 times the batch.
    with pytest.raises(UsageError, match=r"takes 12 x train\.batch_size=4 .* train\.batch_size=3 "):
        planned(num_videos=47)
    assert min(planned(num_videos=48).epoch_steps) == 2
    with pytest.raises(UsageError, match="use multigrid=none"):
        planned(num_videos=9, batch_size=1)


def test_steps_and_videos_of_an_epoch_by_walking_through_it() -> None:
    plan = planned()
    step = 0
    for epoch, cycle in enumerate(SMALL.epochs(6)):
        left, number = 100, 0
        while left >= 4 * cycle[number % len(cycle)].batch:
            shape = cycle[number % len(cycle)]
            assert plan.shape(step) == shape
            assert plan.lr_factor(step) == cycle[-1].batch
            left, number, step = left - 4 * shape.batch, number + 1, step + 1
        assert plan.epoch_steps[epoch] == number
    assert plan.total_steps == step
    # (8 + 4) x 4, (8 + 2) x 4 and (4 + 1) x 4 clips in a short cycle of two steps.
    assert plan.epoch_steps == (4, 4, 4, 10, 10, 10)
    seen = [key for batch in plan.micro_batches(seed=3, rank=0, start_step=0) for key in batch]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(("world_size", "accumulate", "views"), [(1, 4, 1), (2, 2, 1), (2, 1, 2)])
def test_keys_are_the_same_however_split_and_wherever_resumed(
    world_size: int, accumulate: int, views: int
) -> None:
    whole = planned(views_per_decode=views, weights=(5.0, *[1.0] * 99))
    split = dataclasses.replace(whole, accumulate=accumulate, world_size=world_size)
    batches = list(whole.micro_batches(seed=3, rank=0, start_step=0))
    assert len(batches) == whole.total_steps == split.total_steps
    for start in range(0, whole.total_steps, 5):
        ranks = [split.micro_batches(seed=3, rank=r, start_step=start) for r in range(world_size)]
        for step, batch in enumerate(batches[start:], start):
            micro = [next(rank) for _ in range(accumulate) for rank in ranks]
            assert len({len(keys) for keys in micro}) == 1
            assert [key for keys in micro for key in keys] == batch
            shape = split.shape(step)
            assert shape is not None and len(batch) * views == 4 * shape.batch


def test_a_clip_of_fewer_frames_spans_the_old_stride_up_to_the_old_span() -> None:
    coarse = with_frames(RandomClip(32, 2), 8)
    assert coarse == RandomClip(8, 2, max_sampling_rate=8)
    drawn = [coarse(300, None, np.random.default_rng(i))[0] for i in range(200)]
    strides = {tuple(np.diff(indices)) for indices in drawn}
    assert strides == {(rate,) * 7 for rate in range(2, 9)}
    assert with_frames(coarse, 4).max_sampling_rate == 16  # type: ignore[union-attr]
    segments = with_frames(TsnSegments(8, 1), 4)
    assert segments(80, None, np.random.default_rng(0)).tolist() == [[10, 30, 50, 70]]
    with pytest.raises(UsageError, match="ConstantClips; use clip_sampler=dense"):
        with_frames(ConstantClips(8, 2), 4)
    with pytest.raises(UsageError, match="max_sampling_rate=1 is below"):
        RandomClip(8, 2, max_sampling_rate=1)


def test_a_small_crop_may_see_as_much_of_the_frame(class_folders: Path) -> None:
    samples = clips(class_folders, num_frames=4, crop_size=24, short_side=(24, 40))
    small = samples.shaped(Shape(4, 2, 12))
    assert (small.num_frames, small.crop_size, small.short_side) == (2, 12, (12, 40))
    assert small.sampler == RandomClip(2, 2, max_sampling_rate=4)
    assert samples.shaped(Shape(1, 4, 24)) == samples.shaped(None) == samples
    assert samples.shaped(Shape(4, 4, 12)).sampler == samples.sampler


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_have_the_shapes_of_their_steps(class_folders: Path, workers: int) -> None:
    plan = planned(num_videos=24, batch_size=2, accumulate=2, epochs=6)
    whole = copies(train_batches(clips(class_folders), plan, rank=0, start_step=0))
    assert len({batch.clips.shape for batch in whole}) == len(plan.all_shapes) > 3
    for number, batch in enumerate(whole):
        shape = plan.shape(number // 2)
        assert shape is not None
        size = shape.crop_size
        assert batch.clips.shape == (shape.batch, shape.num_frames, size, size, 3)
        assert batch.frames.shape == batch.clips.shape[:2] and batch.clips.any()
    start = plan.epoch_steps[0] + 1  # in mid epoch
    resumed = copies(train_batches(clips(class_folders, workers), plan, rank=0, start_step=start))
    for one, other in zip(whole[2 * start :], resumed, strict=True):
        for field in ("clips", "labels", "flips", "videos", "frames", "draws"):
            assert torch.equal(getattr(one, field), getattr(other, field)), field


def test_at_full_shape_samples_are_those_without_multigrid(class_folders: Path) -> None:
    plain = planned(num_videos=24, epochs=1, shapes=None)
    full = dataclasses.replace(plain, shapes=Multigrid(4, 24, short_cycle=(1.0,)))
    assert plain.all_shapes == () and plain.lr_factor(3) == 1.0 and plain.shape(3) is None
    for one, other in zip(
        train_batches(clips(class_folders), plain, rank=0, start_step=0),
        train_batches(clips(class_folders), full, rank=0, start_step=0), strict=True,
    ):  # fmt: skip
        assert torch.equal(one.clips, other.clips) and torch.equal(one.draws, other.draws)


@pytest.mark.slow
def test_a_run_stopped_within_a_long_cycle_ends_with_the_same_bits(
    cli: Callable[..., int], small_run: tuple[str, ...], tmp_path: Path
) -> None:
    run = (*small_run, "multigrid=small", "train.epochs=4", "train.accumulate=2", "mix=mixup",
           "average=ema", "data.class_balance=0.5", "train.precise_bn=2")  # fmt: skip
    assert cli("train", *run, "name=whole") == 0
    for workers in (0, 2):
        for stop in (3, 8):
            name = f"resumed{workers}{stop}"
            assert cli("train", *run, f"name={name}", f"train.max_steps={stop}") == 0
            assert cli("train", *run, f"name={name}", f"data.num_workers={workers}") == 0
            same_state(tmp_path / "runs" / "whole", tmp_path / "runs" / name)
            shutil.rmtree(tmp_path / "runs" / name)
