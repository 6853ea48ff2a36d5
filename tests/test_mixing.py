"""Mixup and cutmix: by hand, and against timm and torchvision on the same draw."""

from typing import Literal

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup
from torchvision.transforms import v2
from torchvision.tv_tensors import Video

from vidtrain.errors import UsageError
from vidtrain.targets import component
from vidtrain.training.mixing import Drawn, Mix, draw, mix_clips

Mode = Literal["batch", "sample"]
SEEDS = torch.arange(100, 108)


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


@pytest.mark.parametrize("mode", ["batch", "sample"])
def test_cutmix_share_is_the_area_left(mode: Mode) -> None:
    clips, targets = make_batch()
    for seed in range(20):
        rng, draws = np.random.default_rng(seed), torch.arange(4) + 10 * seed
        mixed, soft = mix_clips(clips, targets, Mix(cutmix_alpha=1.0, mode=mode), rng, draws)
        kept = (mixed == clips).float().mean((1, 2, 3, 4))
        assert torch.allclose(soft.diagonal(), kept)
        assert torch.allclose(soft.sum(dim=1), torch.ones(4))
        assert (mixed[:, :, 0] == mixed[:, :, 1]).all()


@pytest.mark.parametrize("mode", ["batch", "sample"])
@pytest.mark.parametrize("mix", [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_mixing_does_not_depend_on_how_the_batch_is_split(
    mix: tuple[float, float], mode: Mode
) -> None:
    clips, targets = torch.rand(8, 3, 2, 8, 8), torch.eye(8)
    how = Mix(*mix, mode=mode)
    whole, soft = mix_clips(clips, targets, how, np.random.default_rng(5), SEEDS)
    for size in (2, 4):
        parts = [
            mix_clips(
                clips[i : i + size], targets[i : i + size], how, np.random.default_rng(5),
                SEEDS[i : i + size],
            )
            for i in range(0, 8, size)
        ]  # fmt: skip
        assert torch.equal(whole, torch.cat([part[0] for part in parts]))
        assert torch.equal(soft, torch.cat([part[1] for part in parts]))


def test_sample_mode_goes_by_the_clips_own_seed_alone() -> None:
    clips, targets = torch.rand(4, 3, 2, 8, 8), torch.eye(4)
    mix = Mix(0.8, 1.0, mode="sample")
    first, soft = mix_clips(clips, targets, mix, np.random.default_rng(1), torch.arange(4))
    again, _ = mix_clips(clips, targets, mix, np.random.default_rng(2), torch.arange(4))
    assert torch.equal(first, again)
    other, _ = mix_clips(clips, targets, mix, np.random.default_rng(1), torch.tensor([0, 9, 2, 3]))
    assert [torch.equal(*pair) for pair in zip(first, other, strict=True)] == [
        True, False, True, True,
    ]  # fmt: skip
    assert len({round(share, 6) for share in soft.diagonal().tolist()}) == 4


@pytest.mark.parametrize("mode", ["batch", "sample"])
def test_both_mixes_occur_and_prob_leaves_batches_alone(mode: Mode) -> None:
    clips, targets = make_batch(2)
    kinds = set()
    for seed in range(40):
        rng, draws = np.random.default_rng(seed), [2 * seed, 2 * seed + 1]
        mixed, _ = mix_clips(clips, targets, Mix(0.8, 1.0, prob=0.7, mode=mode), rng, draws)
        blended = bool(((mixed[0] > 0) & (mixed[0] < 1)).any())
        alone = torch.equal(mixed[0], clips[0])
        kinds.add("mixup" if blended else "none" if alone else "cutmix")
    assert kinds == {"mixup", "cutmix", "none"}


def test_draws_are_as_often_as_asked_for() -> None:
    rng = np.random.default_rng(0)
    mix = Mix(0.8, 1.0, switch_prob=0.25, prob=0.5)
    drawn = [draw(mix, 32, 32, rng) for _ in range(4000)]
    there = [one for one in drawn if one is not None]
    assert len(there) / len(drawn) == pytest.approx(0.5, abs=0.03)
    assert sum(one.box is not None for one in there) / len(there) == pytest.approx(0.25, abs=0.03)


def same_draw(mix: Mix, seed: int) -> Drawn:
    """What `mix_clips` draws for 16 x 16 pixels in mode batch."""
    drawn = draw(mix, 16, 16, np.random.default_rng(seed))
    assert drawn is not None
    return drawn


class FixedMixup(Mixup):
    """timm's, with a given share in place of a drawn one."""

    def __init__(self, keep: float) -> None:
        super().__init__(mixup_alpha=0.8, label_smoothing=0.0, num_classes=2)
        self.keep = keep

    def _params_per_batch(self) -> tuple[float, bool]:
        return self.keep, False


@pytest.mark.parametrize("seed", range(4))
def test_mixup_is_timms_and_torchvisions(seed: int) -> None:
    """Both pair a batch of two as we do: with the other one."""
    clips, targets = torch.rand(2, 3, 2, 16, 16), torch.eye(2)
    mix = Mix(mixup_alpha=0.8)
    mixed, soft = mix_clips(clips, targets, mix, np.random.default_rng(seed))
    keep = same_draw(mix, seed).keep
    params = {"lam": keep, "labels": targets, "batch_size": 2}
    assert torch.allclose(mixed, v2.MixUp().transform(Video(clips), params), atol=1e-6)
    assert torch.allclose(soft, v2.MixUp().transform(targets, params), atol=1e-6)
    frames, soft_timm = FixedMixup(keep)(clips[:, :, 0].clone(), torch.tensor([0, 1]))
    assert torch.allclose(mixed[:, :, 0], frames, atol=1e-6)
    assert torch.allclose(soft, soft_timm, atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_cutmix_is_torchvisions_on_the_same_box(seed: int) -> None:
    clips, targets = torch.rand(2, 3, 2, 16, 16), torch.eye(2)
    mix = Mix(cutmix_alpha=1.0)
    mixed, soft = mix_clips(clips, targets, mix, np.random.default_rng(seed))
    drawn = same_draw(mix, seed)
    assert drawn.box is not None
    top, bottom, left, right = drawn.box
    share = 1.0 - (bottom - top) * (right - left) / 256
    params = {"box": (left, top, right, bottom), "lam_adjusted": share, "labels": targets,
              "batch_size": 2}  # fmt: skip
    assert torch.equal(mixed, v2.CutMix().transform(Video(clips), params))
    assert torch.allclose(soft, v2.CutMix().transform(targets, params), atol=1e-6)


def test_cutmix_boxes_have_timms_size_but_for_rounding() -> None:
    for seed in range(50):
        rng = np.random.default_rng(seed)
        rng.random()
        keep = float(rng.beta(1.0, 1.0))
        drawn = draw(Mix(cutmix_alpha=1.0), 64, 48, np.random.default_rng(seed))
        assert drawn is not None and drawn.box is not None
        top, bottom, left, right = drawn.box
        for size, low, high in ((64, top, bottom), (48, left, right)):
            cut = int(size * np.sqrt(1 - keep))  # as rand_bbox of timm.data.mixup
            assert high - low <= cut + 2
            if low > 0 and high < size:
                assert abs(high - low - cut) <= 1


def test_several_classes_are_mixed_as_well() -> None:
    clips, _ = make_batch(2)
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    _, soft = mix_clips(clips, targets, Mix(mixup_alpha=0.8), np.random.default_rng(3))
    keep = same_draw(Mix(mixup_alpha=0.8), 3).keep
    assert torch.allclose(soft[0], torch.tensor([keep, 1.0, 0.0]))


def test_mix_refuses_values_out_of_range() -> None:
    with pytest.raises(UsageError, match="neither"):
        Mix()
    with pytest.raises(UsageError, match=r"mix.mixup_alpha=-1"):
        Mix(mixup_alpha=-1)
    with pytest.raises(UsageError, match=r"mix.prob=1.5 must lie in \[0, 1\]"):
        Mix(mixup_alpha=1, prob=1.5)
    node = {"_target_": "vidtrain.training.mixing.Mix", "mixup_alpha": 1.0, "mode": "pair"}
    with pytest.raises(UsageError, match=r"mix.mode='pair' must be one of batch, sample"):
        component(node, "mix")
