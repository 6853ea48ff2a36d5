"""Samplers against tables worked out by hand; crops against the geometry they stand for."""

import pickle
from typing import Any

import numpy as np
import pytest

from vidtrain.data.clip_samplers import ConstantClips, RandomClip, TsnSegments, UniformClips
from vidtrain.errors import InputError, UsageError


def sample(sampler: Any, num_frames: int, fps: float | None = None, seed: int = 0) -> list:
    indices = sampler(num_frames, fps, np.random.default_rng(seed))
    assert indices.dtype == np.int64
    assert indices.ndim == 2
    return indices.tolist()


# Sampler, frames of the video, its rate, indices worked out by hand.
TABLE: list[tuple[Any, int, float | None, list[list[int]]]] = [
    # A clip of 4 with stride 2 spans 7 frames: in 20 it may start at 0 to 13, the middle is 6.
    (ConstantClips(4, 2), 20, None, [[6, 8, 10, 12]]),
    (ConstantClips(4, 2, num_clips=3), 20, None, [[0, 2, 4, 6], [6, 8, 10, 12], [13, 15, 17, 19]]),
    (ConstantClips(4, 2, num_clips=2), 7, None, [[0, 2, 4, 6], [0, 2, 4, 6]]),
    # Shorter than a clip: from the first frame on, and the last frame repeats.
    (ConstantClips(4, 2), 5, None, [[0, 2, 4, 4]]),
    (ConstantClips(4, 2, num_clips=2), 1, None, [[0, 0, 0, 0], [0, 0, 0, 0]]),
    (RandomClip(4, 2), 5, None, [[0, 2, 4, 4]]),
    (RandomClip(3, 3), 7, None, [[0, 3, 6]]),
    (UniformClips(4, 2), 3, None, [[0, 2, 2, 2]]),
    # 15 of 30 frames per second: 2 frames there are 4 here. 12.5 of 25: 2 are 4.
    (ConstantClips(3, 2, 15.0), 30, 30.0, [[10, 14, 18]]),
    (ConstantClips(3, 2, 12.5), 9, 25.0, [[0, 4, 8]]),
    # 10 of 25: a stride of 2.5; offsets 0, 2.5, 5, 7.5 are 0, 3, 5, 8.
    (ConstantClips(4, 1, 10.0), 9, 25.0, [[0, 3, 5, 8]]),
    (ConstantClips(4, 1, 10.0, num_clips=2), 11, 25.0, [[0, 3, 5, 8], [2, 5, 7, 10]]),
    # 60 of 30: a stride of half a frame.
    (ConstantClips(4, 1, 60.0), 3, 30.0, [[0, 1, 1, 2]]),
    # A clip of 2 with stride 2 takes up 4 frames; the last one ends with the video.
    (UniformClips(2, 2), 8, None, [[0, 2], [5, 7]]),
    (UniformClips(2, 2), 9, None, [[0, 2], [4, 6], [6, 8]]),
    (UniformClips(2, 2), 12, None, [[0, 2], [4, 6], [9, 11]]),
    (UniformClips(3, 1), 3, None, [[0, 1, 2]]),
    (UniformClips(3, 1), 7, None, [[0, 1, 2], [3, 4, 5], [4, 5, 6]]),
    (UniformClips(2, 1, 15.0), 8, 30.0, [[0, 2], [5, 7]]),
    # Segments of 4 frames: the middle is the third, thirds are the first, third and fourth.
    (TsnSegments(3, 1), 12, None, [[2, 6, 10]]),
    (TsnSegments(3, 1, num_clips=3), 12, None, [[0, 4, 8], [2, 6, 10], [3, 7, 11]]),
    # Segments of 10/3 frames: middles 1.67, 5 and 8.33.
    (TsnSegments(3, 1), 10, None, [[1, 5, 8]]),
    (TsnSegments(3, 1), 1, None, [[0, 0, 0]]),
    (TsnSegments(4, 1), 2, None, [[0, 0, 1, 1]]),
    (TsnSegments(3, 1, jitter=True), 3, None, [[0, 1, 2]]),
]


@pytest.mark.parametrize(("sampler", "num_frames", "fps", "expected"), TABLE)
def test_table(sampler: Any, num_frames: int, fps: float | None, expected: list[list[int]]) -> None:
    assert sample(sampler, num_frames, fps) == expected
    assert sample(pickle.loads(pickle.dumps(sampler)), num_frames, fps) == expected


def test_random_clip_starts_everywhere_equally_often() -> None:
    sampler = RandomClip(3, 2)
    starts = [sample(sampler, 8, seed=seed)[0] for seed in range(2000)]
    assert all(clip == [clip[0], clip[0] + 2, clip[0] + 4] for clip in starts)
    counts = np.bincount([clip[0] for clip in starts])
    assert len(counts) == 4
    assert counts.min() > 420  # 500 expected, standard deviation 19


def test_segments_draw_every_frame_equally_often() -> None:
    drawn = np.array([sample(TsnSegments(3, 1, jitter=True), 12, seed=n)[0] for n in range(2000)])
    assert (drawn // 4 == [0, 1, 2]).all()
    assert np.bincount(drawn.ravel()).min() > 420
    assert len(np.unique(drawn - [0, 4, 8], axis=0)) == 64  # each segment for itself


@pytest.mark.parametrize("num_frames", [1, 7, 31, 32, 33, 64, 95, 96, 97, 300])
@pytest.mark.parametrize("rate", [(4, None, None), (1, 7.0, 24.0)])
def test_uniform_clips_cover_the_video(
    num_frames: int, rate: tuple[int, float | None, float | None]
) -> None:
    rng = np.random.default_rng(0)
    clips = UniformClips(8, rate[0], rate[1])(num_frames, rate[2], rng)
    stride = rate[0] if rate[1] is None or rate[2] is None else rate[2] / rate[1]
    span = round(8 * stride)
    assert len(clips) == -(-num_frames // span)
    assert clips[-1, -1] == num_frames - 1
    assert (np.diff(clips[:-1, 0]) == span).all()
    gaps = clips[1:, 0] - clips[:-1, -1]
    assert (gaps < 2 * np.ceil(stride)).all()  # between two clips no more than a frame is left out


def test_the_same_key_gives_the_same_clip_and_global_state_is_left_alone() -> None:
    np.random.seed(1)
    expected = np.random.random()
    np.random.seed(1)
    samplers = (RandomClip(4, 2), TsnSegments(4, 1, jitter=True))
    for sampler in samplers:
        assert sample(sampler, 300, seed=3) == sample(sampler, 300, seed=3)
        assert sample(sampler, 300, seed=3) != sample(sampler, 300, seed=4)
    assert np.random.random() == expected


def test_a_rate_is_needed_to_count_in_it() -> None:
    with pytest.raises(InputError, match=r"target_fps=15.0 needs the rate.*data.frame_folder_fps"):
        sample(ConstantClips(4, 2, 15.0), 30, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomClip(0, 1), r"clip_frames=0 must be at least 1"),
        (lambda: RandomClip(4, 0), r"sampling_rate=0 must be at least 1"),
        (lambda: RandomClip(4, 1, -1.0), r"model\.input\.target_fps=-1\.0 must be above 0"),
        (lambda: UniformClips(4, 1, num_clips=10), r"eval\.num_clips=10 has no meaning with"),
        (lambda: TsnSegments(4, 2), r"model\.input\.sampling_rate=2 must be 1"),
        (lambda: TsnSegments(4, 1, 15.0), r"model\.input\.target_fps=15\.0 null"),
    ],
)
def test_impossible_settings(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
