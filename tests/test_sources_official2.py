"""Kinetics on its real annotation files, with empty stand-ins for the videos."""

import csv
import os
from pathlib import Path

import pytest
from annotations import ANNOTATIONS, needs_annotations, put, touch

from vidtrain.data.sources.annotations import listing
from vidtrain.data.sources.kinetics import kinetics
from vidtrain.data.sources.list_file import list_file
from vidtrain.errors import InputError

K400 = "kinetics/kinetics-400_val.csv"


def rows(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((ANNOTATIONS / name).read_text().splitlines()))


def clip(row: dict[str, str]) -> str:
    return f"{row['youtube_id']}_{int(row['time_start']):06d}_{int(row['time_end']):06d}"


@needs_annotations
def test_kinetics_flat(tmp_path: Path) -> None:
    put(K400, tmp_path / "annotations" / "kinetics-400_val.csv")
    suffixes = (".mp4", ".mkv", ".webm")
    wanted = rows(K400)
    touch(tmp_path / "val", (clip(row) + suffixes[i % 3] for i, row in enumerate(wanted)))
    listed = kinetics(str(tmp_path), split="val")
    assert len(listed.videos) == 4622 and len(listed.class_names) == 93
    assert listed.class_names[:2] == ("abseiling", "air drumming")
    assert listed.videos[0].id == "0wR5jVB-WPk_000417_000427"
    assert listed.videos[-1].path == str(tmp_path / "val" / "rxBJdTkcpAM_000051_000061.mkv")
    all_names = (ANNOTATIONS / "mmaction2" / "label_maps" / "kinetics_label_map_k400.txt"
                 ).read_text().splitlines()  # fmt: skip
    named = kinetics(str(tmp_path), split="val", class_names=all_names)
    assert [named.class_names[v.label] for v in named.videos] == [r["label"] for r in wanted]
    assert listed.class_names == tuple(all_names[:93])  # the official order is the alphabet's
    with pytest.raises(InputError, match=r"class 'disc golfing', which is not one of the 92 known"):
        kinetics(str(tmp_path), split="val", class_names=all_names[:92])


@needs_annotations
@pytest.mark.parametrize(
    ("folder", "space"), [("val", " "), ("validate", "_"), ("videos_val", "_")]
)
def test_kinetics_in_class_folders(tmp_path: Path, folder: str, space: str) -> None:
    put("kinetics/kinetics-600_val.csv", tmp_path / "validate.csv")
    wanted = rows("kinetics/kinetics-600_val.csv")
    names = [f"{row['label'].replace(' ', space)}/{clip(row)}.mp4" for row in wanted]
    touch(tmp_path / folder, names)
    with_csv = kinetics(str(tmp_path), split="val")
    assert len(with_csv.videos) == 1611 and len(with_csv.class_names) == 33
    assert with_csv.videos[-1].path == str(tmp_path / folder / names[-1])
    (tmp_path / "validate.csv").unlink()
    without = kinetics(str(tmp_path), split="val")
    assert without.class_names == with_csv.class_names
    assert {v.path: v.label for v in without.videos} == {v.path: v.label for v in with_csv.videos}


@needs_annotations
def test_kinetics_missing_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(K400, tmp_path / "val.csv")
    (tmp_path / "val").mkdir()
    with pytest.raises(
        InputError, match=r"none of the 4622 videos that .*val.csv lists is in .*/val"
    ):
        kinetics(str(tmp_path), split="val", missing="skip")
    wanted = rows(K400)
    touch(tmp_path / "val", (f"{clip(row)}.mp4" for row in wanted[7:4000]))
    touch(tmp_path / "val", (f"{row['youtube_id']}.mp4" for row in wanted[4000:]))
    message = (
        r"^7 of the 4622 videos \(0.15%\) that .*val.csv lists are not in .*/val: "
        r"0wR5jVB-WPk_000417_000427, 3caPS4FHFF8_000036_000046, 3yaoNwz99xM_\d+_\d+, ...; fetch "
        r"them, or leave them out with data.source.missing=skip$"
    )
    with pytest.raises(InputError, match=message):
        kinetics(str(tmp_path), split="val")
    assert capsys.readouterr().err == ""
    listed = kinetics(str(tmp_path), split="val", missing="skip")
    assert len(listed.videos) == 4615 and listed.videos[-1].path.endswith("/rxBJdTkcpAM.mp4")
    assert "left out: 7 of the 4622 videos (0.15%)" in capsys.readouterr().err


@needs_annotations
def test_kinetics_mistakes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no folder val or validate or .* in .*; put the videos"):
        kinetics(str(tmp_path), split="val")
    with pytest.raises(InputError, match=r"data.root=.*nowhere is no folder; set it to"):
        kinetics(str(tmp_path / "nowhere"), split="val")
    put("kinetics/kinetics-400_test.csv", tmp_path / "test.csv")
    touch(tmp_path, ["test/a.mp4", "val/a.mp4"])
    with pytest.raises(
        InputError, match=r"test.csv has no column `label`: this release of the test"
    ):
        kinetics(str(tmp_path), split="test")
    with pytest.raises(InputError, match=r"holds no class folders.*there is no csv file either"):
        kinetics(str(tmp_path), split="val")
    put("kinetics/uniformer_k400_val_pathlabel.csv", tmp_path / "val.csv")
    with pytest.raises(
        InputError, match=r"val.csv has no column label \(the first line is '0wR5jVB"
    ):
        kinetics(str(tmp_path), split="val")
    put(K400, tmp_path / "annotations" / "kinetics-400_val.csv")
    with pytest.raises(InputError, match=r"both .*annotations/kinetics-400_val.csv and .*/val.csv"):
        kinetics(str(tmp_path), split="val")
    with pytest.raises(InputError, match=r"data.source.annotations='lists': no folder .*/lists"):
        kinetics(str(tmp_path), split="val", annotations="lists")
    (tmp_path / "val.csv").write_text("label,youtube_id,time_start,time_end,split\na,b,1,x,val\n")
    with pytest.raises(InputError, match=r"val.csv, line 2: 'a,b,1,x,val' is not label,youtube_id"):
        kinetics(str(tmp_path), split="val", annotations=".")


def test_each_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [f"{i:011d}_000000_000010.mp4" for i in range(300)]
    touch(tmp_path / "train", clips)
    lines = "".join(f"class {i % 9},{i:011d},0,10,train\n" for i in range(300))
    (tmp_path / "train.csv").write_text(f"label,youtube_id,time_start,time_end,split\n{lines}")
    (tmp_path / "list.txt").write_text("".join(f"train/{name} 1\n" for name in clips))
    stats: list[str] = []
    real = os.stat

    def counted(path: str, *args: object, **kwargs: object) -> os.stat_result:
        stats.append(str(path))
        return real(path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "stat", counted)
    assert len(kinetics(str(tmp_path), split="train").videos) == 300
    assert len(list_file(str(tmp_path), split="list.txt").videos) == 300
    assert not [path for path in stats if path.endswith(".mp4")]
    monkeypatch.undo()
    (tmp_path / "train" / "sub").mkdir()
    touch(tmp_path / "train", ["sub/x.mp4", "sub/x.webm", "x.MKV"])
    found = listing(tmp_path / "train", ["sub", "absent"])
    assert found["sub/x"].endswith("/sub/x.mp4") and found["x"].endswith("/x.MKV")
    assert len(found) == 303
