"""Data sets of long videos with times: Charades, ActivityNet, HACS, EPIC-KITCHENS-100."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from annotations import touch
from conftest import REPO, write_video
from PIL import Image

from vidtrain.data.reading import open_video
from vidtrain.data.sources.activitynet import activitynet
from vidtrain.data.sources.charades import charades
from vidtrain.data.sources.epic_kitchens import epic_kitchens
from vidtrain.data.sources.hacs import hacs
from vidtrain.errors import InputError, UsageError

CHARADES = REPO.parent / "shared" / "data" / "annots" / "charades"
needs_charades = pytest.mark.skipif(not CHARADES.is_dir(), reason="no annotations of Charades here")


def ramp(path: Path) -> None:
    """Writes 50 frames at 25 per second, each 4 levels brighter than the one before."""
    levels = np.arange(20, 220, 4, dtype=np.uint8)[:, None, None, None]
    write_video(path, np.broadcast_to(levels, (50, 48, 64, 3)).copy())


def shown(video: object) -> list[int]:
    """Returns the numbers of the frames of `ramp` that a video of part of it holds."""
    with open_video(video) as reader:  # type: ignore[arg-type]
        grey = reader.read(range(reader.num_frames)).mean(axis=(1, 2, 3))
    return [round((level - 20) / 4) for level in grey.tolist()]


@pytest.fixture
def charades_root(tmp_path: Path) -> Path:
    for name in ("Charades_v1_train.csv", "Charades_v1_test.csv", "Charades_v1_classes.txt"):
        (tmp_path / name).symlink_to(CHARADES / name)
        if name.endswith("csv"):
            rows = (CHARADES / name).read_text().splitlines()[1:]
            touch(tmp_path / "Charades_v1_480", (f"{row.split(',')[0]}.mp4" for row in rows))
    return tmp_path


@needs_charades
def test_charades_has_several_classes_per_video(charades_root: Path) -> None:
    train = charades(str(charades_root), split="train")
    test = charades(str(charades_root), split="test", class_names=train.class_names)
    assert train.multi_label and len(train.class_names) == 157
    assert train.class_names[0] == "Holding some clothes" and len(train.videos) == 196
    assert len(test.videos) == 142
    first, none = train.videos[0], train.videos[2]
    assert (first.id, first.labels, first.label) == ("46GP8", (92, 147), 92)
    assert first.path == str(charades_root / "Charades_v1_480" / "46GP8.mp4")
    assert (none.id, none.labels, none.label) == ("0IH69", (), -1)
    assert train.videos[-1].id == "WYYUD"
    assert train.videos[-1].labels == (3, 133, 134, 135, 146, 155)  # c155 stands there twice
    assert sum(video.label == -1 for video in train.videos) == 7


@needs_charades
def test_charades_actions_as_segments(
    charades_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listed = charades(str(charades_root), split="train", segments=True)
    assert not listed.multi_label and len(listed.videos) == 1232 - 2
    assert "2 annotations that end before they begin" in capsys.readouterr().err
    video = listed.videos[1]
    assert (video.id, video.label, video.start, video.end) == ("46GP8_1", 147, 0.0, 12.6)
    assert listed.videos[-1].id == "WYYUD_6" and listed.videos[-1].end == 35.0
    assert len(charades(str(charades_root), split="test", segments=True).videos) == 1333


def test_charades_bad_rows(tmp_path: Path) -> None:
    touch(tmp_path, ["Charades_v1/AAAAA.mp4"])
    (tmp_path / "Charades_v1_classes.txt").write_text("c000 Standing up\n")
    csv = tmp_path / "Charades_v1_train.csv"
    for text, message in (
        ("id,length\nAAAAA,3\n", "no column actions"),
        ("id,actions,length\nAAAAA,c000 1.0,3\n", "line 2: the action 'c000 1.0'"),
        ("id,actions,length\nAAAAA,c001 1 2,3\n", "line 2: class 'c001'"),
        ("id,actions,length\nAAAAA\n", "line 2: too few fields"),
        ("id,actions,length\nAAAAA,,3\nAAAAA,,3\n", "lists AAAAA twice"),
        ('id,actions,length\nAAAAA,"c000 0 1;c000 1 2",3\nBBBBB,,3\n', "1 of the 2 videos"),
    ):
        csv.write_text(text)
        with pytest.raises(InputError, match=message):
            charades(str(tmp_path), split="train")
    listed = charades(str(tmp_path), split="train", missing="skip")
    assert [video.labels for video in listed.videos] == [(0,)]
    with pytest.raises(UsageError, match="not 'validation'"):
        charades(str(tmp_path), split="validation")


def anet_entry(subset: str, *annotations: tuple[float, float, str]) -> dict:
    parts = [{"segment": [start, end], "label": label} for start, end, label in annotations]
    return {
        "subset": subset, "duration": 2.0, "resolution": "64x48", "annotations": parts,
        "url": "https://www.youtube.com/watch?v=x",
    }  # fmt: skip


def write_anet(file: Path, *, taxonomy: bool = True) -> None:
    nodes = [(0, "Root", None), (1, "Sports", "Root"), (2, "Archery", "Sports"),
             (3, "Drinking beer", "Root"), (4, "Zumba", "Sports")]  # fmt: skip
    content: dict[str, Any] = {
        "version": "VERSION 1.3",
        "database": {
            "aaaaaaaaaaa": anet_entry(
                "training", (0.4, 0.8, "Drinking beer"), (1.0, 2.02, "Archery"),
                (1.5, 1.2, "Archery"), (0.4, 0.8, "Drinking beer"),
            ),
            "v_bbbbbbbbb": anet_entry("validation", (0.0, 1.0, "Archery")),
            "ccccccccccc": anet_entry("testing"),
        },
    }  # fmt: skip
    if taxonomy:
        content["taxonomy"] = [
            {"nodeId": i, "nodeName": name, "parentName": parent, "parentId": None}
            for i, name, parent in nodes
        ]
    file.write_text(json.dumps(content))


def test_activitynet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_anet(tmp_path / "activity_net.v1-3.min.json")
    ramp(tmp_path / "videos" / "v_aaaaaaaaaaa.mp4")
    touch(tmp_path / "videos", ["v_bbbbbbbbb.mkv"])  # a YouTube id may begin with v_
    listed = activitynet(str(tmp_path), split="training")
    assert listed.class_names == ("Archery", "Drinking beer", "Zumba") and not listed.multi_label
    rows = [(v.id, v.label, v.start, v.end) for v in listed.videos]
    assert rows == [("aaaaaaaaaaa_0", 1, 0.4, 0.8), ("aaaaaaaaaaa_1", 0, 1.0, 2.02)]
    assert "2 annotations" in capsys.readouterr().err
    val = activitynet(str(tmp_path), split="validation", class_names=("Zumba", "Archery"))
    assert [(v.id, v.label) for v in val.videos] == [("v_bbbbbbbbb_0", 1)]
    for split, message in (("testing", "has no annotations"), ("tarining", "not 'tarining'")):
        with pytest.raises(UsageError, match=message):
            activitynet(str(tmp_path), split=split)
    with pytest.raises(InputError, match="class 'Archery'"):
        activitynet(str(tmp_path), split="validation", class_names=("Zumba",))
    write_anet(tmp_path / "own.json", taxonomy=False)
    own = activitynet(str(tmp_path), split="train", annotations="own.json")
    assert own.class_names == ("Archery", "Drinking beer")
    (tmp_path / "own.json").write_text('{"aaaaaaaaaaa": {}}')
    with pytest.raises(InputError, match="not in ActivityNet's format"):
        activitynet(str(tmp_path), split="train", annotations="own.json")


def test_segments_are_read_by_their_times(tmp_path: Path) -> None:
    write_anet(tmp_path / "activity_net.v1-3.min.json")
    ramp(tmp_path / "videos" / "v_aaaaaaaaaaa.mp4")
    first, second = activitynet(str(tmp_path), split="training").videos
    assert shown(first) == list(range(10, 20))
    assert shown(second) == list(range(25, 50))  # its end lies after the video's


HACS = """classname,youtube_id,subset,start,end,label
Archery,aaaaaaaaaaa,training,0.0,1.0,1
Archery,aaaaaaaaaaa,training,1.0,2.0,-1
Arm wrestling,aaaaaaaaaaa,training,0.8,1.2,1
Arm wrestling,bbbbbbbbbbb,validation,15.5,17.5,1
Archery,ccccccccccc,testing,1.0,3.0,
"""


def test_hacs_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "HACS_v1.1.1").mkdir()
    csv = tmp_path / "HACS_v1.1.1" / "HACS_clips_v1.1.1.csv"
    csv.write_text(HACS)
    ramp(tmp_path / "Archery" / "v_aaaaaaaaaaa.mp4")
    touch(tmp_path, ["Arm_wrestling/v_aaaaaaaaaaa.mp4", "Arm_wrestling/v_bbbbbbbbbbb.mp4"])
    listed = hacs(str(tmp_path), split="training")
    assert listed.class_names == ("Archery", "Arm wrestling")
    rows = [(v.id, v.label, v.start, v.end) for v in listed.videos]
    assert rows == [("aaaaaaaaaaa_0", 0, 0.0, 1.0), ("aaaaaaaaaaa_1", 1, 0.8, 1.2)]
    assert "1 training clips that do not show their action" in capsys.readouterr().err
    assert Path(listed.videos[1].path).parent.name == "Arm_wrestling"
    assert shown(listed.videos[0]) == list(range(25))
    (val,) = hacs(str(tmp_path), split="validation").videos
    assert (val.id, val.label, val.start) == ("bbbbbbbbbbb_0", 1, 15.5)
    with pytest.raises(UsageError, match="has no annotations"):
        hacs(str(tmp_path), split="testing")
    csv.write_text(HACS.replace("training,0.0,1.0,1", "training,0.0,1.0,0"))
    with pytest.raises(InputError, match=r"line 2: start, end and label are .* '0'"):
        hacs(str(tmp_path), split="training")


def test_hacs_segments(tmp_path: Path) -> None:
    write_anet(tmp_path / "HACS_segments_v1.1.1.json", taxonomy=False)
    touch(tmp_path / "videos", ["Drinking_beer/v_aaaaaaaaaaa.mp4", "Archery/v_aaaaaaaaaaa.webm"])
    options = {"annotations": "HACS_segments_v1.1.1.json"}
    listed = hacs(str(tmp_path), split="training", **options)  # type: ignore[arg-type]
    assert [Path(v.path).suffix for v in listed.videos] == [".mp4", ".webm"]
    with pytest.raises(InputError, match="none of the 1 videos"):
        hacs(str(tmp_path), split="validation", **options)  # type: ignore[arg-type]


HEADER = ("narration_id,participant_id,video_id,narration_timestamp,start_timestamp,"
          "stop_timestamp,start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,"
          "all_nouns,all_noun_classes\n")  # fmt: skip
TRAIN = HEADER + (
    "P01_01_0,P01,P01_01,00:00:01.089,00:00:00.40,00:00:00.80,11,21,open door,open,1,door,0,"
    "['door'],[0]\n"
    'P01_01_1,P01,P01_01,00:00:01.5,00:00:01.00,00:00:01.60,26,41,"put, down",put,0,tap,1,'
    "\"['tap', 'door']\",\"[1, 0]\"\n"
)
VALIDATION = HEADER + (
    "P02_101_0,P02,P02_101,00:00:00.560,01:02:03.5,01:02:04.00,223410,223440,open tap,open,1,"
    "tap,1,['tap'],[1]\n"
)


@pytest.fixture
def epic_root(tmp_path: Path) -> Path:
    (tmp_path / "EPIC_100_train.csv").write_text(TRAIN)
    (tmp_path / "EPIC_100_validation.csv").write_text(VALIDATION)
    verbs = (
        "id,key,instances,category\n0,put,\"['put', 'put-down']\",leave\n1,open,['open'],access\n"
    )
    (tmp_path / "EPIC_100_verb_classes.csv").write_text(verbs)
    nouns = (
        '"id","key","instances","category"\n0,"door","[\'door\']","a"\n1,"tap","[\'tap\']","b"\n'
    )
    (tmp_path / "EPIC_100_noun_classes_v2.csv").write_text(nouns)
    ramp(tmp_path / "P01" / "videos" / "P01_01.MP4")
    touch(tmp_path, ["videos/P02_101.MP4"])
    return tmp_path


def test_epic_videos(epic_root: Path) -> None:
    found = {}
    for target in ("verb", "noun", "action"):
        listed = epic_kitchens(str(epic_root), split="train", target=target)  # type: ignore[arg-type]
        found[target] = listed.class_names, [video.label for video in listed.videos]
    assert found["verb"] == (("put", "open"), [1, 0])
    assert found["noun"] == (("door", "tap"), [0, 1])
    # The validation split's `open tap` is among the actions.
    assert found["action"] == (("put tap", "open door", "open tap"), [1, 0])
    rows = [(v.id, v.start, v.end) for v in listed.videos]
    assert rows == [("P01_01_0", 0.4, 0.8), ("P01_01_1", 1.0, 1.6)]
    assert shown(listed.videos[0]) == list(range(10, 20))
    (val,) = epic_kitchens(str(epic_root), split="validation").videos
    assert (val.start, val.path) == (3723.5, str(epic_root / "videos" / "P02_101.MP4"))


def test_epic_frames(epic_root: Path) -> None:
    folder = epic_root / "P01" / "rgb_frames" / "P01_01"
    folder.mkdir(parents=True)
    for number, pixels in enumerate(np.arange(50, dtype=np.uint8) * 4 + 20, start=1):
        Image.new("RGB", (16, 12), (int(pixels),) * 3).save(folder / f"frame_{number:010d}.png")
    video = epic_kitchens(str(epic_root), split="train", frames=True).videos[0]
    assert (video.path, video.first_frame, video.num_frames) == (str(folder), 10, 10)
    assert shown(video) == list(range(10, 20))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("00:00:00.40", "0.4 s"), "line 2: '0.4 s' is not a time"),
        (lambda text: text.replace("put,0,", "put,7,"), "line 3: verb_class '7'"),
        (lambda text: text.replace("verb_class", "other"), "no column verb_class"),
        (lambda text: text.replace("P01_01_1", "P01_01_0"), "lists P01_01_0 twice"),
        (lambda text: text.replace("P01_01,00", "P01_09,00"), "none of the 1 videos"),
        (lambda text: HEADER, "lists no video"),
    ],
)
def test_epic_bad_rows(epic_root: Path, change: Callable[[str], str], message: str) -> None:
    (epic_root / "EPIC_100_train.csv").write_text(change(TRAIN))
    with pytest.raises(InputError, match=message):
        epic_kitchens(str(epic_root), split="train")
