"""Batches of noise in the shape of the real ones, for trials that must not need the data."""

from collections.abc import Iterator

import numpy as np
import torch

from vidtrain import randomness
from vidtrain.data.loading import TrainClips
from vidtrain.data.plan import Plan
from vidtrain.data.slots import ClipBatch


def noise_batches(
    clips: TrainClips, plan: Plan, *, rank: int, start_step: int
) -> Iterator[ClipBatch]:
    """Yields what `train_batches` would, but that the pixels are noise, alike in all batches.

    Args:
        clips: The training samples.
        plan: Arithmetic of batches.
        rank: Of this process.
        start_step: The first step.
    """
    rng = randomness.generator(clips.seed, randomness.SAMPLE, start_step)
    keys = plan.micro_batches(seed=clips.seed, rank=rank, start_step=start_step)
    for number, batch in enumerate(keys):
        shaped = clips.shaped(plan.shape(start_step + number // plan.accumulate))
        videos = np.tile([key[1] for key in batch], clips.views_per_decode)
        count = len(videos)
        labels = [clips.videos.videos[index].label for index in videos]
        yield ClipBatch(
            clips=noise(shaped.batch_shape(len(batch)), seed=clips.seed),
            labels=torch.tensor(labels),
            flips=(torch.arange(count) % 2 == 1) & clips.flip,
            videos=torch.from_numpy(videos),
            frames=torch.zeros(count, shaped.num_frames, dtype=torch.int64),
            draws=torch.from_numpy(rng.integers(2**62, size=count)),
            bad={},
        )


def noise(shape: tuple[int, ...], *, seed: int) -> torch.Tensor:
    """Returns a uint8 tensor of noise."""
    rng = randomness.generator(seed, randomness.SAMPLE)
    data = bytearray(rng.bytes(int(np.prod(shape))))
    return torch.frombuffer(data, dtype=torch.uint8).view(shape)
