import numpy as np
import pytest
from PIL import Image

from vidtrain.report.plots import (
    broken_label,
    cut_middle,
    plot_clip_grid,
    plot_confusion,
    plot_curves,
)


def rows(*, num_steps: int, num_epochs: int, top5: bool = True, scale: float = 1.0) -> list[dict]:
    """Metrics as a training of so many logged steps writes them."""
    found: list[dict] = []
    for step in range(1, num_steps + 1):
        done = step / num_steps
        values = {"step": step, "epoch": num_epochs * done}
        loss = scale * float(np.exp(-2 * done))
        found.append({"kind": "train", **values, "loss": loss, "lr": 0.1 * (1 - done)})
        if step % max(1, num_steps // num_epochs) == 0:
            shares = {"top1": 0.8 * done, "top5": 0.9 * done if top5 else None}
            found.append({"kind": "val", **values, **shares, "loss": loss})
    return found


def confusion(num_classes: int, *, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 4, (num_classes, num_classes)) + 20 * np.eye(
        num_classes, dtype=int
    )


def pixels(path) -> np.ndarray:
    """The picture, after checking that it is a whole PNG of a size that fits a screen or page."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        array = np.asarray(image.convert("RGB"))
    height, width = array.shape[:2]
    assert 200 <= height <= 2500
    assert 300 <= width <= 2500
    assert len(np.unique(array)) > 10  # not blank
    return array


@pytest.mark.parametrize(
    ("metrics", "other"),
    [
        (rows(num_steps=600, num_epochs=30), rows(num_steps=600, num_epochs=30, scale=2)),
        (rows(num_steps=1, num_epochs=1), []),
        (rows(num_steps=3, num_epochs=1), rows(num_steps=3, num_epochs=1, top5=False)),
    ],
    ids=["long", "one row", "without top-5"],
)
def test_curves_show_the_metrics(metrics, other, tmp_path):
    plot_curves(metrics, tmp_path / "a.png")
    plot_curves(other, tmp_path / "b.png")
    plot_curves(metrics, tmp_path / "again.png")
    shown = pixels(tmp_path / "a.png")
    assert not np.array_equal(shown, pixels(tmp_path / "b.png"))
    np.testing.assert_array_equal(shown, pixels(tmp_path / "again.png"))


def columns_of(picture, colour, *, right):
    """Columns of a colour in a half of a picture, as shares of the half's width."""
    half = picture[:, picture.shape[1] // 2 :] if right else picture[:, : picture.shape[1] // 2]
    return np.nonzero((half == colour).all(2))[1] / half.shape[1]


def test_a_single_validation_stands_at_its_epoch_and_not_in_the_middle(tmp_path):
    plot_curves(rows(num_steps=30, num_epochs=1), tmp_path / "a.png")
    green = columns_of(pixels(tmp_path / "a.png"), [0, 158, 115], right=True)  # validation loss
    assert len(green) > 10 and green.min() > 0.85
    late = [row | {"epoch": row["epoch"] * 2} if row["kind"] == "train" else row
            for row in rows(num_steps=30, num_epochs=1)]  # fmt: skip
    plot_curves(late, tmp_path / "b.png")
    green = columns_of(pixels(tmp_path / "b.png"), [0, 158, 115], right=True)
    assert green.min() > 0.4 and green.max() < 0.7


@pytest.mark.parametrize(
    ("label", "lines"),
    [
        ("right", ["right"]),
        ("", []),
        ("ApplyEyeMakeup 0.71 + BasketballDunk 0.29", ["ApplyEyeMakeup 0.71",
                                                       "+ BasketballDunk 0.29"]),
        ("Throwing_something_in_the_air_0.93", ["Throwing_something_in_", "the_air_0.93"]),
        ("a" * 40 + " 0.50", ["a" * 14 + "…" + "a" * 13, "0.50"]),
    ],
)  # fmt: skip
def test_a_label_is_broken_between_classes_and_words(label, lines):
    assert broken_label(label).splitlines() == lines


def test_a_long_label_keeps_both_ends_and_its_share():
    name = "Pretending to put " + "something and " * 20 + "something behind it"
    lines = broken_label(f"{name} 0.70 + up 0.30").splitlines()
    assert lines[0].startswith("Pretending to put") and lines[-2].endswith("it 0.70")
    assert lines[-1] == "+ up 0.30" and sum("…" in line for line in lines) == 1
    assert len(lines) <= 5 and all(len(line) <= 28 for line in lines)
    assert [cut_middle("0123456789", most) for most in (10, 9, 4)] == ["0123456789", "0123…6789",
                                                                      "01…9"]  # fmt: skip


def test_curves_of_several_labels_show_their_own_figure(tmp_path):
    metrics = rows(num_steps=60, num_epochs=3)
    plot_curves(metrics, tmp_path / "top1.png")
    renamed = [{"mAP" if key == "top1" else key: value for key, value in row.items()
                if key != "top5"} for row in metrics]  # fmt: skip
    plot_curves(renamed, tmp_path / "map.png")
    for row in renamed:
        row.pop("mAP", None)
    plot_curves(renamed, tmp_path / "none.png")
    drawn, other, none = (pixels(tmp_path / f"{name}.png") for name in ("top1", "map", "none"))
    assert not np.array_equal(drawn, other)  # another title, and no second curve
    blue = [(picture == [0, 114, 178]).all(2).sum() for picture in (other, none)]
    assert blue[0] > blue[1] + 200


def test_curves_survive_a_loss_that_is_not_finite(tmp_path):
    metrics = rows(num_steps=200, num_epochs=2)
    plot_curves(metrics, tmp_path / "finite.png")
    assert metrics[50]["kind"] == "train"
    metrics[50]["loss"] = float("nan")
    plot_curves(metrics, tmp_path / "broken.png")
    whole, broken = pixels(tmp_path / "finite.png"), pixels(tmp_path / "broken.png")
    assert (whole != broken).any(2).mean() < 0.01  # a gap, nothing more


@pytest.mark.parametrize("num_classes", [2, 6, 40, 400])
def test_confusion_is_drawn_at_any_number_of_classes(num_classes, tmp_path):
    names = [f"a long name of class {index}" for index in range(num_classes)]
    plot_confusion(confusion(num_classes), names, tmp_path / "a.png")
    plot_confusion(confusion(num_classes, seed=1), names, tmp_path / "b.png")
    assert not np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_confusion_colours_are_shares_of_the_true_class(tmp_path):
    plot_confusion(np.array([[5, 5], [0, 40]]), ["a", "b"], tmp_path / "few.png")
    plot_confusion(np.array([[50, 50], [0, 4]]), ["a", "b"], tmp_path / "many.png")
    few, many = pixels(tmp_path / "few.png"), pixels(tmp_path / "many.png")
    assert few.shape == many.shape
    different = (few != many).any(2)
    assert 0 < different.mean() < 0.02  # the numbers and the title only, not the colours


def test_confusion_marks_classes_without_videos(tmp_path):
    grey = [217, 217, 217]
    matrix = confusion(3)
    plot_confusion(matrix, ["a", "b", "c"], tmp_path / "full.png")
    matrix[1] = 0
    plot_confusion(matrix, ["a", "b", "c"], tmp_path / "gap.png")
    assert (pixels(tmp_path / "full.png") == grey).all(2).mean() < 0.005
    assert (pixels(tmp_path / "gap.png") == grey).all(2).mean() > 0.1


def test_names_with_dollars_are_no_formulas(tmp_path):
    plot_confusion(confusion(2), ["costs $5 {", "costs $6 ^"], tmp_path / "a.png")
    clip = np.zeros((1, 2, 8, 8, 3), np.uint8)
    plot_clip_grid(clip, ["$5 ^ and $6 {"], tmp_path / "b.png")
    pixels(tmp_path / "a.png")
    pixels(tmp_path / "b.png")


def test_confusion_refuses_names_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"\(3, 3\) for 2 class names"):
        plot_confusion(confusion(3), ["a", "b"], tmp_path / "a.png")


def test_clip_grid_shows_first_and_last_frame_in_true_colour(tmp_path):
    clips = np.full((2, 20, 24, 32, 3), 255, np.uint8)
    clips[0, 0], clips[1, -1], clips[0, 1] = (255, 0, 0), (0, 0, 255), (0, 255, 0)
    plot_clip_grid(clips, ["run", "a label so long that it has to be broken"], tmp_path / "a.png")
    shown = pixels(tmp_path / "a.png")
    sizes = {}
    for name, colour in (("first", [255, 0, 0]), ("last", [0, 0, 255]), ("second", [0, 255, 0])):
        rows_, columns = np.nonzero((shown == colour).all(2))
        sizes[name] = len(rows_)
        if name != "second":
            assert np.ptp(columns) + 1 == pytest.approx((np.ptp(rows_) + 1) * 32 / 24, abs=3)
    assert sizes["first"] > 5000
    assert sizes["last"] > 5000
    assert sizes["second"] == 0  # 8 of 20 frames: 0, 3, 5 ...


def test_clip_grid_of_one_frame_and_wrong_labels(tmp_path):
    clips = np.random.default_rng(0).integers(0, 255, (1, 1, 16, 16, 3)).astype(np.uint8)
    plot_clip_grid(clips, [""], tmp_path / "a.png")
    pixels(tmp_path / "a.png")
    with pytest.raises(ValueError, match="1 clips but 2 labels"):
        plot_clip_grid(clips, ["a", "b"], tmp_path / "a.png")
