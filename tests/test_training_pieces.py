"""Schedules, parameter groups, mixing, precision, averaging, metrics: against hand-made values."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from vidtrain import randomness
from vidtrain.data.augment import to_input, to_pixels
from vidtrain.errors import UsageError
from vidtrain.tasks import classification
from vidtrain.tasks.classification import Scores, figures
from vidtrain.training.averaging import average_of
from vidtrain.training.mixing import Mix, mix_clips
from vidtrain.training.parameters import parameter_groups
from vidtrain.training.precision import Precision
from vidtrain.training.schedules import cosine


def test_cosine_warms_up_and_falls() -> None:
    rates = [
        cosine(s, total_steps=20, steps_per_epoch=10, warmup_epochs=0.4, warmup_start=0.1)
        for s in range(20)
    ]
    assert rates[0] == pytest.approx(0.1)
    assert rates[2] == pytest.approx(0.1 + 0.9 * 2 / 4)
    assert rates[4] == pytest.approx(1.0)
    assert rates[12] == pytest.approx(0.5)
    assert rates[19] == pytest.approx(0.5 * (1 + math.cos(math.pi * 15 / 16)))
    assert all(a > b for a, b in pairwise(rates[4:]))


def test_cosine_refuses_a_warm_up_longer_than_the_training() -> None:
    with pytest.raises(UsageError, match=r"schedule.warmup_epochs=3.0 is 30 steps.*has 20"):
        cosine(0, total_steps=20, steps_per_epoch=10, warmup_epochs=3.0)


def test_norms_and_biases_go_without_decay() -> None:
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4), nn.Linear(4, 2))
    groups = parameter_groups(model, no_decay_norm_bias=True)
    assert [(len(g["params"]), g.get("weight_decay")) for g in groups] == [(2, None), (4, 0.0)]
    model[0].weight.requires_grad_(False)
    groups = parameter_groups(model, no_decay_norm_bias=False)
    assert [(len(g["params"]), g.get("weight_decay")) for g in groups] == [(5, None)]


def make_batch(size: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    clips = torch.arange(size).float().view(size, 1, 1, 1, 1).expand(size, 3, 2, 8, 8).clone()
    return clips, torch.eye(size)


def test_mixup_blends_neighbours_by_the_drawn_share() -> None:
    clips, targets = make_batch()
    keep = np.random.default_rng(3)
    keep.random()
    share = float(keep.beta(0.8, 0.8))
    mixed, soft = mix_clips(clips, targets, Mix(mixup_alpha=0.8), np.random.default_rng(3))
    assert torch.allclose(mixed[0], torch.full_like(mixed[0], 1 - share))
    assert torch.allclose(mixed[3], torch.full_like(mixed[3], 3 * share + 2 * (1 - share)))
    assert torch.allclose(soft[2], torch.tensor([0, 0, share, 1 - share]))


def test_cutmix_share_is_the_area_left() -> None:
    clips, targets = make_batch()
    for seed in range(20):
        rng = np.random.default_rng(seed)
        mixed, soft = mix_clips(clips, targets, Mix(cutmix_alpha=1.0), rng)
        kept = (mixed[0] == 0).float().mean().item()
        assert soft[0, 0].item() == pytest.approx(kept)
        assert soft[0, 1].item() == pytest.approx(1 - kept)
        assert (mixed[0, :, 0] == mixed[0, :, 1]).all()


@pytest.mark.parametrize("mix", [Mix(0.8), Mix(0.0, 1.0), Mix(0.8, 1.0)])
def test_mixing_does_not_depend_on_how_the_batch_is_split(mix: Mix) -> None:
    clips, targets = torch.rand(8, 3, 2, 8, 8), torch.eye(8)
    whole, _ = mix_clips(clips, targets, mix, np.random.default_rng(5))
    parts = [
        mix_clips(clips[i : i + 2], targets[i : i + 2], mix, np.random.default_rng(5))[0]
        for i in range(0, 8, 2)
    ]
    assert torch.equal(whole, torch.cat(parts))


def test_both_mixes_occur_and_prob_leaves_batches_alone() -> None:
    clips, targets = make_batch(2)
    kinds = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        mixed, _ = mix_clips(clips, targets, Mix(0.8, 1.0, prob=0.7), rng)
        blended = bool(((mixed > 0) & (mixed < 1)).any())
        kinds.add("mixup" if blended else "none" if torch.equal(mixed, clips) else "cutmix")
    assert kinds == {"mixup", "cutmix", "none"}


def test_mix_refuses_values_out_of_range() -> None:
    with pytest.raises(UsageError, match="neither"):
        Mix()
    with pytest.raises(UsageError, match=r"mix.mixup_alpha=-1"):
        Mix(mixup_alpha=-1)
    with pytest.raises(UsageError, match=r"mix.prob=1.5 must lie in \[0, 1\]"):
        Mix(mixup_alpha=1, prob=1.5)


def test_label_smoothing_and_loss() -> None:
    targets = classification.soft_targets(torch.tensor([1]), 4, 0.1)
    assert torch.allclose(targets, torch.tensor([[0.025, 0.925, 0.025, 0.025]]))
    logits = torch.tensor([[1.0, 2.0, 0.5, -1.0]])
    value = classification.loss(nn.Identity(), logits, targets)
    reference = nn.functional.cross_entropy(logits, torch.tensor([1]), label_smoothing=0.1)
    assert value.item() == pytest.approx(reference.item(), rel=1e-6)


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


def test_average_follows_the_weights() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = average_of(model, 0.99)
    nn.init.ones_(model.weight)
    for step in range(100_000, 100_010):  # warmed up: the full decay
        average.update(model, step=step)
    assert average.module.weight.item() == pytest.approx(1 - 0.99**10, rel=1e-5)
    average.update(model, step=1)  # early: the average moves faster
    assert 1 - average.module.weight.item() < 0.9 * 0.99**10


def test_figures_by_hand() -> None:
    def score(name: str, label: int, *views: list[float]) -> Scores:
        return Scores(name, label, np.array(views, dtype=np.float32))

    scores = [
        score("a", 0, [3.0, 0, 0], [3.0, 0, 0]),
        score("b", 0, [0.0, 5, 0], [0.0, 0, 4.9]),  # two views disagree: 1 is a little surer
        score("c", 2, [0.0, 0, 1]),
        score("d", 2, [1.0, 1, 0]),  # a tie goes to the lower class
    ]
    found = figures(scores, ("x", "y", "z"))
    assert found["confusion"] == [[1, 1, 0], [0, 0, 0], [1, 0, 1]]
    assert (found["top1"], found["correct"], found["num_views"]) == (0.5, 2, 6)
    assert found["top5"] is None
    assert found["per_class"]["y"] == {"accuracy": None, "videos": 0}
    assert found["mean_class_accuracy"] == pytest.approx(0.5)
    assert scores[0].probabilities[0] == pytest.approx(math.exp(3) / (math.exp(3) + 2))


def test_top5_counts_the_five_best_of_many() -> None:
    names = tuple("abcdefgh")
    rising = np.arange(8, dtype=np.float32)[None]
    found = figures([Scores("v", label, rising) for label in range(8)], names)
    assert found["top5"] == 5 / 8 and found["top1"] == 1 / 8


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
