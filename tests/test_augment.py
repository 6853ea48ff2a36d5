"""Augmentation: alike in all frames of a clip, a function of the clip's key alone, as published."""

import hashlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import REPO
from PIL import Image
from timm.data.auto_augment import AugmentOp
from torchvision.transforms.v2 import functional as F

from vidtrain.data import policies
from vidtrain.data.augment import Augment, to_input, to_pixels
from vidtrain.errors import UsageError
from vidtrain.targets import component

FILES = sorted(p for p in (REPO / "conf" / "augment").glob("*.yaml") if p.stem != "none")
MEAN, STD = [0.45, 0.4, 0.5], [0.225, 0.2, 0.25]
LEVEL = 1 / 255 / min(STD)  # one step of a pixel, once normalised


def augment_of(path: Path) -> Augment:
    return component(yaml.safe_load(path.read_text()), "augment")


@pytest.fixture(params=FILES, ids=lambda p: p.stem)
def augment(request: pytest.FixtureRequest) -> Augment:
    return augment_of(request.param)


def clips(count: int, frames: int = 4, height: int = 32, width: int = 40) -> torch.Tensor:
    """Soft pictures that move and brighten from frame to frame, (B, T, H, W, 3) uint8."""
    b, t, y, x, c = np.meshgrid(
        *(np.arange(n) for n in (count, frames, height, width, 3)), indexing="ij"
    )
    waves = np.sin(x / 7 + t + b) + np.cos(y / 5 - t / 2 + c) + t / 3
    return torch.from_numpy(np.clip(100 + 45 * waves, 0, 255).astype(np.uint8))


def changed(video: torch.Tensor, draws: list[int], augment: Augment | None, **kw: Any) -> Any:
    return to_input(video, mean=MEAN, std=STD, augment=augment, draws=torch.tensor(draws), **kw)


def test_without_augment_only_flips_and_normalises() -> None:
    video, flips = clips(3), torch.tensor([True, False, True])
    mean, std = (torch.tensor(v).view(1, 3, 1, 1, 1) for v in (MEAN, STD))
    planes = video.permute(0, 4, 1, 2, 3).float()
    planes[flips] = planes[flips].flip(-1)
    out = to_input(video, mean=MEAN, std=STD, flips=flips)
    assert torch.equal(out, (planes - mean * 255.0) / (std * 255.0))
    assert out.is_contiguous() and out.dtype == torch.float32


def test_a_static_clip_stays_static_and_pixels_change(augment: Augment) -> None:
    draws = list(range(64))
    still = clips(1)[:, :1].expand(len(draws), 4, -1, -1, -1)
    out = changed(still, draws, augment)
    assert out.shape == (64, 3, 4, 32, 40) and out.dtype == torch.float32 and out.is_contiguous()
    assert torch.equal(out, out[:, :, :1].expand_as(out))
    plain = changed(still, draws, None)
    touched = sum(not torch.equal(a, b) for a, b in zip(out, plain, strict=True))
    assert touched > (38 if augment.policy or augment.contrast else 8)
    # Some operations have no strength, so two clips may look the same.
    assert len({a.numpy().tobytes() for a in out}) > 0.7 * touched


def test_frames_in_another_order_are_changed_alike(augment: Augment) -> None:
    video, order, draws = clips(1).expand(40, -1, -1, -1, -1), [2, 0, 3, 1], list(range(40))
    ahead = changed(video, draws, augment)[:, :, order]
    moved = changed(video[:, order], draws, augment)
    # Means are sums of floats, and their order may round a pixel to its neighbour's value.
    assert (ahead - moved).abs().max() <= 1.01 * LEVEL


TONES = ("saturation", "contrast", "brightness", "autocontrast", "equalize", "posterize",
         "solarize", "solarize_add", "invert")  # fmt: skip


@pytest.mark.parametrize("name", TONES)
def test_tones_are_one_curve_for_all_frames(name: str) -> None:
    grey = clips(1)[0, ..., :1].expand(-1, -1, -1, 3).permute(3, 0, 1, 2).contiguous()
    amount = {"posterize": 2.0, "solarize": 90.0, "solarize_add": 60.0}.get(name, 0.5)
    out = policies._operate(grey, policies._Operation(name, amount), torch.zeros(3, 1, 1, 1))
    curve: dict[int, set[int]] = {}
    for before, after in zip(grey[0].flatten().tolist(), out[0].flatten().tolist(), strict=True):
        curve.setdefault(before, set()).add(after)
    assert len(curve) > 50 and all(len(values) == 1 for values in curve.values())


def test_a_clip_depends_on_its_key_only(augment: Augment) -> None:
    video, draws = clips(8), [5, 2**62 + 1, 0, 77, 78, 5, 79, 80]
    flips = torch.tensor([True, False] * 4)
    together = changed(video, draws, augment, flips=flips)
    for index in (6, 1, 0, 3, 7, 2, 5, 4):
        one = slice(index, index + 1)
        alone = changed(video[one], draws[one], augment, flips=flips[one])
        assert torch.equal(alone[0], together[index])
    back = changed(video.flip(0), draws[::-1], augment, flips=flips.flip(0))
    assert torch.equal(back.flip(0), together)


def test_global_generators_are_neither_read_nor_moved(augment: Augment) -> None:
    video, draws = clips(6), list(range(6))
    results = []
    for seed in (1, 2):
        torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()  # type: ignore[index,union-attr]
        results.append(changed(video, draws, augment))
        after = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()  # type: ignore[index,union-attr]
        assert torch.equal(before[0], after[0]) and before[1:] == after[1:]
    assert torch.equal(*results)


def test_the_batch_itself_is_not_written_to(augment: Augment) -> None:
    video = clips(6)
    copy = video.clone()
    changed(video, list(range(6)), augment)
    assert torch.equal(video, copy)


def test_mirrored_before_anything_else(augment: Augment) -> None:
    video, draws = clips(6), list(range(6))
    flipped = changed(video, draws, augment, flips=torch.ones(6, dtype=torch.bool))
    assert torch.equal(flipped, changed(video.flip(3), draws, augment))


def test_keys_are_needed() -> None:
    with pytest.raises(ValueError, match="one key per clip"):
        to_input(clips(1), mean=MEAN, std=STD, augment=Augment(policy="augmix"))


def test_erased_share_shape_and_probability() -> None:
    white = torch.full((300, 2, 48, 36, 3), 255, dtype=torch.uint8)
    augment = Augment(erase_prob=0.4, erase_scale=(0.1, 0.3), erase_mode="const")
    holes = changed(white, list(range(300)), augment)[:, 0] == 0
    erased = holes.flatten(1).any(1)
    assert 0.3 < erased.float().mean() < 0.5
    shares = []
    for hole in holes[erased]:
        assert torch.equal(hole[0], hole[1])
        rows, columns = hole[0].any(1).sum().item(), hole[0].any(0).sum().item()
        assert hole[0].sum() == rows * columns
        assert 0.27 < rows / columns < 3.7
        shares.append(rows * columns / (48 * 36))
    assert 0.09 < min(shares) < 0.13 and 0.27 < max(shares) < 0.315


@pytest.mark.parametrize(("height", "width"), [(8, 120), (120, 8)])
def test_boxes_fit_into_narrow_frames(height: int, width: int) -> None:
    white = torch.full((50, 1, height, width, 3), 255, dtype=torch.uint8)
    augment = Augment(erase_prob=1, erase_scale=(0.5, 1.0), erase_mode="const")
    shares = (changed(white, list(range(50)), augment)[:, 0] == 0).float().mean((1, 2, 3))
    assert shares.min() > 0.45 and shares.max() <= 1


def test_noise_of_a_box_is_normal_and_the_rest_untouched() -> None:
    white = torch.full((1, 3, 64, 64, 3), 255, dtype=torch.uint8)
    out = changed(white, [3], Augment(erase_prob=1, erase_scale=(0.5, 0.5)))[0]
    plain = changed(white, [3], None)[0]
    box = out != plain
    assert 0.45 < box.float().mean() < 0.55 and torch.equal(box[0], box[2])
    assert abs(out[box].mean()) < 0.1 and abs(out[box].std() - 1) < 0.1


@pytest.mark.parametrize(
    ("name", "theirs"),
    {"shear_x": "ShearX", "shear_y": "ShearY", "shift_x": "TranslateXRel",
     "shift_y": "TranslateYRel", "turn": "Rotate", "saturation": "ColorIncreasing",
     "contrast": "ContrastIncreasing", "brightness": "BrightnessIncreasing",
     "sharpness": "SharpnessIncreasing", "autocontrast": "AutoContrast", "equalize": "Equalize",
     "posterize": "PosterizeIncreasing", "solarize": "SolarizeIncreasing",
     "invert": "Invert", "solarize_add": "SolarizeAdd"}.items(),
)  # fmt: skip
def test_operations_are_those_of_timm(name: str, theirs: str) -> None:
    picture, fill = clips(1, frames=1, height=64, width=96)[0, 0], torch.tensor([10.0, 20.0, 30.0])
    space = policies._RANDAUGMENT._replace(names=(name,))
    assert name in policies._RANDAUGMENT.names and len(policies._RANDAUGMENT.names) == 15
    both = {policies._draw(space, 0.7, np.random.default_rng(seed)) for seed in range(9)}
    ours = [
        policies._operate(picture.permute(2, 0, 1)[:, None], operation, fill.view(3, 1, 1, 1))
        for operation in both
    ]
    image = Image.fromarray(picture.numpy())
    options = {"img_mean": (10, 20, 30), "interpolation": Image.Resampling.BILINEAR,
               "translate_pct": 0.45}  # fmt: skip
    operation = AugmentOp(theirs, prob=1, magnitude=7, hparams=options)
    for seed in range(9):  # both directions
        random.seed(seed)
        wanted = torch.from_numpy(np.array(operation(image))).permute(2, 0, 1).float()
        gaps = [(our[:, 0].float() - wanted).abs() for our in ours]
        # Sheared and turned pictures differ along the slanted border.
        assert min(gap.mean() for gap in gaps) < (2.5 if name in policies._GEOMETRY else 1)


def test_sharpness_is_that_of_torchvision() -> None:
    video = clips(1)[0].permute(3, 0, 1, 2).contiguous()
    for factor in (0.1, 0.7, 1.9):
        expected = F.adjust_sharpness(video.transpose(0, 1), factor).transpose(0, 1)
        assert torch.equal(policies._sharpen(video, factor), expected)


def test_no_line_where_the_picture_ends() -> None:
    flat = torch.full((3, 2, 40, 40), 115, dtype=torch.uint8)
    for name, amount in (("turn", 20.0), ("shear_x", 9.0), ("shift_y", 0.4)):
        operation = policies._Operation(name, amount)
        out = policies._operate(flat, operation, torch.full((3, 1, 1, 1), 114.75))
        assert torch.equal(out, flat)


def test_no_operation_without_probability_and_grayscale_is_grey() -> None:
    video, draws = clips(8), list(range(8))
    never = changed(video, draws, Augment(policy="randaugment", op_prob=0))
    assert torch.equal(never, changed(video, draws, None))
    grey = to_pixels(changed(video, draws, Augment(grayscale_prob=1)), mean=MEAN, std=STD)
    assert torch.equal(grey[..., :1].expand_as(grey), grey)


def test_jitter_keeps_to_its_range() -> None:
    video = torch.full((200, 1, 4, 4, 3), 100, dtype=torch.uint8)
    out = changed(video, list(range(200)), Augment(brightness=0.3))
    found = to_pixels(out, mean=MEAN, std=STD).float()
    assert 69 <= found.min() < 75 and 125 < found.max() <= 130


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "randaugmnt"}, "augment.policy='randaugmnt' is not there; did you mean randau"),
        ({"policy": "augmix", "severity": 11}, "augment.severity=11"),
        ({"policy": "randaugment", "magnitude": -1}, "augment.magnitude=-1"),
        ({"policy": "randaugment", "num_ops": 0}, "augment.num_ops=0"),
        ({"policy": "randaugment", "op_prob": float("nan")}, "augment.op_prob=nan"),
        ({"hue": 0.6}, "augment.hue=0.6"),
        ({"brightness": 1.5}, "augment.brightness=1.5"),
        ({"erase_prob": 2}, "augment.erase_prob=2"),
        ({"erase_prob": 1, "erase_scale": [0.3, 0.1]}, r"augment.erase_scale=\[0.3, 0.1\]"),
        ({"erase_prob": 1, "erase_scale": [0.1, 1.5]}, r"augment.erase_scale=\[0.1, 1.5\]"),
        ({"erase_prob": 1, "erase_aspect": [0, 2]}, "augment.erase_aspect"),
        ({"erase_prob": 1, "erase_mode": "noise"}, "augment.erase_mode='noise'"),
        ({}, "use augment=none"),
        ({"severityy": 1}, "did you mean severity"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        component({"_target_": "vidtrain.data.augment.Augment", **settings}, "augment")


PROGRAM = """
import torch, test_augment
torch.set_num_threads(1)
torch.rand(7)
print(test_augment.fingerprint())
"""


def fingerprint() -> str:
    results = [changed(clips(6), list(range(6)), augment_of(path)) for path in FILES]
    return hashlib.sha256(b"".join(r.numpy().tobytes() for r in results)).hexdigest()


@pytest.mark.slow
def test_two_processes_agree() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        here = fingerprint()
    finally:
        torch.set_num_threads(threads)
    there = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert there.stdout.split() == [here]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_makes_no_difference(augment: Augment) -> None:
    video, draws = clips(24), list(range(24))
    state = torch.cuda.get_rng_state()
    there = changed(video.cuda(), draws, augment)
    assert there.is_cuda and torch.equal(state, torch.cuda.get_rng_state())
    gaps = (there.cpu() - changed(video, draws, augment)).abs()
    assert gaps.mean() < 0.01 * LEVEL
    assert (gaps > 1.01 * LEVEL).float().mean() < 0.002
