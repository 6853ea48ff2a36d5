"""Where crops lie, by hand; that a cut takes its box and nothing else."""

import numpy as np
import pytest

from vidtrain.data import views
from vidtrain.data.video import Box


def test_eval_crops_by_hand() -> None:
    # 100x200 scaled to a short side of 50 is 50x100; a crop of 40 there is one of 80 here.
    settings = {"short_side": 50, "crop_size": 40}
    one = views.eval_geometry(100, 200, num_crops=1, **settings)
    assert one.box == Box(10, 60, 80, 80) and (one.height, one.width) == (40, 40)
    assert one.corners.tolist() == [[0, 0]]
    across = views.eval_geometry(100, 200, num_crops=3, **settings)
    assert across.box == Box(10, 0, 80, 200) and (across.height, across.width) == (40, 100)
    assert across.corners.tolist() == [[0, 0], [0, 30], [0, 60]]
    down = views.eval_geometry(200, 100, num_crops=3, **settings)
    assert down.box == Box(0, 10, 200, 80) and (down.height, down.width) == (100, 40)
    assert down.corners.tolist() == [[0, 0], [30, 0], [60, 0]]
    # Smaller than the crop: the short side is the crop, scaled up.
    small = views.eval_geometry(20, 30, num_crops=1, short_side=40, crop_size=40)
    assert small.box == Box(0, 4, 20, 20) and small.height == 40


@pytest.mark.parametrize(("height", "width"), [(101, 75), (1, 1), (3, 200), (240, 241)])
def test_odd_and_tiny_frames_have_crops_inside(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    boxes = [views.eval_geometry(height, width, short_side=64, crop_size=56, num_crops=n).box
             for n in (1, 3)]  # fmt: skip
    for _ in range(50):
        boxes.append(views.random_crop_box(height, width, crop_size=56, short_side=(64, 80),
                                           rng=rng))  # fmt: skip
        boxes.append(views.random_resized_crop_box(height, width, area=(0.1, 1.0),
                                                   aspect=(0.75, 1.33), rng=rng))  # fmt: skip
    for box in boxes:
        assert box.height >= 1 and box.width >= 1 and box.top >= 0 and box.left >= 0
        assert box.top + box.height <= height and box.left + box.width <= width
        assert box.top % 2 == box.left % 2 == 0


def test_random_boxes_have_the_drawn_scale_and_reach_every_corner() -> None:
    rng = np.random.default_rng(0)
    boxes = [
        views.random_crop_box(60, 80, crop_size=56, short_side=(64, 80), rng=rng)
        for _ in range(2000)
    ]
    expected = {2 * round(56 * 60 / side / 2) for side in range(64, 81)}
    assert {box.height for box in boxes} == expected
    assert all(box.height == box.width for box in boxes)
    smallest = [box for box in boxes if box.height == 42]
    assert {box.top for box in smallest} == set(range(0, 19, 2))
    assert {box.left for box in smallest} == set(range(0, 39, 2))


def test_random_resized_crops_keep_to_area_and_aspect() -> None:
    rng = np.random.default_rng(0)
    boxes = [
        views.random_resized_crop_box(240, 320, area=(0.1, 0.8), aspect=(0.75, 1.3333), rng=rng)
        for _ in range(2000)
    ]
    areas = np.array([box.height * box.width / (240 * 320) for box in boxes])
    ratios = np.array([box.width / box.height for box in boxes])
    assert areas.min() < 0.12 and areas.max() > 0.6 and areas.max() < 0.82
    assert 0.72 < ratios.min() < 0.8 and 1.25 < ratios.max() < 1.4
    assert abs(np.log(ratios).mean()) < 0.05


def cut(frames: np.ndarray, box: Box, size: int) -> np.ndarray:
    out = np.empty((len(frames), size, size, 3), np.uint8)
    views.cut_frames(frames, box, out)
    return out


def test_cut_takes_the_box_and_nothing_else() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (3, 20, 30, 3), dtype=np.uint8)
    same = cut(frames, Box(4, 7, 12, 12), 12)
    np.testing.assert_array_equal(same, frames[:, 4:16, 7:19])
    frames[:, 4:16, 7:19] = 77  # what lies outside must not bleed in
    for size in (3, 6, 12, 30):
        assert (cut(frames, Box(4, 7, 12, 12), size) == 77).all()


@pytest.mark.parametrize("size", [2, 4, 8])
def test_scaling_down_passes_over_no_pixel(size: int) -> None:
    stripes = np.zeros((1, 16, 16, 3), np.uint8)
    stripes[:, :, ::2] = 200
    assert np.abs(cut(stripes, Box(0, 0, 16, 16), size).astype(int) - 100).max() <= 1


def test_scaling_does_not_shift() -> None:
    ramp = np.tile(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 1, 3))[None]
    for size in (16, 24, 48, 100):
        expected = (np.arange(size) + 0.5) * 64 / size * 4 - 2
        found = cut(ramp, Box(0, 0, 64, 64), size)[0, 0, :, 0]
        inner = slice(2, -2)
        assert np.abs(found[inner] - expected[inner]).max() < 1.5
