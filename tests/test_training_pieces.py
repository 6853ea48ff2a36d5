"""Precision, input, generators: against hand-made values."""

import numpy as np
import pytest
import torch
from torch import nn

from vidtrain import randomness
from vidtrain.data.augment import to_input, to_pixels
from vidtrain.errors import UsageError
from vidtrain.training.precision import Precision


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_precision_runs_on_the_cpu(name: str) -> None:
    precision = Precision(name, torch.device("cpu"))  # torch >= 2.8 can do all three
    layer = nn.Linear(4, 4)
    with precision.autocast():
        out = layer(torch.ones(1, 4))
    assert out.dtype == precision.dtype
    assert precision.scaler.is_enabled() == (name == "fp16")


def test_unknown_precision_is_named() -> None:
    with pytest.raises(UsageError, match=r"precision.dtype='fp8' is unknown; use one of fp32"):
        Precision("fp8", torch.device("cpu"))


def test_input_is_normalised_flipped_and_undone() -> None:
    clips = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    video = to_input(clips, mean=mean, std=std, flips=torch.tensor([True, False]))
    assert video.shape == (2, 3, 3, 4, 5) and video.is_contiguous()
    value = (clips[1, 2, 3, 4, 1].item() / 255 - 0.5) / 0.25
    assert video[1, 1, 2, 3, 4].item() == pytest.approx(value, abs=1e-5)
    back = to_pixels(video, mean=mean, std=std)
    assert torch.equal(back[0], clips[0].flip(2)) and torch.equal(back[1], clips[1])


def test_generators_depend_on_the_whole_key_and_nothing_else() -> None:
    def draw(*key: int) -> float:
        return randomness.generator(*key).random()

    np.random.seed(1)
    first = draw(7, randomness.SAMPLE, 3, 4)
    np.random.seed(2)
    assert draw(7, randomness.SAMPLE, 3, 4) == first
    others = {draw(8, 2, 3, 4), draw(7, 1, 3, 4), draw(7, 2, 4, 3), draw(7, 2, 3, 5)}
    assert len(others | {first}) == 5
    assert randomness.derive(0, randomness.STEP, 1, 0) != randomness.derive(
        0, randomness.STEP, 0, 1
    )
