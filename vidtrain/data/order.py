"""Which videos an epoch shows, and in which order."""

from collections import Counter

import numpy as np

from vidtrain.data.video import VideoList


def draw_weights(listed: VideoList, power: float) -> tuple[float, ...]:
    """Returns how likely each video is to be drawn, relative to the others.

    A video counts by the rarest of its classes; those without a class are a class of their own.

    Source: Kang et al., Decoupling representation and classifier, ICLR 2020, section 3 (their
    q is 1 - power); the rarest of several classes after Mahajan et al., Exploring the limits of
    weakly supervised pretraining, ECCV 2018, section 2.

    Args:
        listed: The training split.
        power: 0: all videos alike; 0.5: classes in proportion to the square root of their videos;
            1: all classes alike.
    """
    labels = [video.all_labels or (-1,) for video in listed.videos]
    counts = Counter(label for several in labels for label in several)
    return tuple(min(counts[label] for label in several) ** -power for several in labels)


def epoch_order(
    rng: np.random.Generator, num_videos: int, weights: tuple[float, ...] | None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the videos of an epoch in order, and how often each has come before in it.

    Args:
        rng: The epoch's own generator.
        num_videos: Videos of the split, and of the epoch.
        weights: Relative chance of each video, drawn with replacement; None: each comes once.

    Returns:
        Two int64 arrays (num_videos,).
    """
    if weights is None:
        return rng.permutation(num_videos), np.zeros(num_videos, np.int64)
    chance = np.array(weights)
    order = rng.choice(num_videos, size=num_videos, p=chance / chance.sum())
    by_video = np.argsort(order, kind="stable")
    videos = order[by_video]
    first = np.searchsorted(videos, videos)  # where the run of the same video begins
    before = np.empty_like(order)
    before[by_video] = np.arange(num_videos) - first
    return order, before
