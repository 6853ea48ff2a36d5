"""Every back end, on files of every kind: the right frame or a refusal, never another frame."""

import json
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import pytest
import torch
from conftest import REPO
from encoding import encode, need_decoder

from vidtrain.data.packets import packet_table
from vidtrain.data.reading import DECODERS, open_video
from vidtrain.data.video import Box, Video
from vidtrain.data.views import cut_frames
from vidtrain.errors import InputError, UsageError

SHARED = REPO.parent / "shared"
CLIPS, SCRIPT = SHARED / "data" / "clips", SHARED / "tools" / "make_bad_videos.sh"
SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".gif"}
NOT_VIDEOS = {".png", ".jpg", ".json", ".pt", ".txt", ".md", ""}
NEEDS_FFMPEG = pytest.mark.skipif(not corpus.have_ffmpeg(), reason="ffmpeg is not installed")

# What cannot be read as a whole, and why: no other file may be refused.
REFUSED = {
    "zero.mp4": "is empty", "cut_moov_missing.mp4": "cut short", "cut_mid.mkv": "is cut short",
    "cut_mid_faststart.mp4": "is cut short", "audio_only.mp4": "has no video stream",
    "cover_art.m4a": "has no video stream", "text.mp4": "is not a video file",
    "fifo.mp4": "is a pipe", "lie_count.mp4": "is not a video file", "frames_gap": "have a gap",
    "isdir.mp4": "holds no images",
    "reschange.ts": "picture size", "changed_size.mkv": "picture size",
}  # fmt: skip
# Damaged inside: name -> the undamaged file, and how many of its frames come out right at least,
# wrong at most. Some damaged frames are still frames that the standard allows, and FFmpeg's H.264
# decoder does not tell its caller that a packet is missing.
DAMAGED = {
    "bad/bitrot.mp4": ("bad/fast.mp4", 60, 3),
    "lost.mkv": ("plain.mp4", 40, 8),
    "lost_hevc.mkv": ("hevc.mp4", 40, 0),
}
# What the other back ends refuse, apart from what their reasons name.
KNOWN = {
    "decord": {
        "short_groups.mp4",
        "no_cues.mkv",
        "av1.mp4",
        "av1.mkv",
        "av1_odd.mkv",
        "av1_video.mkv",
    },
    "torchcodec": {"short_groups.mp4", "crowded.mp4", "intra_refresh.mp4", "intra_refresh_b.mkv"},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    missing = corpus.make(folder)
    print(f"\nnot made, since this ffmpeg lacks the encoder: {', '.join(missing) or 'none'}")
    assert len(missing) < len(corpus.FILES) / 5
    if SCRIPT.is_file():
        (folder / "bad").mkdir()
        corpus.make_bad(SCRIPT, folder / "bad")
    return folder


def files(folder: Path) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.suffix not in NOT_VIDEOS]
    return sorted([*found, *(p for p in CLIPS.rglob("*") if p.suffix in SUFFIXES)])


def answer(path: Path, decoder: str, expected: corpus.Reference) -> str:
    """`ok`, `refused (why)` or `WRONG ...` for one file and back end."""
    try:
        with open_video(Video(str(path), 0, "a"), decoder) as reader:
            count = len(expected.digests)
            if reader.num_frames != count:
                return f"WRONG: {reader.num_frames} frames, not {count}"
            seed = len(path.name)
            wrong = corpus.wrong_frames(reader, expected, exact=decoder == "pyav", seed=seed)
            return f"WRONG: frames {wrong}" if wrong else "ok"
    except UsageError as error:
        return f"missing ({error})"
    except InputError as error:
        return f"refused ({str(error).replace(str(path), 'it')})"


def allowed(path: Path, decoder: str) -> bool:
    """Whether a back end has a reason to refuse a file."""
    if path.name in REFUSED or path.name in KNOWN.get(decoder, ()):
        return True
    table = packet_table(str(path))
    if decoder == "decord":
        return table.count_reason is not None or any(table.turn)
    if decoder == "torchcodec":
        return table.slow_reason is not None or sum(table.turn) % 2 == 1
    return False


def is_damaged(path: Path) -> bool:
    return path.name == "corrupted.mp4" or any(path.match(name) for name in DAMAGED)


class OneLate:
    """A reader that gives the frame after the one asked for, a little brighter."""

    def __init__(self, frames: np.ndarray) -> None:
        self.frames, (self.height, self.width) = frames, frames.shape[1:3]

    def read(self, indices: list[int]) -> np.ndarray:
        late = [min(index + 1, len(self.frames) - 1) for index in indices]
        return np.minimum(self.frames[late].astype(int) + 3, 255).astype(np.uint8)


def test_the_comparison_finds_frames_that_are_one_late(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", options={"g": "12", "bf": "2"}, frames=40)
    late: Any = OneLate(np.array(list(corpus.decode(path))))
    expected = corpus.reference(path)
    for exact in (True, False):
        wrong = set(corpus.wrong_frames(late, expected, exact=exact, seed=1))
        assert wrong >= set(range(39))  # the last one is asked for and right
    with open_video(Video(str(path), 0, "a")) as reader:
        assert corpus.wrong_frames(reader, expected, exact=True, seed=1) == []
    right: Any = OneLate(np.array([late.frames[0], *late.frames]))  # only brighter
    right.frames = right.frames[:-1]
    assert not set(corpus.wrong_frames(right, expected, exact=False, seed=1)) - {39}


@pytest.mark.slow
@NEEDS_FFMPEG
def test_no_back_end_returns_a_wrong_frame(made: Path) -> None:
    problems, read = [], dict.fromkeys(DECODERS, 0)
    for path in files(made):
        if is_damaged(path):
            continue
        if path.name in ("fifo.mp4", "isdir.mp4"):
            expected = corpus.Reference([], np.empty(0), None)
        else:
            expected = corpus.reference(path)
        answers = {decoder: answer(path, decoder, expected) for decoder in DECODERS}
        try:
            route = packet_table(str(path)).slow_reason or "fast"
        except InputError:
            route = "-"
        words = [f"{decoder}: {text[:90]}" for decoder, text in answers.items()]
        print(" | ".join([repr(path.name), str(len(expected.digests)), route, *words]))
        for decoder, text in answers.items():
            read[decoder] += text == "ok"
            refused = text.startswith("refused")
            if text.startswith("WRONG") or (refused and not allowed(path, decoder)):
                problems.append(f"{path.name} {decoder} {text}")
        if path.name in REFUSED and REFUSED[path.name] not in answers["pyav"]:
            problems.append(f"{path.name} is not refused: {answers['pyav']}")
    print(f"read, with no wrong frame: {read}")
    assert not problems, "\n".join(problems)
    assert read["pyav"] > 80


@pytest.mark.slow
@NEEDS_FFMPEG
@pytest.mark.parametrize("name", DAMAGED)
def test_frames_of_a_damaged_file_are_right_or_refused(made: Path, name: str) -> None:
    source, least_right, most_wrong = DAMAGED[name]
    if not (made / name).is_file():
        pytest.skip(f"no {SCRIPT}")
    expected = corpus.reference(made / source).digests
    table, right, refused = packet_table(str(made / name)), 0, 0
    seconds = np.sort(table.pts - table.pts.min()) * float(table.time_base)
    numbers = np.rint(seconds * 30).astype(int).tolist()  # of the frames whose packets are there
    with open_video(Video(str(made / name), 0, "a")) as reader:
        assert reader.num_frames == len(numbers)
        for index, number in enumerate(numbers):
            try:
                right += corpus.digest(reader.read([index])[0]) == expected[number]
            except InputError:
                refused += 1
    wrong = len(numbers) - right - refused
    print(f"{name}: {right} right, {refused} refused, {wrong} wrong")
    assert right >= least_right and wrong <= most_wrong


@pytest.mark.slow
@NEEDS_FFMPEG
def test_cut_is_the_crop_of_what_read_gives(made: Path) -> None:
    worst, too_far = {}, []
    for path in files(made):
        if path.name in REFUSED or is_damaged(path):
            continue
        table = packet_table(str(path))
        # A box in stretched pixels is rounded to whole ones as stored. Most files store colours at
        # half the size, and sharp edges between saturated ones are spread differently.
        full_size = "444" in table.pix_fmt or table.pix_fmt in ("gbrp", "gray", "bgra", "pal8")
        bound = 12 if table.sar != 1 else 2 if full_size else 6
        rng = np.random.default_rng(len(path.name))
        with open_video(Video(str(path), 0, "a")) as reader:
            worst[path.name] = compare_cut(reader, rng)
        if worst[path.name] > bound:
            too_far.append(path.name)
    for name, error in sorted(worst.items(), key=lambda item: -item[1])[:12]:
        print(f"cut, mean difference of {name}: {error:.2f} of 255")
    assert not too_far


def compare_cut(reader: corpus.VideoReader, rng: np.random.Generator) -> float:
    """Mean difference between `cut` and the crop of `read`, or twice that of luma if larger.

    Asserts that nothing is shifted by half a pixel or more.
    """
    indices = [0, reader.num_frames // 2, 0]
    boxes, out = [], []
    for height, width in ((56, 56), (48, 80)):
        h = 2 * int(rng.integers(reader.height // 4, reader.height // 2 + 1))
        w = 2 * int(rng.integers(reader.width // 4, reader.width // 2 + 1))
        top = 2 * int(rng.integers((reader.height - h) // 2 + 1))
        left = 2 * int(rng.integers((reader.width - w) // 2 + 1))
        boxes.append(Box(top, left, h, w))
        out.append(np.full((3, height, width, 3), 77, np.uint8))
    reader.cut(indices, boxes, out)
    frames, errors = reader.read(indices), []
    for box, found in zip(boxes, out, strict=True):
        expected = np.empty_like(found)
        cut_frames(frames, box, expected)
        errors.append(float(np.abs(found - expected.astype(float)).mean()))
        by_shift = {(y, x): shifted_difference(found, expected, y, x)
                    for y in (-1, 0, 1) for x in (-1, 0, 1)}  # fmt: skip
        assert by_shift[0, 0] <= min(by_shift.values()) + 0.1, by_shift  # equal where all is flat
        errors.append(2 * by_shift[0, 0])
    return max(errors)


def shifted_difference(found: np.ndarray, expected: np.ndarray, y: int, x: int) -> float:
    height, width = found.shape[1:3]
    moved = expected[:, 1 + y : height - 1 + y, 1 + x : width - 1 + x]
    difference = found[:, 1:-1, 1:-1] - moved.astype(float)
    return float(np.abs(difference @ (0.299, 0.587, 0.114)).mean())  # luma, stored in full


@pytest.mark.slow
@NEEDS_FFMPEG
@pytest.mark.parametrize("name", corpus.TURNS)
def test_frames_are_turned_as_ffmpeg_turns_them(made: Path, name: str) -> None:
    path = made / f"{name}_plain.mp4"
    with open_video(Video(str(path), 0, "a")) as reader:
        frame = reader.read([7])[0]
    raw = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    command = ["ffmpeg", "-loglevel", "error", "-i", str(path), *raw]
    shown = subprocess.run(command, capture_output=True, check=True).stdout
    expected = np.frombuffer(shown, np.uint8).reshape(60, *frame.shape)[7]
    # ffmpeg turns the planes, colours at half the size, and converts after that.
    assert np.abs(frame - expected.astype(float)).mean() < 4
    assert np.abs(corpus.shrink(frame) - corpus.shrink(expected).astype(float)).mean() < 2


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_that_torchcodec_publishes(tmp_path: Path, decoder: str) -> None:
    folder, name = CLIPS / "torchcodec", "nasa_13013.mp4"
    if not (folder / name).is_file():
        pytest.skip(f"no {folder / name}")
    need_decoder(decoder, tmp_path)
    with closing(DECODERS[decoder](str(folder / name))) as reader:
        frames = reader.read([2, 0, 1])
        for index, frame in zip((2, 0, 1), frames, strict=True):
            tensor = folder / f"{name}.stream3.frame{index:06d}.pt"
            np.testing.assert_array_equal(frame, torch.load(tensor, weights_only=True))
        told = json.loads((folder / f"{name}.stream3.all_frames_info.json").read_text())
        times = [float(frame["pts_time"]) for frame in told]
        assert reader.num_frames == len(times)
        assert [reader.frame_at(seconds - times[0]) for seconds in times] == list(range(len(times)))
