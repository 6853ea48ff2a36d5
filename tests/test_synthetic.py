"""The embedded data set: deterministic real files, written once, classes in the motion alone."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from vidtrain.data.sources.motion_clips import CLASS_NAMES, draw_clip
from vidtrain.data.sources.synthetic import synthetic
from vidtrain.data.video import Video
from vidtrain.errors import InputError, UsageError

SIZE: dict[str, Any] = {"train_videos": 12, "val_videos": 7}
CALL = "from vidtrain.data.sources.synthetic import synthetic\n"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set, written once."""
    root = tmp_path_factory.mktemp("synthetic")
    synthetic(str(root), split="train", **SIZE)
    return root


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.mp4"))}


def both_splits(root: Path) -> list[Video]:
    return [
        v for split in ("train", "val") for v in synthetic(str(root), split=split, **SIZE).videos
    ]


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CALL + code],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_generations_give_the_same_bytes_and_another_seed_others(
    cache: Path, tmp_path: Path
) -> None:
    synthetic(str(tmp_path / "again"), split="val", **SIZE)
    assert len(contents(cache)) == 19
    assert contents(tmp_path / "again") == contents(cache)
    synthetic(str(tmp_path / "other"), split="train", train_videos=6, val_videos=6, seed=1)
    assert not set(contents(tmp_path / "other").values()) & set(contents(cache).values())


def test_clips_are_h264_with_b_frames_of_many_sizes_rates_and_lengths(cache: Path) -> None:
    sizes, rates, lengths, kinds = set(), set(), set(), set()
    for video in both_splits(cache):
        with av.open(video.path) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert stream.codec_context.pix_fmt == "yuv420p"
            assert stream.average_rate is not None
            frames = list(container.decode(stream))
        assert all(96 <= side <= 160 for side in (frames[0].width, frames[0].height))
        assert 15 <= stream.average_rate <= 30
        assert 0.9 <= len(frames) / stream.average_rate <= 2.6
        sizes.add((frames[0].width, frames[0].height))
        rates.add(Fraction(stream.average_rate))
        lengths.add(len(frames))
        kinds |= {PictureType(frame.pict_type).name for frame in frames}
    assert min(len(sizes), len(rates), len(lengths)) >= 3
    assert kinds == {"I", "P", "B"}


def test_the_splits_are_fixed_balanced_and_disjoint(cache: Path) -> None:
    train, val = (synthetic(str(cache), split=split, **SIZE) for split in ("train", "val"))
    assert train.class_names == val.class_names == CLASS_NAMES
    assert np.bincount([v.label for v in train.videos]).tolist() == [2] * 6
    assert sorted(np.bincount([v.label for v in val.videos]).tolist()) == [1, 1, 1, 1, 1, 2]
    assert all(CLASS_NAMES[v.label] == Path(v.path).parent.name for v in both_splits(cache))
    assert synthetic(str(cache), split="train", **SIZE) == train
    bytes_of = [{Path(v.path).read_bytes() for v in split.videos} for split in (train, val)]
    assert [len(b) for b in bytes_of] == [12, 7] and not bytes_of[0] & bytes_of[1]


def test_given_class_names_decide_the_labels(cache: Path) -> None:
    names = CLASS_NAMES[::-1]
    listed = synthetic(str(cache), split="train", class_names=names, **SIZE)
    assert listed.class_names == names
    assert all(names[v.label] == Path(v.path).parent.name for v in listed.videos)
    with pytest.raises(InputError, match=r"circle_clockwise.*not one of the 2 known"):
        synthetic(str(cache), split="train", class_names=CLASS_NAMES[:2], **SIZE)


def test_processes_that_start_at_once_share_one_cache(cache: Path, tmp_path: Path) -> None:
    code = f"print(len(synthetic({str(tmp_path)!r}, split='train', **{SIZE}).videos))"
    ends = [(p, *p.communicate(timeout=60)) for p in [start(code) for _ in range(3)]]
    assert [(p.returncode, out) for p, out, _ in ends] == [(0, "12\n")] * 3, ends
    assert sum(err.count("writing 19 synthetic clips") for _, _, err in ends) == 1
    assert contents(tmp_path) == contents(cache)
    assert len([p for p in tmp_path.iterdir() if p.is_dir()]) == 1


def test_the_half_written_folder_of_a_killed_process_is_not_used(
    cache: Path, tmp_path: Path
) -> None:
    name = next(p for p in cache.iterdir() if p.is_dir()).name
    half = tmp_path / f".{name}.killed" / "train" / CLASS_NAMES[0]
    half.mkdir(parents=True)
    (half / "0000.mp4").write_bytes(b"half")
    synthetic(str(tmp_path), split="train", **SIZE)
    assert contents(tmp_path / name) == contents(cache / name)


def test_a_missing_clip_is_said(tmp_path: Path) -> None:
    small: dict[str, Any] = {"train_videos": 12, "val_videos": 6}
    Path(synthetic(str(tmp_path), split="train", **small).videos[0].path).unlink()
    with pytest.raises(InputError, match="holds 11 clips instead of 12; delete"):
        synthetic(str(tmp_path), split="train", **small)


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        InputError, match=r"cannot write the synthetic clips to .*file.*data\.root="
    ):
        synthetic(str(tmp_path / "file"), split="train", **SIZE)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    # A limit on file size fails a write as a full disk does.
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        f"synthetic({str(tmp_path)!r}, split='train', **{SIZE})"
    )
    process = start(code)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "InputError: cannot write the synthetic clips" in error
    assert "File too large" in error
    assert not [p for p in tmp_path.iterdir() if p.is_dir()]


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'test'"):
        synthetic(str(tmp_path), split="test")
    with pytest.raises(UsageError, match="val_videos=5"):
        synthetic(str(tmp_path), split="train", val_videos=5)
    assert os.listdir(tmp_path) == []


def thumbnail(frame: np.ndarray) -> np.ndarray:
    """Grey, 12 x 12, float."""
    grey = frame.mean(axis=2)
    rows, columns = (np.linspace(0, side, 13).astype(int)[:-1] for side in grey.shape)
    return np.add.reduceat(np.add.reduceat(grey, rows, axis=0), columns, axis=1).ravel()


def motion_energy(frames: np.ndarray) -> np.ndarray:
    """How well each frame matches the next one shifted by (dx, dy): the mean over time."""
    grey = frames.astype(np.float32).mean(axis=3)
    grey -= np.median(grey, axis=0)  # what stands still
    size = grey[0].size
    spectra = np.fft.rfft2(grey)
    match = np.fft.irfft2(spectra[2:] * spectra[:-2].conj(), s=grey.shape[1:]).mean(axis=0) / size
    window = np.roll(match, (12, 12), axis=(0, 1))[:25, :25]
    return window.ravel() / np.abs(window).max()


def nearest_centroid(train: np.ndarray, test: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 of nearest class means on standardised features; `labels` serve both halves."""
    mean, std = train.mean(axis=0), train.std(axis=0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    centres = np.stack([train[labels == c].mean(axis=0) for c in range(len(CLASS_NAMES))])
    nearest = np.argmin(((test[:, None] - centres) ** 2).sum(axis=2), axis=1)
    return float((nearest == labels).mean())


def test_single_frames_do_not_reveal_the_class_and_motion_does() -> None:
    labels = np.arange(72) % len(CLASS_NAMES)
    single, motion = [], []
    for half in range(2):
        for i, label in enumerate(labels):
            # A scene of its own per clip; in the data set six classes share one.
            frames, _ = draw_clip(np.random.default_rng([7, half, i]), CLASS_NAMES[label])
            frames = frames[: len(frames) // 2]
            single.append(thumbnail(frames[-1]))
            motion.append(motion_energy(frames))
    still, moving = (
        nearest_centroid(np.stack(f[:72]), np.stack(f[72:]), labels) for f in (single, motion)
    )
    # Chance is 1/6; of 72 clips, 0.32 is more than three standard deviations above it.
    assert still < 0.32
    assert moving > 0.55


def test_one_scene_starts_alike_in_all_classes() -> None:
    first = [draw_clip(np.random.default_rng(3), name)[0][0] for name in CLASS_NAMES]
    assert all(np.array_equal(first[0], frame) for frame in first[1:])
