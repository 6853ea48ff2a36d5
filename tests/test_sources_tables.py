"""Lists and tables, also as other tools write them; empty stand-ins for the videos."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from annotations import ANNOTATIONS, needs_annotations, put, touch

from vidtrain.data.sources.csv_file import csv_file
from vidtrain.data.sources.list_file import list_file
from vidtrain.errors import InputError, UsageError


@needs_annotations
@pytest.mark.parametrize(
    ("name", "columns", "count", "first", "last"),
    [
        ("kinetics/uniformer_k400_val_pathlabel.csv", None, 2898,
         ("0wR5jVB-WPk.mp4", 341, None), None),
        ("ucf101/uniformer_split1_val.csv", None, 1434,
         ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", 0, None), None),
        ("ucf101/frames_val_rgb_split1.txt", None, 2104,
         ("v_ApplyEyeMakeup_g01_c01", 0, 163), ("v_Nunchucks_g04_c04", 55, 257)),
        ("ssv2/uniformer_sthv2_val_frames.txt", "path num_frames label", 4396,
         ("74225", 140, 156), ("104739", 47, 84)),
        ("ssv2/uniformer_sthv1_val_frames.txt", None, 3380, ("85", 30, 46), ("40169", 98, 62)),
        ("hmdb51/uniformer_split1_val.txt", None, 1015,
         ("BrandonWebmanplayingbasketball_shoot_ball_f_nm_np1_ba_med_1", 34, 79),
         ("Parada_de_mao___wall_spin_handstand_f_cm_np2_le_med_0", 16, 68)),
        ("paddlevideo/val_small_frames.list", None, 16,
         ("abseiling/_4YTwq0-73Y_000044_000054.mp4", 0, 300), None),
        ("mmaction2/annotations/rawframe_test_list.txt", None, 1, ("imgs", 127, 5), None),
    ],
    ids=lambda value: value if isinstance(value, str) and "/" in value else "",
)  # fmt: skip
def test_lists_of_other_tools(
    tmp_path: Path, name: str, columns: str | None, count: int,
    first: tuple[str, int, int | None], last: tuple[str, int, int | None] | None,
) -> None:  # fmt: skip
    lines = list(dict.fromkeys((ANNOTATIONS / name).read_text().splitlines()))
    (tmp_path / "list.txt").write_text("\n".join(lines))
    touch(tmp_path, (line.replace(",", " ").split()[0] for line in lines))
    videos = list_file(str(tmp_path), split="list.txt", columns=columns).videos
    found = [(v.id, v.label, v.num_frames) for v in videos]
    assert len(videos) == count and found[0] == first and found[-1] == (last or found[-1])


@needs_annotations
def test_lists_that_repeat_videos_are_refused(tmp_path: Path) -> None:
    put("paddlevideo/val_small_videos.list", tmp_path / "val.list")
    lines = (tmp_path / "val.list").read_text().splitlines()
    touch(tmp_path, (line.split()[0] for line in lines))
    with pytest.raises(InputError, match=r"val.list, line 17: .*the video is listed twice; remove"):
        list_file(str(tmp_path), split="val.list")


@needs_annotations
def test_list_columns(tmp_path: Path) -> None:
    put("mmaction2/annotations/rawframe_test_list_with_offset.txt", tmp_path / "offset.txt")
    with open(tmp_path / "offset.txt", "a") as file:
        file.write("imgs 7 3 4\n")
    touch(tmp_path, ["imgs", "test.mp4", "clip 7"])
    form = "path first_frame num_frames label"
    with pytest.raises(
        InputError, match=r"offset.txt, line 2: 'imgs 2 5 127': the video is listed"
    ):
        list_file(str(tmp_path), split="offset.txt", columns=form)
    (tmp_path / "offset.txt").write_text("imgs 2 5 127\nimgs 7 3 4\n")
    videos = list_file(str(tmp_path), split="offset.txt", columns=form).videos
    assert [(v.id, v.first_frame, v.num_frames, v.label) for v in videos] == [
        ("imgs[2:7]", 2, 5, 127), ("imgs[7:10]", 7, 3, 4),
    ]  # fmt: skip
    (tmp_path / "a.txt").write_text("clip 7 3\n")  # the path ends in a number
    (video,) = list_file(str(tmp_path), split="a.txt", columns="path label").videos
    assert (video.id, video.label, video.num_frames) == ("clip 7", 3, None)
    (tmp_path / "a.txt").write_text("imgs 3\n")
    with pytest.raises(InputError, match=r"line 1: 'imgs 3' is not `path num_frames label`"):
        list_file(str(tmp_path), split="a.txt", columns="path num_frames label")
    for wrong in ("label path", "path frames label", "path", "path label labels",
                  "path label label", "path label num_frames", ""):  # fmt: skip
        with pytest.raises(
            UsageError, match=r"data.source.columns='.*' must be path, then first_f"
        ):
            list_file(str(tmp_path), split="a.txt", columns=wrong)


@needs_annotations
def test_lists_of_several_labels(tmp_path: Path) -> None:
    put("mmaction2/annotations/video_test_list_multi_label.txt", tmp_path / "videos.txt")
    put("mmaction2/annotations/rawframe_test_list_multi_label.txt", tmp_path / "frames.txt")
    touch(tmp_path, ["test.mp4", "imgs", "none.mp4"])
    for split, columns in (("videos.txt", "path labels"), ("frames.txt", "path num_frames labels")):
        with pytest.raises(InputError, match=r"line 2: .*the video is listed twice"):
            list_file(str(tmp_path), split=split, columns=columns)
        lines = (tmp_path / split).read_text().splitlines()
        (tmp_path / split).write_text(f"{lines[1]}\n")
    with open(tmp_path / "videos.txt", "a") as file:
        file.write("none.mp4\n")
    listed = list_file(str(tmp_path), split="videos.txt", columns="path labels")
    assert listed.multi_label and listed.class_names == ("0", "1", "2", "3", "4")
    assert [(v.id, v.label, v.labels) for v in listed.videos] == [
        ("test.mp4", 0, (0, 2, 4)), ("none.mp4", -1, ()),
    ]  # fmt: skip
    listed = list_file(str(tmp_path), split="frames.txt", columns="path num_frames labels")
    (video,) = listed.videos
    assert (video.num_frames, video.labels, len(listed.class_names)) == (5, (3, 5), 6)
    with pytest.raises(InputError, match=r"label 5 is outside the range \(0 to 4\)"):
        list_file(str(tmp_path), split="frames.txt", class_names=tuple("abcde"),
                  columns="path num_frames labels")  # fmt: skip


def test_list_with_missing_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    touch(tmp_path, ["a.mp4"])
    (tmp_path / "list.txt").write_text("b.mp4 0\na.mp4 1\nsub/c.mp4 0\n")
    with pytest.raises(InputError, match=r"line 1: .*no .*/b.mp4 \(and 1 more of 3\); correct"):
        list_file(str(tmp_path), split="list.txt")
    (video,) = list_file(str(tmp_path), split="list.txt", missing="skip").videos
    assert (video.id, video.label) == ("a.mp4", 1)
    assert "left out: 2 of the 3 videos (66.67%)" in capsys.readouterr().err


TABLE = "file;kind;from;to;note\na b.mp4;run;;;\n\na b.mp4;walk;1.5;4;\nc.mp4; run ;0;.5;'x\n"


def test_csv_file(tmp_path: Path) -> None:
    touch(tmp_path, ["a b.mp4", "c.mp4"])
    (tmp_path / "train.csv").write_text("\ufeff" + TABLE)
    columns: dict[str, Any] = {"path_column": "file", "label_column": "kind"}
    with pytest.raises(InputError, match=r"line 4: a b.mp4 is listed twice; remove one of"):
        csv_file(str(tmp_path), split="train.csv", **columns)
    columns |= {"start_column": "from", "end_column": "to"}
    listed = csv_file(str(tmp_path), split="train.csv", **columns)
    assert listed.class_names == ("run", "walk")
    assert [(v.id, v.label, v.start, v.end) for v in listed.videos] == [
        ("a b.mp4", 0, None, None), ("a b.mp4[1.5:4]", 1, 1.5, 4.0), ("c.mp4[0:0.5]", 0, 0.0, 0.5),
    ]  # fmt: skip
    assert listed.videos[2].path == str(tmp_path / "c.mp4")
    named = csv_file(
        str(tmp_path), split="train.csv", class_names=("walk", "sit", "run"), **columns
    )
    assert [v.label for v in named.videos] == [2, 0, 2]
    with pytest.raises(
        InputError, match=r"holds the label 'run', which is neither one of the 2 kn"
    ):
        csv_file(str(tmp_path), split="train.csv", class_names=("walk", "sit"), **columns)


@pytest.mark.parametrize(("text", "names", "labels", "classes"), [
    ('"path","label"\n"a,b.mp4","3"\nc.mp4,1\n', None, [3, 1], ("0", "1", "2", "3")),
    ("label\tpath\n1\ta,b.mp4\n0\tc.mp4\n", ("sit", "run"), [1, 0], ("sit", "run")),
    ("path|label\na,b.mp4|2\nc.mp4|1\n", ("1", "2"), [1, 0], ("1", "2")),
    ("path|label\na,b.mp4|0\nc.mp4|1\n", ("1", "2"), [0, 1], ("1", "2")),
])  # fmt: skip
def test_csv_file_with_numbers(
    tmp_path: Path, text: str, names: tuple[str, ...] | None, labels: list[int],
    classes: tuple[str, ...],
) -> None:  # fmt: skip
    touch(tmp_path, ["a,b.mp4", "c.mp4"])
    (tmp_path / "t.csv").write_text(text)
    listed = csv_file(str(tmp_path), split="t.csv", class_names=names)
    assert [v.label for v in listed.videos] == labels and listed.class_names == classes


@pytest.mark.parametrize(("text", "message"), [
    ("path,labels\na.mp4,x\n", r"has no column 'label', its first line is .*did you mean labels\?"),
    ("", r"has no column 'path', its first line is '' .*name it with data.source.path_column"),
    ("path,label\na.mp4\n", r"line 2: 1 fields under 2 headers; put fields that hold ','"),
    ("path,label\na.mp4,\n", r"has lines without a label"),
    ("path,label\nb.mp4,x\na.mp4,x\n", r"1 of the 2 videos \(50.00%\) .*b.mp4; fetch them, or"),
    ("path,label,to\na.mp4,x,1:30\n", r"line 2: to='1:30' is not a time in seconds from 0 up"),
    ("path,label,to\na.mp4,x,0\n", r"line 2: the part ends at 0.0 s, not after its start"),
])  # fmt: skip
def test_csv_file_mistakes(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, ["a.mp4"])
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        csv_file(str(tmp_path), split="t.csv", end_column="to" if "to\n" in text else None)
    with pytest.raises(UsageError, match=r"delimiter='ab' must be one character"):
        csv_file(str(tmp_path), split="t.csv", delimiter="ab")
    with pytest.raises(InputError, match=r"there is no list file 'u.csv' \(looked for"):
        csv_file(str(tmp_path), split="u.csv")


@pytest.mark.slow
def test_training_on_tables(
    cli: Callable[..., int], class_folders: Path, small_run: tuple[str, ...], tmp_path: Path
) -> None:
    for part in ("train", "val"):
        videos = sorted((class_folders / part).rglob("*.mp4"))
        lines = (f"{v.parent.name};{v.relative_to(class_folders)}" for v in videos)
        (tmp_path / f"{part}.csv").write_text("\n".join(["action;clip", *lines]))
    settings = ("data=csv_file", "data.source.path_column=clip", "data.source.label_column=action")
    kept = (argument for argument in small_run if argument != "data=folder")
    assert cli("train", *kept, *settings, "train.epochs=1") == 0
    assert cli("eval", "run=runs/small") == 0
    results = (tmp_path / "runs" / "small" / "eval" / "predictions.jsonl").read_text()
    assert len(results.splitlines()) == 13
