"""Class folders and list files: what they list, and what each mistake is told."""

import os
from pathlib import Path

import numpy as np
import pytest
from conftest import noise, write_video
from PIL import Image

from vidtrain.data.reading import open_video
from vidtrain.data.sources.class_names import read_class_names
from vidtrain.data.sources.folder import folder
from vidtrain.data.sources.list_file import list_file
from vidtrain.data.video import VideoList
from vidtrain.errors import InputError


def frame_folder(path: Path, count: int) -> None:
    path.mkdir(parents=True)
    for index in range(count):
        Image.new("RGB", (8, 8)).save(path / f"img_{index + 1:05d}.jpg")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes: a video with a space in its name and a frame folder; and an upper-case one."""
    root = tmp_path_factory.mktemp("data")
    write_video(root / "train" / "walk" / "my clip.mp4", noise(0, 90, frames=6))
    frame_folder(root / "train" / "walk" / "frames", 4)
    write_video(root / "train" / "run" / "a.MP4", noise(1, 90, frames=5))
    os.rename(root / "train" / "run" / "a.MP4", root / "train" / "run" / "B.MP4")
    return root


def summary(listed: VideoList) -> list[tuple[str, int, int | None]]:
    assert all(os.path.isabs(video.path) and os.path.exists(video.path) for video in listed.videos)
    return [(video.id, video.label, video.num_frames) for video in listed.videos]


def test_folder(root: Path) -> None:
    listed = folder(str(root), split="train")
    assert listed.class_names == ("run", "walk")
    assert summary(listed) == [
        ("run/B.MP4", 0, None), ("walk/frames", 1, None), ("walk/my clip.mp4", 1, None),
    ]  # fmt: skip
    frames = []
    for video in listed.videos:
        with open_video(video) as reader:
            frames.append(reader.num_frames)
    assert frames == [5, 4, 6]


def test_folder_with_given_names(root: Path) -> None:
    listed = folder(str(root), split="train", class_names=["walk", "sit", "run"])
    assert listed.class_names == ("walk", "sit", "run")
    assert summary(listed)[0] == ("run/B.MP4", 2, None)
    with pytest.raises(
        InputError, match=r"train holds the class 'walk', which is not one of .*run"
    ):
        folder(str(root), split="train", class_names=["run"])


def test_folder_mistakes(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder .*/test; .* holds train: set data.train and"):
        folder(str(root), split="test")
    with pytest.raises(InputError, match=r"data.root=.*nowhere is missing or empty"):
        folder(str(tmp_path / "nowhere"), split="train")
    (tmp_path / "train").mkdir()
    with pytest.raises(InputError, match=r"train holds no class folders; put videos into"):
        folder(str(tmp_path), split="train")
    (tmp_path / "train" / "walk").mkdir()
    with pytest.raises(InputError, match=r"train/walk holds no videos \(\.mp4"):
        folder(str(tmp_path), split="train")


LIST = """# made by hand

train/walk/my clip.mp4 1
train/run/B.MP4\t5 0
  train/walk/frames,3,1
"""


def test_list_file(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(LIST)
    listed = list_file(str(root), split=str(path))
    assert listed.class_names == ("0", "1")
    assert summary(listed) == [
        ("train/walk/my clip.mp4", 1, None),
        ("train/run/B.MP4", 0, 5),
        ("train/walk/frames", 1, 3),
    ]
    frames = []
    for video in listed.videos:
        with open_video(video) as reader:
            assert reader.read([0]).dtype == np.uint8
            frames.append(reader.num_frames)
    assert frames == [6, 5, 3]
    named = list_file(str(root), split=str(path), class_names=["run", "walk", "sit"])
    assert named.class_names == ("run", "walk", "sit")
    assert summary(named) == summary(listed)


def test_list_file_is_looked_for_below_root_and_here(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.txt").write_text("train/run/B.MP4 0\n")
    assert len(list_file(str(root), split="here.txt").videos) == 1
    (root / "here.txt").write_text("train/run/B.MP4 0\ntrain/walk/frames 1\n")
    assert len(list_file(str(root), split="here.txt").videos) == 2
    (root / "here.txt").unlink()
    with pytest.raises(InputError, match=r"no list file 'gone.txt' \(looked for .* and .*gone.txt"):
        list_file(str(root), split="gone.txt")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train/run/B.MP4", r"list.txt, line 2: 'train/run/B.MP4' is neither `path label` nor"),
        ("train/run/B.MP4 run", r"line 2: 'train/run/B.MP4 run' is neither"),
        ("train/run/B.MP4 2", r"line 2: .*label 2 is outside the range \(0 to 1\); correct"),
        ("train/run/B.MP4 -1", r"line 2: .*label -1 is outside the range \(0 to 1\)"),
        ("train/run/C.MP4 0", r"line 2: .*there is no .*train/run/C.MP4; correct the line or"),
        ("train/walk/frames 0", r"line 2: .*the video is listed twice; remove one of the lines"),
    ],
)
def test_list_file_mistakes(root: Path, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(f"train/walk/frames 1\n{line}\n")
    with pytest.raises(InputError, match=message):
        list_file(str(root), split=str(path), class_names=["run", "walk"])


def test_more_frames_stated_than_there_are(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text("train/run/B.MP4 6 0\ntrain/walk/frames 5 1\n")
    video, images = list_file(str(root), split=str(path)).videos
    with (
        pytest.raises(InputError, match=r"6 frames are stated for .*B.MP4, but it holds 5"),
        open_video(video),
    ):
        pass
    with (
        pytest.raises(InputError, match=r"5 frames are stated for .*frames, but it holds 4"),
        open_video(images),
    ):
        pass


def test_class_names_file(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("\ufeffwalk\nsit down\n\n")
    assert read_class_names("classes.txt", str(tmp_path)) == ("walk", "sit down")
    assert read_class_names(str(path), "/nowhere") == ("walk", "sit down")
    path.write_text("walk\n\nsit down\n")
    with pytest.raises(InputError, match=r"classes.txt, line 2 is blank"):
        read_class_names("classes.txt", str(tmp_path))
    path.write_bytes(b"walk\n\xff\xfe\n")
    with pytest.raises(InputError, match=r"classes.txt, line 2: not UTF-8 text"):
        read_class_names("classes.txt", str(tmp_path))
    path.write_text("walk\nwalk\n")
    with pytest.raises(InputError, match=r"classes.txt holds walk more than once"):
        read_class_names("classes.txt", str(tmp_path))
    path.write_text("\n")
    with pytest.raises(InputError, match=r"classes.txt holds no class name; write one a line"):
        read_class_names("classes.txt", str(tmp_path))
    with pytest.raises(InputError, match=r"data.classes='gone.txt' is not a file \(looked for"):
        read_class_names("gone.txt", str(tmp_path))
