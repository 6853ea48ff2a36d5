"""Samples, order, shards: keyed randomness, exact plans, each video once."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vidtrain.data.clip_samplers import ConstantClips, RandomClip, UniformClips
from vidtrain.data.loading import (
    ClipBatch,
    EvalViews,
    Plan,
    Reading,
    TrainClips,
    eval_batches,
    train_batches,
)
from vidtrain.data.sources.folder import folder
from vidtrain.errors import InputError

SPEC = {"clip_frames": 4, "sampling_rate": 2}


def plan(world_size: int = 1, accumulate: int = 1) -> Plan:
    return Plan(num_videos=24, batch_size=8, accumulate=accumulate, epochs=2, world_size=world_size)


def clips(root: Path, num_workers: int = 0) -> TrainClips:
    return TrainClips(
        videos=folder(str(root), split="train"),
        sampler=RandomClip(**SPEC),
        crop_size=24,
        short_side=(24, 32),
        flip=True,
        seed=5,
        reading=Reading(num_workers=num_workers),
    )


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


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_do_not_depend_on_workers_or_global_generators(
    class_folders: Path, workers: int
) -> None:
    alone = list(train_batches(clips(class_folders), plan(), rank=0, start_step=0))
    np.random.seed(9)
    torch.manual_seed(9)
    many = list(
        train_batches(clips(class_folders, num_workers=workers), plan(), rank=0, start_step=2)
    )
    assert len(alone) == 6 and len(many) == 4
    for one, other in zip(alone[2:], many, strict=True):
        for field in ("clips", "labels", "flips", "videos", "frames"):
            assert torch.equal(getattr(one, field), getattr(other, field)), field


def test_a_sample_changes_with_epoch_and_stays_with_key(class_folders: Path) -> None:
    samples = clips(class_folders)
    first, again, later = samples[(0, 5)], samples[(0, 5)], samples[(1, 5)]
    assert not isinstance(first, str) and not isinstance(again, str) and not isinstance(later, str)
    assert first.clips.shape == (1, 4, 24, 24, 3) and first.clips.dtype == torch.uint8
    assert torch.equal(first.clips, again.clips)
    assert not torch.equal(first.clips, later.clips)
    flips = [samples[(epoch, 5)].flips.item() for epoch in range(12)]  # type: ignore[union-attr]
    assert set(flips) == {True, False}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
def test_each_video_is_evaluated_once_in_the_same_company(
    class_folders: Path, world_size: int
) -> None:
    alone = [
        b.videos.tolist()
        for b in eval_batches(eval_views(class_folders), videos_per_batch=3, rank=0, world_size=1)
    ]
    dealt = [
        b.videos.tolist()
        for rank in range(world_size)
        for b in eval_batches(
            eval_views(class_folders), videos_per_batch=3, rank=rank, world_size=world_size
        )
    ]
    assert sorted(dealt) == sorted(alone)
    counts = np.bincount([video for group in dealt for video in group])
    assert counts.tolist() == [6] * 13  # 2 clips x 3 crops


def test_views_are_temporal_clips_times_crops(class_folders: Path) -> None:
    item = eval_views(class_folders)[0]
    assert not isinstance(item, str)
    assert item.clips.shape == (6, 4, 24, 24, 3)
    assert torch.equal(item.frames[0], item.frames[2])
    assert not torch.equal(item.frames[0], item.frames[3])
    assert not torch.equal(item.clips[0], item.clips[1])  # another crop of the same frames


def test_uniform_clips_differ_in_number_by_length(class_folders: Path) -> None:
    views = eval_views(class_folders, sampler=UniformClips(**SPEC), num_crops=1)
    counts = {len(item.clips) for i in range(13) if isinstance(item := views[i], ClipBatch)}
    assert len(counts) > 1
    groups = list(eval_batches(views, videos_per_batch=13, rank=0, world_size=1))
    items = [item for i in range(13) if isinstance(item := views[i], ClipBatch)]
    assert sum(len(g.clips) for g in groups) == sum(len(item.clips) for item in items)


def test_an_unreadable_video_is_named_from_any_worker(class_folders: Path, tmp_path: Path) -> None:
    import shutil

    root = shutil.copytree(class_folders, tmp_path / "data")
    victim = root / "train" / "dark" / "train00.mp4"
    victim.write_bytes(b"no video at all")
    for workers in (0, 2):
        with pytest.raises(InputError, match=r"train00\.mp4") as caught:
            list(train_batches(clips(root, num_workers=workers), plan(), rank=0, start_step=0))
        assert "Traceback" not in str(caught.value)
