"""Which videos come when: class balance, repeated draws, every split and every resume."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from test_loading import clips, copies, plan

from vidtrain import randomness
from vidtrain.data.loading import as_batch, statistics_batches, train_batches
from vidtrain.data.order import draw_weights, epoch_order
from vidtrain.data.plan import Plan
from vidtrain.data.video import Video, VideoList


def listed(*labels: tuple[int, ...]) -> VideoList:
    return VideoList(
        tuple(Video(f"/{i}", -1, str(i), labels=several) for i, several in enumerate(labels)),
        ("a", "b", "c"), multi_label=any(len(several) != 1 for several in labels),
    )  # fmt: skip


def skewed(num_videos: int = 24) -> tuple[float, ...]:
    """Weights of videos of which the first is by far the likeliest."""
    return (float(num_videos), *[1.0] * (num_videos - 1))


def test_weights_follow_the_number_of_videos_of_a_class() -> None:
    videos = listed(*[(0,)] * 4, (1,), *[(2,)] * 16)
    assert draw_weights(videos, 0) == (1,) * 21
    assert draw_weights(videos, 0.5) == (*[1 / 2] * 4, 1, *[1 / 4] * 16)
    assert draw_weights(videos, 1) == (*[1 / 4] * 4, 1, *[1 / 16] * 16)


def test_a_video_of_several_classes_counts_by_the_rarest() -> None:
    # Class 0 has four videos, 1 two, 2 one; two have none, which is a class of its own.
    videos = listed((0, 1), (0,), (2, 0), (0, 1), (), ())
    assert draw_weights(videos, 1) == (1 / 2, 1 / 4, 1, 1 / 2, 1 / 2, 1 / 2)


@pytest.mark.parametrize(
    ("power", "shares"),
    [(0.0, (0.9, 0.09, 0.01)), (0.5, (0.703, 0.222, 0.074)), (1.0, (1 / 3, 1 / 3, 1 / 3))],
)
def test_classes_are_drawn_as_often_as_the_power_says(power: float, shares: tuple) -> None:
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    weights = draw_weights(listed(*[(int(label),) for label in labels]), power)
    drawn = [epoch_order(np.random.default_rng(i), 1000, weights)[0] for i in range(20)]
    found = np.bincount(labels[np.concatenate(drawn)]) / 20_000
    assert found == pytest.approx(shares, abs=4 * 0.5 / 20_000**0.5)


def test_without_weights_an_epoch_is_the_plain_permutation() -> None:
    order, before = epoch_order(np.random.default_rng(3), 50, None)
    assert order.tolist() == np.random.default_rng(3).permutation(50).tolist()
    assert not before.any()
    keys = [key for batch in plan().micro_batches(seed=7, rank=0, start_step=3) for key in batch]
    own = randomness.generator(7, randomness.ORDER, 1).permutation(24)
    assert keys == [(1, video) for video in own.tolist()]


def test_draws_of_a_video_are_numbered_within_the_epoch() -> None:
    order, before = epoch_order(np.random.default_rng(3), 200, skewed(200))
    seen: Counter[int] = Counter()
    for video, number in zip(order.tolist(), before.tolist(), strict=True):
        assert number == seen[video]
        seen[video] += 1
    assert seen[0] > 50 and len(order) == 200


@pytest.mark.parametrize(("world_size", "accumulate", "views"), [(1, 4, 1), (2, 2, 2), (2, 1, 4)])
def test_balanced_keys_are_the_same_however_split_and_wherever_resumed(
    world_size: int, accumulate: int, views: int
) -> None:
    whole = Plan(num_videos=24, batch_size=16, accumulate=1, epochs=3, world_size=1,
                 views_per_decode=views, weights=skewed())  # fmt: skip
    split = dataclasses.replace(whole, accumulate=accumulate, world_size=world_size)
    batches = list(whole.micro_batches(seed=3, rank=0, start_step=0))
    assert len(batches) == whole.total_steps == split.total_steps == 3 * (24 * views // 16)
    assert all(len(set(batch)) == len(batch) == 16 // views for batch in batches)
    for start in range(whole.total_steps):
        ranks = [split.micro_batches(seed=3, rank=r, start_step=start) for r in range(world_size)]
        for batch in batches[start:]:
            micro = [next(rank) for _ in range(accumulate) for rank in ranks]
            assert [key for keys in micro for key in keys] == batch
        assert [list(rank) for rank in ranks] == [[]] * world_size


def test_a_video_drawn_again_gives_another_clip(class_folders: Path) -> None:
    samples = clips(class_folders)
    first, again, third = (as_batch(samples.batch([key])) for key in ((0, 6), (0, 6, 1), (0, 6, 2)))
    assert first.videos == again.videos == third.videos == 6
    assert not torch.equal(first.clips, again.clips)
    assert not torch.equal(again.clips, third.clips)
    assert len({first.draws.item(), again.draws.item(), third.draws.item()}) == 3


def test_balance_views_ranks_accumulation_and_resume_together(class_folders: Path) -> None:
    whole = dataclasses.replace(plan(), weights=skewed(), views_per_decode=2)
    split = dataclasses.replace(whole, accumulate=2, world_size=2)
    samples = clips(class_folders, views_per_decode=2)
    alone = copies(train_batches(samples, whole, rank=0, start_step=0))
    assert any(batch.videos.tolist().count(0) > 2 for batch in alone)  # more than its two views
    resumed = 2
    ranks = []
    for rank, workers in enumerate((0, 2)):
        own = clips(class_folders, workers, views_per_decode=2)
        ranks.append(copies(train_batches(own, split, rank=rank, start_step=resumed)))
    for step, batch in enumerate(alone[resumed:]):
        parts = [ranks[rank][2 * step + micro] for micro in (0, 1) for rank in (0, 1)]
        for field in ("clips", "labels", "flips", "videos", "frames", "draws"):
            # First views of all videos come first, in each micro-batch.
            views = [getattr(part, field).unflatten(0, (2, -1)) for part in parts]
            assert torch.equal(torch.cat(views, dim=1).flatten(0, 1), getattr(batch, field)), field


def test_statistics_have_an_order_of_their_own(class_folders: Path) -> None:
    planned = dataclasses.replace(plan(world_size=2, accumulate=2), views_per_decode=2)
    samples = clips(class_folders, views_per_decode=2)
    taken = {
        (rank, step): copies(statistics_batches(samples, planned, rank=rank, step=step, count=14))
        for rank in (0, 1)
        for step in (3, 4)
    }
    assert all(len(batches) == 14 for batches in taken.values())
    assert all(len(batch.clips) == planned.micro_batch for batch in taken[0, 3])
    videos = {
        key: [video for batch in batches for video in batch.videos[:1].tolist()]
        for key, batches in taken.items()
    }
    # Two ranks read one video of the 24 each time: an epoch is 12 batches, then another begins.
    assert sorted(videos[0, 3][:12] + videos[1, 3][:12]) == list(range(24))
    assert videos[0, 3][:2] != videos[0, 3][12:]
    assert videos[0, 3] != videos[0, 4]
    trained = copies(train_batches(samples, planned, rank=0, start_step=0))
    draws = {draw for batch in trained for draw in batch.draws.tolist()}
    assert draws.isdisjoint({d for batch in taken[0, 3] for d in batch.draws.tolist()})


@pytest.mark.parametrize("workers", [0, 2])
def test_statistics_in_mid_training_disturb_nothing(class_folders: Path, workers: int) -> None:
    reference = copies(train_batches(clips(class_folders), plan(), rank=0, start_step=0))
    wanted = copies(statistics_batches(clips(class_folders), plan(), rank=0, step=2, count=4))
    samples = clips(class_folders, workers)
    trained, taken = [], []
    for step, batch in enumerate(train_batches(samples, plan(), rank=0, start_step=0)):
        trained += copies(iter([batch]))
        if step == 2:
            taken = copies(statistics_batches(samples, plan(), rank=0, step=2, count=4))
            assert torch.equal(batch.clips, trained[-1].clips)  # still as it was
    for one, other in ((reference, trained), (wanted, taken)):
        for first, second in zip(one, other, strict=True):
            assert torch.equal(first.clips, second.clips)
            assert torch.equal(first.draws, second.draws)
