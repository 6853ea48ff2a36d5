"""`vidtrain stats`: what it counts, what it says of bad files, and its picture."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from conftest import CLASSES, REPO, noise, vidtrain, write_video
from PIL import Image

from vidtrain.data.video import Video, VideoList
from vidtrain.report.data_plots import SplitFigures, plot_data
from vidtrain.stages.stats import Facts, describe, num_frames

SURV_FIGHT = REPO.parent / "shared" / "data" / "surv_fight"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDTRAIN_CACHE", str(tmp_path / "cache"))


def write_avi(path: Path, frames: int) -> None:
    """Writes MPEG-4 in AVI, whose frames cannot be numbered without decoding."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for pixels in noise(0, 90, frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(64, 48, "yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_class_folders(
    class_folders: Path, cli: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("stats", "data=folder", f"data.root={class_folders}", "data.name=mine") == 0
    told = json.loads((tmp_path / "stats" / "mine" / "stats.json").read_text())
    assert told["classes"] == list(CLASSES) and told["files_in_both_splits"] == []
    train, val = told["splits"]["train"], told["splits"]["val"]
    assert train["videos"] == train["files"] == 24 and val["videos"] == 13
    assert train["videos_per_class"] == dict.fromkeys(CLASSES, 8)
    assert val["videos_per_class"] == {"dark": 5, "grey": 4, "light": 4}
    assert val["balance"] == {"min": 4, "median": 4, "max": 5, "largest_to_smallest": 1.25}
    assert val["classes_with_few_videos"] == list(CLASSES)
    lengths = [12 + index % 7 for index in range(24)]  # of the fixture's videos, 25 per second
    assert train["frames"] == {
        "min": 12, "p5": np.percentile(lengths, 5), "median": np.median(lengths), "p95": 18,
        "max": 18,
    }  # fmt: skip
    assert train["hours"] == pytest.approx(sum(lengths) / 25 / 3600)
    assert train["share_with_fewer_frames"] == {
        "8": 0, "16": np.mean(np.array(lengths) < 16), "32": 1, "64": 1,
    }  # fmt: skip
    assert train["sizes"] == {"64x40": 24} and train["codecs"] == {"h264": 24}
    assert train["keyframe_distance"]["max"] == 12 and train["safe_route"] == {}
    assert train["unreadable"] == {} and train["fps"]["median"] == 25
    said = capsys.readouterr()
    assert "val: 3 classes have fewer than 10 videos: dark, grey, light" in said.out
    assert "written to stats/mine" in said.out and "Traceback" not in said.err
    with Image.open(tmp_path / "stats" / "mine" / "stats.png") as picture:
        assert picture.width > 1000 and len(picture.getcolors(1 << 20) or ()) > 100


def test_bad_slow_and_shared_files_are_counted_and_named(
    tmp_path: Path, cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "data"
    write_video(root / "good.mp4", noise(1, 90, 20))
    write_avi(root / "slow.avi", 15)
    whole = (root / "good.mp4").read_bytes()
    (root / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "empty.mp4").touch()
    for name in ("text1.mp4", "text2.mp4"):
        (root / name).write_text("not found")
    (root / "frames").mkdir()
    for number in range(1, 8):
        Image.new("RGB", (48, 32)).save(root / "frames" / f"img_{number:03d}.png")
    train = [*sorted(path.name for path in root.iterdir())]
    (root / "train.txt").write_text("".join(f"{name} {n % 2}\n" for n, name in enumerate(train)))
    (root / "val.txt").write_text("good.mp4 3\nframes 5 0\n")
    (root / "classes.txt").write_text("a\nb\nc\n[d]\n")
    command = ("stats", "data=list_file", f"data.root={root}", "data.classes=classes.txt",
               "data.frame_folder_fps=7", f"output={tmp_path}/out", "workers=1")  # fmt: skip
    assert cli(*command) == 0
    told = json.loads((tmp_path / "out" / "stats.json").read_text())
    found, val = told["splits"]["train"], told["splits"]["val"]
    reasons = {frozenset(ids): reason for reason, ids in found["unreadable"].items()}
    damaged, empty = frozenset({"cut.mp4", "text1.mp4", "text2.mp4"}), frozenset({"empty.mp4"})
    assert reasons.keys() == {damaged, empty}
    assert reasons[empty] == "the file is empty (N bytes); copy or download it again."
    assert reasons[damaged].startswith("the file is not a video file that can be read")
    assert found["videos"] == 7 and found["frames"]["max"] == 20 and found["frames"]["min"] == 7
    assert found["codecs"] == {"images": 1, "h264": 1, "mpeg4": 1}
    assert list(found["safe_route"].values()) == [1] and "avi" in next(iter(found["safe_route"]))
    assert found["seconds"]["max"] == 1.5 and found["seconds"]["min"] == 0.8
    assert val["frames"]["min"] == 5 and val["seconds"]["min"] == pytest.approx(5 / 7)
    assert val["classes_without_videos"] == ["b", "c"]
    assert [Path(p).name for p in told["files_in_both_splits"]] == ["frames", "good.mp4"]
    said = capsys.readouterr().out
    assert "empty.mp4" in said and "[d]" in said and "1 files are decoded from their beg" in said
    assert (
        "train and val share 2 files" in said and "train: 2 classes have no videos: c, [d]" in said
    )


def test_nothing_readable_and_one_split(
    tmp_path: Path, cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("x", "y"):
        (tmp_path / "data" / "val" / name).mkdir(parents=True)
        (tmp_path / "data" / "val" / name / "v.mp4").touch()
    command = ("stats", "data=folder", f"data.root={tmp_path}/data", "splits=[val]")
    assert cli(*command) == 0
    told = json.loads((tmp_path / "stats" / "folder" / "stats.json").read_text())
    assert told["splits"].keys() == {"val"} and told["splits"]["val"]["seconds"] is None
    assert "2 unreadable (x/v.mp4, y/v.mp4)" in capsys.readouterr().out
    assert (tmp_path / "stats" / "folder" / "stats.png").stat().st_size > 10_000
    assert cli(*command[:-1], "splits=[test]") == 2
    assert cli(*command[:-1], "splits=[]") == 2
    assert cli(*command, "workers=0") == 2
    (tmp_path / "file").touch()
    assert cli(*command, f"output={tmp_path}/file/out") == 1
    said = capsys.readouterr().err
    assert "splits=['test'] must be" in said and "workers=0" in said and "cannot write" in said


def test_parts_of_videos() -> None:
    whole, rate = 100, 25.0
    for part, frames in (
        (Video("p", 0, "a"), 100), (Video("p", 0, "b", first_frame=90), 10),
        (Video("p", 0, "c", num_frames=7, first_frame=95), 5), (Video("p", 0, "d", start=1.0), 75),
        (Video("p", 0, "e", start=1.0, end=2.0), 25), (Video("p", 0, "f", end=9.0), 100),
    ):  # fmt: skip
        assert num_frames(part, whole, rate) == frames
    videos = (Video("p", -1, "a"), Video("p", 0, "b", labels=(0, 2)),
              Video("p", 2, "c", labels=(2,)), Video("p", 1, "d", start=5.0, end=6.0))  # fmt: skip
    facts: dict[str, Facts | str] = {"p": Facts(100, 25.0, 64, 48, "h264", 12, None)}
    drawn, told = describe(VideoList(videos, ("x", "y", "z"), multi_label=True), facts, None)
    assert drawn.per_class.tolist() == [1, 1, 2] and told["without_label"] == 1
    assert told["files"] == 1 and told["videos"] == 4 and told["hours"] == 12 / 3600
    assert list(told["unreadable"].values()) == [["d"]]


@pytest.mark.parametrize(("count", "splits"), [(1, 1), (2, 2), (40, 2), (41, 2), (400, 2)])
def test_the_picture_with_few_and_many_classes(count: int, splits: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(count)
    figures = {}
    for name in ("train", "val")[:splits]:
        per_class = rng.integers(0, 900, count)
        seconds = rng.gamma(2, 3, 200) if count > 1 else np.full(200, 2.0)
        sizes = rng.integers(100, 2000, (200, 2)) if count > 40 else np.full((200, 2), 240)
        rates = rng.normal(28, 3, 200) if count > 40 else rng.choice([25, 29.97], 200)
        frames = (seconds * 25).astype(int)
        figures[name] = SplitFigures(per_class, seconds, frames, sizes, rates, frames)
    names = [f"class {number} of ${count} $ and so on" for number in range(count)]
    plot_data(figures, names, "a $ title", tmp_path / "stats.png")
    with Image.open(io.BytesIO((tmp_path / "stats.png").read_bytes())) as picture:
        assert picture.size == (1560, 1080)
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    blue = (np.abs(pixels.astype(int) - (0, 114, 178)).max(axis=1) < 20).sum()
    assert blue > 1000 and [path.name for path in tmp_path.iterdir()] == ["stats.png"]


@pytest.mark.slow
@pytest.mark.skipif(not SURV_FIGHT.is_dir(), reason="the surveillance clips are not here")
def test_many_real_files_from_several_processes(tmp_path: Path) -> None:
    command = ("stats", "data=list_file", f"data.root={SURV_FIGHT}", "data.val=test.txt",
               "data.classes=classes.txt")  # fmt: skip
    outputs = []
    for workers in ("1", "2"):
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        done = vidtrain(*command, f"output={workers}", f"workers={workers}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        outputs.append((tmp_path / workers / "stats.json").read_bytes())
    assert outputs[0] == outputs[1]
    train = json.loads(outputs[0])["splits"]["train"]
    assert train["videos_per_class"] == {"fight": 112, "noFight": 113}
    assert train["unreadable"] == {} and train["frames"]["max"] == 142
    assert train["sizes"]["640x360"] == 60
