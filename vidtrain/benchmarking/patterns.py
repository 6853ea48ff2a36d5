"""Ways of sampling a video, and the samples that every program is given alike."""

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidtrain import randomness
from vidtrain.data.packets import packet_table
from vidtrain.errors import InputError

EVAL_CLIPS, EVAL_CROPS = 10, 3
SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v")


@dataclass(frozen=True)
class Pattern:
    """Which frames make a sample.

    Attributes:
        name: As it is asked for.
        frames: Per clip.
        stride: Source frames from one frame of a clip to the next; 0: spread over the video.
        crop: Side of a view, pixels.
        evaluation: Whether a sample is all views of a video, not one random clip.
    """

    name: str
    frames: int
    stride: int
    crop: int = 224
    evaluation: bool = False

    @property
    def views(self) -> int:
        """Views per sample."""
        return EVAL_CLIPS * EVAL_CROPS if self.evaluation else 1

    @property
    def span(self) -> int:
        """Source frames from the first to the last of a clip, both included; 0: all."""
        return (self.frames - 1) * self.stride + 1 if self.stride else 0


PATTERNS = {
    pattern.name: pattern
    for pattern in (
        Pattern("32x2", 32, 2), Pattern("8x8", 8, 8), Pattern("tsn8", 8, 0),
        Pattern("eval10x3", 32, 2, crop=256, evaluation=True),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """One clip of one video, or a whole video.

    Attributes:
        path: The file.
        start: First frame of the clip; None where the pattern takes the whole video.
        num_frames: Of the video.
        fps: Of the video.
    """

    path: str
    start: int | None
    num_frames: int
    fps: float


@dataclass(frozen=True)
class Group:
    """Files that are alike, measured together.

    Attributes:
        name: Of their folder.
        files: Absolute paths.
        height: Of the first file's frames, pixels.
        width: Of the first file's frames, pixels.
        gop: Longest distance of two keyframes of the first file, frames.
    """

    name: str
    files: tuple[str, ...]
    height: int
    width: int
    gop: int

    @property
    def prepared(self) -> str:
        """Name of the group that holds the prepared copies, if there is one."""
        return f"{self.name}_prepared"


def find_groups(files: str) -> list[Group]:
    """Finds videos below a folder, or by a glob; those of one folder make a group.

    Raises:
        InputError: There are none, or one cannot be read.
    """
    path = Path(files).expanduser()
    pattern = path / "**" / "*" if path.is_dir() else path
    found = map(Path, glob.glob(str(pattern), recursive=True))
    folders: dict[Path, list[str]] = {}
    for file in sorted(found):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            folders.setdefault(file.parent, []).append(os.path.abspath(file))
    if not folders:
        raise InputError(
            f"files={files} holds no video ({', '.join(SUFFIXES)}); give a folder or a glob, or "
            "leave it out to measure with generated clips."
        )
    groups = [_group(folder.resolve().name, listed) for folder, listed in folders.items()]
    return sorted(groups, key=lambda group: (group.height, group.width, -group.gop))


def _group(name: str, files: list[str]) -> Group:
    table = packet_table(files[0])
    keys = np.flatnonzero(table.keyframe[np.argsort(table.pts)])
    keys = np.append(keys, len(table.pts))
    return Group(name, tuple(files), table.height, table.width, int(np.diff(keys).max()))


def draw_samples(group: Group, pattern: Pattern, *, count: int, seed: int) -> list[Sample]:
    """Takes the files in turn; starts are uniform and depend on the seed and the place only.

    Raises:
        InputError: A video is shorter than a clip, or has no frame rate.
    """
    samples = []
    for number in range(count):
        path = group.files[number % len(group.files)]
        table = packet_table(path)
        frames, fps = len(table.pts), table.fps
        # One program counts the stride to the clip's end, so all are given room for it.
        room = frames - pattern.frames * pattern.stride
        if fps is None or room < 0:
            raise InputError(
                f"{path} has {frames} frames at {fps} frames per second; the pattern "
                f"{pattern.name} needs {pattern.frames * pattern.stride} frames and a rate."
            )
        start = None
        if pattern.stride and not pattern.evaluation:
            rng = randomness.generator(seed, randomness.SAMPLE, number)
            start = int(rng.integers(room + 1))
        samples.append(Sample(path, start, frames, fps))
    return samples


def wanted_frames(pattern: Pattern, sample: Sample) -> np.ndarray:
    """Different frames of a sample, rising; of a video's middle where frames are drawn freely."""
    if not pattern.stride:
        places = (np.arange(pattern.frames) + 0.5) * sample.num_frames / pattern.frames
        return places.astype(np.int64)
    starts: Sequence[int] = [sample.start or 0]
    if pattern.evaluation:
        room = sample.num_frames - pattern.span
        starts = np.linspace(0, room, EVAL_CLIPS).astype(np.int64).tolist()
    clip = np.arange(pattern.frames) * pattern.stride
    return np.unique(np.concatenate([start + clip for start in starts]))
