"""Samples, order, shards: keyed randomness, exact plans, each video once."""

import dataclasses
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from vidtrain.data.clip_samplers import ConstantClips, RandomClip, UniformClips
from vidtrain.data.eval_loading import EvalLoader, EvalViews
from vidtrain.data.loading import ClipBatch, Plan, Reading, TrainClips, as_batch, train_batches
from vidtrain.data.sources.folder import folder
from vidtrain.errors import InputError

SPEC = {"clip_frames": 4, "sampling_rate": 2}


def plan(world_size: int = 1, accumulate: int = 1, epochs: int = 2) -> Plan:
    return Plan(
        num_videos=24, batch_size=8, accumulate=accumulate, epochs=epochs, world_size=world_size
    )


def clips(root: Path, num_workers: int = 0, **changes: object) -> TrainClips:
    settings = TrainClips(
        videos=folder(str(root), split="train"),
        sampler=RandomClip(**SPEC),
        num_frames=4,
        crop_size=24,
        short_side=(24, 32),
        flip=True,
        seed=5,
        reading=Reading(num_workers=num_workers),
    )
    return dataclasses.replace(settings, **changes)  # type: ignore[arg-type]


def copies(batches: Iterator[ClipBatch]) -> list[ClipBatch]:
    """Batches to keep: their clips lie in buffers that are used again."""
    return [dataclasses.replace(batch, clips=batch.clips.clone()) for batch in batches]


def eval_views(root: Path, **changes: object) -> EvalViews:
    settings = {
        "videos": folder(str(root), split="val"),
        "sampler": ConstantClips(**SPEC, num_clips=2),
        "crop_size": 24,
        "short_side": 24,
        "num_crops": 3,
        "reading": Reading(),
    }
    return EvalViews(**(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 4), (2, 1), (2, 2), (4, 2)])
def test_the_global_batch_is_the_same_however_it_is_split(world_size: int, accumulate: int) -> None:
    whole = list(plan().micro_batches(seed=3, rank=0, start_step=0))
    split = plan(world_size, accumulate)
    ranks = [list(split.micro_batches(seed=3, rank=r, start_step=0)) for r in range(world_size)]
    assert len(whole) == 6
    for step, batch in enumerate(whole):
        parts = [
            key
            for micro in range(accumulate)
            for rank in range(world_size)
            for key in ranks[rank][step * accumulate + micro]
        ]
        assert parts == batch


def test_an_epoch_visits_each_video_once_in_its_own_order() -> None:
    batches = list(plan().micro_batches(seed=3, rank=0, start_step=0))
    orders = [[index for batch in batches[i : i + 3] for _, index in batch] for i in (0, 3)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(24))
    assert orders[0] != orders[1]
    assert {epoch for batch in batches[3:] for epoch, _ in batch} == {1}
    assert list(plan().micro_batches(seed=3, rank=0, start_step=4)) == batches[4:]
    assert list(plan().micro_batches(seed=4, rank=0, start_step=0)) != batches


@pytest.mark.parametrize(("workers", "views_per_decode"), [(1, 1), (3, 1), (2, 2)])
def test_batches_do_not_depend_on_workers_or_global_generators(
    class_folders: Path, workers: int, views_per_decode: int
) -> None:
    planned = dataclasses.replace(plan(), views_per_decode=views_per_decode)
    reading = {"views_per_decode": views_per_decode}
    alone = copies(train_batches(clips(class_folders, **reading), planned, rank=0, start_step=0))
    np.random.seed(9)
    torch.manual_seed(9)
    many = copies(
        train_batches(clips(class_folders, workers, **reading), planned, rank=0, start_step=2)
    )
    assert len(alone) == 6 * views_per_decode and len(many) == len(alone) - 2
    for one, other in zip(alone[2:], many, strict=True):
        for field in ("clips", "labels", "flips", "videos", "frames", "draws"):
            assert torch.equal(getattr(one, field), getattr(other, field)), field


def test_a_sample_changes_with_epoch_and_stays_with_key(class_folders: Path) -> None:
    samples = clips(class_folders)
    first, again, later = (as_batch(samples.batch([(epoch, 5)])) for epoch in (0, 0, 1))
    assert first.clips.shape == (1, 4, 24, 24, 3) and first.clips.dtype == torch.uint8
    assert torch.equal(first.clips, again.clips) and torch.equal(first.draws, again.draws)
    assert not torch.equal(first.clips, later.clips)
    flips = [as_batch(samples.batch([(epoch, 5)])).flips.item() for epoch in range(12)]
    assert set(flips) == {True, False}


def test_views_of_one_decode_share_frames_and_nothing_else(class_folders: Path) -> None:
    batch = as_batch(clips(class_folders, views_per_decode=3).batch([(0, 5), (0, 6), (0, 7)]))
    assert batch.videos.tolist() == [5, 6, 7] * 3  # neighbours, which mixing pairs, differ
    for first in range(3):
        one, two = first, first + 3
        assert torch.equal(batch.frames[one], batch.frames[two])
        assert not torch.equal(batch.clips[one], batch.clips[two])
    assert len(set(batch.draws.tolist())) == 9
    single = as_batch(clips(class_folders).batch([(0, 5)]))
    assert torch.equal(batch.clips[:1], single.clips)  # the first view is the one of one view


def test_slots_come_round_and_are_not_overwritten_early(class_folders: Path) -> None:
    seen = []
    for batch in train_batches(clips(class_folders, 2), plan(), rank=0, start_step=0):
        address, content = batch.clips.data_ptr(), batch.clips.clone()
        time.sleep(0.2)  # the workers go on meanwhile
        assert torch.equal(batch.clips, content)
        seen.append(address)
    assert len(set(seen)) <= 7  # 2 workers x 2 batches ahead, and three more


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_each_view_is_evaluated_once_in_the_same_company(
    class_folders: Path, world_size: int, workers: int
) -> None:
    views = eval_views(class_folders, reading=Reading(num_workers=workers))

    def company(rank: int, size: int) -> list[tuple[tuple[int, int], ...]]:
        loader = EvalLoader(views, videos_per_group=3, batch_size=8, rank=rank, world_size=size)
        return [tuple((w.video, w.first_view + i) for w in item for i in range(len(w.frames)))
                for item in loader]  # fmt: skip

    alone = company(0, 1)
    dealt = [item for rank in range(world_size) for item in company(rank, world_size)]
    assert sorted(dealt) == sorted(alone)
    every = sorted(pair for item in dealt for pair in item)
    assert every == [(video, view) for video in range(13) for view in range(6)]


def test_views_are_temporal_clips_times_crops(class_folders: Path) -> None:
    (window,) = eval_views(class_folders).windows(0)
    assert window.positions.shape == (6, 4) and window.num_views == 6
    assert len(window.pixels) == len(np.unique(window.frames))  # each frame once
    views = eval_views(class_folders).clips(0)
    assert views.shape == (6, 4, 24, 24, 3)
    assert torch.equal(window.frames[0], window.frames[2])
    assert not torch.equal(window.frames[0], window.frames[3])
    assert not torch.equal(views[0], views[1])  # another crop of the same frames


def test_windows_bound_memory_and_change_nothing(class_folders: Path) -> None:
    views = eval_views(class_folders, sampler=UniformClips(**SPEC))
    whole = views.clips(3)
    small = list(views.windows(3, window_bytes=1))
    assert len(small) == len(whole) // 3 > 1
    assert [w.first_view for w in small] == list(range(0, len(whole), 3))
    cuts = [window.all_clips(24) for window in small]
    assert torch.equal(torch.cat(cuts), whole)


def test_uniform_clips_differ_in_number_by_length(class_folders: Path) -> None:
    views = eval_views(class_folders, sampler=UniformClips(**SPEC), num_crops=1)
    counts = [len(views.frames(i)) for i in range(13)]
    assert len(set(counts)) > 1
    loader = EvalLoader(views, videos_per_group=13, batch_size=4, rank=0, world_size=1)
    assert sum(len(w.frames) for item in loader for w in item) == sum(counts)


def test_an_eval_loader_is_passed_over_again_with_the_same_processes(class_folders: Path) -> None:
    views = eval_views(class_folders, reading=Reading(num_workers=2))
    loader = EvalLoader(views, videos_per_group=2, batch_size=12, rank=0, world_size=1)
    pids, content = [], []
    for _ in range(2):
        content.append([window.pixels.sum().item() for item in loader for window in item])
        pids.append({row[0] for row in loader._activity.rows.tolist()})
    assert pids[0] == pids[1] and content[0] == content[1]


def test_an_unreadable_video_is_named_from_any_worker(class_folders: Path, tmp_path: Path) -> None:
    root = shutil.copytree(class_folders, tmp_path / "data")
    for split in ("train", "val"):
        (root / split / "dark" / f"{split}00.mp4").write_bytes(b"no video at all")
    for workers in (0, 2):
        with pytest.raises(InputError, match=r"train00\.mp4") as caught:
            list(train_batches(clips(root, num_workers=workers), plan(), rank=0, start_step=0))
        assert "Traceback" not in str(caught.value)
        views = eval_views(root, reading=Reading(num_workers=workers))
        with pytest.raises(InputError, match=r"val00\.mp4"):
            list(EvalLoader(views, videos_per_group=2, batch_size=4, rank=0, world_size=1))


def test_the_same_video_stands_in_at_any_number_of_workers(
    class_folders: Path, tmp_path: Path
) -> None:
    root = shutil.copytree(class_folders, tmp_path / "data")
    (root / "train" / "dark" / "train00.mp4").write_bytes(b"no video at all")
    runs = [
        copies(train_batches(clips(root, workers, replace=True), plan(), rank=0, start_step=0))
        for workers in (0, 2)
    ]
    met = [batch.bad for batch in runs[0] if batch.bad]
    assert len(met) == 2 and all("train00.mp4" in text for bad in met for text in bad.values())
    for one, other in zip(*runs, strict=True):
        assert torch.equal(one.clips, other.clips) and torch.equal(one.videos, other.videos)
        assert 0 not in one.videos and one.bad == other.bad


@pytest.mark.parametrize("workers", [0, 2])
def test_frames_of_an_evaluation_item_stay_until_the_next(
    class_folders: Path, workers: int
) -> None:
    views = eval_views(class_folders, reading=Reading(num_workers=workers))
    loader = EvalLoader(views, videos_per_group=1, batch_size=6, rank=0, world_size=1)
    for _ in range(2):
        for item in loader:
            content = [window.pixels.clone() for window in item]
            time.sleep(0.1)  # the workers go on meanwhile
            for window, pixels in zip(item, content, strict=True):
                assert torch.equal(window.pixels, pixels)
                alone = next(views.windows(window.video))
                assert torch.equal(alone.pixels, pixels)
