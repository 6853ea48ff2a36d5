"""The sources of published data sets on their real annotation files.

Videos are empty stand-ins: a source looks at names alone.
"""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from annotations import ANNOTATIONS, needs_annotations, put, touch

from vidtrain.data.sources.diving48 import diving48
from vidtrain.data.sources.hmdb51 import hmdb51
from vidtrain.data.sources.jester import jester
from vidtrain.data.sources.moments_in_time import moments_in_time
from vidtrain.data.sources.something_something import something_something
from vidtrain.data.sources.ucf101 import ucf101
from vidtrain.data.video import VideoList
from vidtrain.errors import InputError, UsageError

pytestmark = needs_annotations


def names_of(label_map: str) -> tuple[str, ...]:
    return tuple((ANNOTATIONS / "mmaction2" / "label_maps" / label_map).read_text().splitlines())


def ends(listed: VideoList) -> list[tuple[str, int, str]]:
    """Id, label and class of the first and the last video."""
    return [(v.id, v.label, listed.class_names[v.label])
            for v in (listed.videos[0], listed.videos[-1])]  # fmt: skip


@pytest.fixture(scope="module")
def ucf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ucf")
    for name in ("classInd.txt", *(f"{k}list0{n}.txt" for n in "123" for k in ("train", "test"))):
        lines = put(f"ucf101/{name}", root / "ucfTrainTestlist" / name).read_text().split()
        touch(root / "UCF-101", (line for line in lines if line.endswith(".avi")))
    return root


def test_ucf101(ucf: Path) -> None:
    counts = {}
    for number in (1, 2, 3):
        listed = ucf101(str(ucf), split="test", split_number=number)
        counts[number] = (len(listed.videos), len({v.label for v in listed.videos}))
        assert all(os.path.isabs(v.path) and os.path.isfile(v.path) for v in listed.videos)
        assert all(listed.class_names[v.label] == v.id.split("/")[0] for v in listed.videos)
    assert counts == {1: (3783, 101), 2: (3734, 101), 3: (3696, 101)}
    listed = ucf101(str(ucf), split="test")
    assert listed.class_names[:2] == ("ApplyEyeMakeup", "ApplyLipstick")
    assert listed.class_names[-1] == "YoYo" and len(listed.class_names) == 101
    assert ends(listed) == [
        ("ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01", 0, "ApplyEyeMakeup"),
        ("YoYo/v_YoYo_g07_c04", 100, "YoYo"),
    ]
    trained = ucf101(str(ucf), split="train")
    assert len(trained.videos) == 4481 and ends(trained)[1][1:] == (46, "JumpingJack")
    assert not {v.id for v in trained.videos} & {v.id for v in listed.videos}
    turned = ucf101(str(ucf), split="train", class_names=trained.class_names[::-1])
    assert turned.videos[0].label == 100 and turned.class_names[100] == "ApplyEyeMakeup"


def test_ucf101_without_class_folders(ucf: Path, tmp_path: Path) -> None:
    lines = put("ucf101/testlist01.txt", tmp_path / "testlist01.txt").read_text().split()
    put("ucf101/classInd.txt", tmp_path / "classInd.txt")
    touch(tmp_path / "videos", (line.split("/")[1].replace(".avi", ".MP4") for line in lines))
    flat = ucf101(str(tmp_path), split="test")
    assert [(v.id, v.label) for v in flat.videos] == [
        (v.id, v.label) for v in ucf101(str(ucf), split="test").videos
    ]
    assert flat.videos[0].path == str(tmp_path / "videos" / "v_ApplyEyeMakeup_g01_c01.MP4")


def test_ucf101_mistakes(ucf: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has the splits train, test, not 'val'; set data.train"):
        ucf101(str(ucf), split="val")
    with pytest.raises(UsageError, match=r"split_number=4 must be 1, 2 or 3"):
        ucf101(str(ucf), split="train", split_number=4)
    with pytest.raises(
        InputError, match=r"no classInd.txt in .* or its folders ucfTrainTestlist, .*put the"
    ):
        ucf101(str(tmp_path), split="train")
    put("ucf101/classInd.txt", tmp_path / "classInd.txt")
    file = tmp_path / "trainlist01.txt"
    file.write_text("Archery/v_Archery_g01_c01.avi 4\r\n")
    with pytest.raises(
        InputError, match=r"trainlist01.txt, line 1: .*g01_c01.avi 4' is not .*with"
    ):
        ucf101(str(tmp_path), split="train")
    file.write_text("Archery/v_Archery_g01_c01.avi 3\r\n" * 2)
    touch(tmp_path, ["videos/Archery/v_Archery_g01_c01.avi"])
    with pytest.raises(InputError, match=r"lists Archery/v_Archery_g01_c01 twice; remove one"):
        ucf101(str(tmp_path), split="train")


def test_hmdb51(tmp_path: Path) -> None:
    places = sorted((ANNOTATIONS / "hmdb51" / "splits").glob("*_split1.txt"))
    for place in places:
        put(f"hmdb51/splits/{place.name}", tmp_path / "testTrainMulti_7030_splits" / place.name)
        name = place.name.removesuffix("_test_split1.txt")
        videos = (line.rsplit(" ", 2)[0] for line in place.read_text().splitlines())
        touch(tmp_path / "hmdb51_org" / name, videos)
    trained = hmdb51(str(tmp_path), split="train")
    tested = hmdb51(str(tmp_path), split="test")
    assert trained.class_names == tested.class_names == names_of("hmdb51_label_map.txt")
    assert set(Counter(v.label for v in trained.videos).values()) == {70}
    assert set(Counter(v.label for v in tested.videos).values()) == {30}
    assert (len(trained.videos), len(tested.videos)) == (3570, 1530)
    assert ends(trained)[1] == ("wave/winKen_wave_u_cm_np1_ri_bad_1", 50, "wave")
    odd = [v for v in trained.videos if "(Rad)Schlag_die_Bank!_cartwheel" in v.id]
    assert len(odd) == 1 and all(os.path.isfile(v.path) for v in odd)
    with pytest.raises(
        InputError, match=r"there is no CLASS_test_split2.txt in .*put the official"
    ):
        hmdb51(str(tmp_path), split="train", split_number=2)
    for name in ("brush_hair", "turn", "wave"):
        file = f"{name}_test_split2.txt"
        put(f"hmdb51/splits/{file}", tmp_path / "testTrainMulti_7030_splits" / file)
    second = hmdb51(str(tmp_path), split="test", split_number=2, class_names=trained.class_names)
    per_class = Counter(second.class_names[v.label] for v in second.videos)
    assert per_class == {"brush_hair": 30, "turn": 30, "wave": 30}
    with pytest.raises(InputError, match=r"holds the class 'wave', which is not one of the 50"):
        hmdb51(str(tmp_path), split="test", class_names=trained.class_names[:50])


def test_jester(tmp_path: Path) -> None:
    for name in ("labels", "train", "validation", "test"):
        put(f"jester/jester-v1-{name}.csv", tmp_path / "annotations" / f"jester-v1-{name}.csv")
    for part in ("train", "validation"):
        for line in (ANNOTATIONS / "jester" / f"jester-v1-{part}.csv").read_text().split("\n"):
            (tmp_path / "20bn-jester-v1" / line.split(";")[0]).mkdir(parents=True, exist_ok=True)
    trained = jester(str(tmp_path), split="train")
    assert trained.class_names == names_of("jester_label_map.txt")
    assert len(trained.videos) == 1559 and trained.videos[0].path == str(
        tmp_path / "20bn-jester-v1" / "34870"
    )
    assert ends(trained) == [
        ("34870", 24, "Drumming Fingers"), ("70070", 5, "Pulling Hand In"),
    ]  # fmt: skip
    assert len(jester(str(tmp_path), split="val").videos) == 1564
    with pytest.raises(InputError, match=r"test.csv, line 1: '109621' is not `ID;CLASS`; a test"):
        jester(str(tmp_path), split="test")
    quick = put("jester/jester-v1-train-quick-testing.csv",
                tmp_path / "annotations" / "jester-v1-train.csv")  # fmt: skip
    assert b"\r\n" in quick.read_bytes()
    assert [v.label for v in jester(str(tmp_path), split="train").videos[:2]] == [24, 1]


@pytest.mark.parametrize(
    ("prefix", "source", "count"),
    [
        ("something-something-v2-", "something-something-v2-", 700),
        ("labels/", "", 300),
    ],
)
def test_something_something(tmp_path: Path, prefix: str, source: str, count: int) -> None:
    for part in ("labels", "validation"):
        put(f"ssv2/{source}{part}.json", tmp_path / f"{prefix}{part}.json")
    rows = json.loads((tmp_path / f"{prefix}validation.json").read_text())
    touch(tmp_path / "20bn-something-something-v2", (f"{row['id']}.webm" for row in rows))
    listed = something_something(str(tmp_path), split="val")
    assert len(listed.class_names) == 174 and len(listed.videos) == count
    assert listed.class_names[0] == "Approaching something with your camera"
    assert listed.class_names[173] == "Wiping something off of something"
    assert ends(listed)[0] == ("74225", 140, "Spinning something that quickly stops spinning")
    assert listed.videos[0].path.endswith("20bn-something-something-v2/74225.webm")
    bracketed = (ANNOTATIONS / "ssv2" / "category.txt").read_text().splitlines()
    again = something_something(str(tmp_path), split="val", class_names=bracketed)
    # That file's order is not the official one: names keep their meaning, numbers would not.
    assert again.videos[0].label == 135 and bracketed[135].startswith("Spinning [something] that")
    frames = (ANNOTATIONS / "ssv2" / "uniformer_sthv2_val_frames.txt").read_text().splitlines()
    stated = {line.split()[0]: int(line.split()[2]) for line in frames}
    assert [v.label for v in listed.videos] == [stated[v.id] for v in listed.videos]


def test_something_something_test_split(tmp_path: Path) -> None:
    for name in ("labels.json", "something-something-v2-test.json"):
        put(f"ssv2/{name}", tmp_path / name.replace("something-something-v2-", ""))
    with pytest.raises(InputError, match=r"1420 has no template, the test split comes without"):
        something_something(str(tmp_path), split="test")
    answers = put("ssv2/test-answers.csv", tmp_path / "labels" / "test-answers.csv").read_text()
    for line in answers.splitlines():
        (tmp_path / "frames" / line.split(";")[0]).mkdir(parents=True)
    listed = something_something(str(tmp_path), split="test")
    assert len(listed.videos) == 657 and ends(listed)[0][::2] == (
        "208583", "Moving something closer to something",
    )  # fmt: skip


def test_moments_in_time(tmp_path: Path) -> None:
    names = names_of("mit_label_map.txt")
    lines = "".join(f"{name},{number}\n" for number, name in enumerate(names))
    (tmp_path / "moments_categories.txt").write_text(lines)
    # The form that the data set's read-me gives: file, label, votes for, votes against.
    (tmp_path / "trainingSet.csv").write_text(
        "blocking/getty-karate-video-id635808620_4.mp4,blocking,3,0\n"
        "dancing/yt-5of6ffo6-Bw_205.mp4,dancing,4,1\n"
        "adult+male+singing/a.b.mp4,adult+male+singing,3,1\n"
    )
    folders = ["blocking/getty-karate-video-id635808620_4", "dancing/yt-5of6ffo6-Bw_205"]
    touch(tmp_path / "training", (f"{name}.mp4" for name in folders))
    with pytest.raises(
        InputError, match=r"1 of the 3 videos \(33.33%\).*adult\+male\+singing/a.b;"
    ):
        moments_in_time(str(tmp_path), split="train")
    touch(tmp_path / "training", ["adult+male+singing/a.b.mp4"])
    listed = moments_in_time(str(tmp_path), split="train")
    assert listed.class_names == names and names[0] == "clapping" and len(names) == 339
    assert [names[v.label] for v in listed.videos] == ["blocking", "dancing", "adult+male+singing"]
    (tmp_path / "trainingSet.csv").write_text("a.mp4,dancing,4,1\n")
    with pytest.raises(InputError, match=r"trainingSet.csv, line 1: 'a.mp4,dancing,4,1' is not"):
        moments_in_time(str(tmp_path), split="train")
    (tmp_path / "moments_categories.txt").write_text("clapping,0\npraying,2\n")
    with pytest.raises(InputError, match=r"classes are not numbered 0, 1, 2"):
        moments_in_time(str(tmp_path), split="train")


def test_diving48(tmp_path: Path) -> None:
    names = names_of("diving48_label_map.txt")
    vocabulary = json.dumps([name.split("+") for name in names])
    (tmp_path / "Diving48_vocab.json").write_text(vocabulary)
    rows = [
        {"vid_name": "-mmq0PT-u8k_00155", "label": 0, "start_frame": 0, "end_frame": 48},
        {"vid_name": "2x00lRzlTVQ_00000", "label": 47, "start_frame": 0, "end_frame": 70},
    ]
    (tmp_path / "Diving48_V2_test.json").write_text(json.dumps(rows))
    touch(tmp_path / "rgb", (f"{row['vid_name']}.mp4" for row in rows))
    listed = diving48(str(tmp_path), split="test")
    assert listed.class_names == names and len(names) == 48
    assert ends(listed)[1] == ("2x00lRzlTVQ_00000", 47, "Reverse+Dive+NoTwis+TUCK")
    assert listed.videos[0].num_frames is None
    rows[1]["label"] = 48
    (tmp_path / "Diving48_V2_test.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"label 48 of 2x00lRzlTVQ_00000 is outside the range 0"):
        diving48(str(tmp_path), split="test")
    (tmp_path / "Diving48_V2_test.json").write_text("[{")
    with pytest.raises(InputError, match=r"Diving48_V2_test.json is not JSON: .*fetch it again"):
        diving48(str(tmp_path), split="test")
