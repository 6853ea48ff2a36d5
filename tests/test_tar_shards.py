"""Tar shards: what lies in them, the list beside them, packing, and reading without unpacking."""

import importlib.util
import io
import json
import os
import re
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import CLASSES, REPO, TINY, noise, vidtrain, write_video

from vidtrain.data.reading import open_video
from vidtrain.data.sources.folder import folder
from vidtrain.data.sources.tar_shards import index_path, read_shard, tar_shards, write_index
from vidtrain.data.video import split_member
from vidtrain.errors import InputError

Members = Sequence[tuple[str, bytes]]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Three small video files of different content."""
    paths = [tmp_path_factory.mktemp("videos") / f"{level}.mp4" for level in (60, 120, 180)]
    for number, path in enumerate(paths):
        write_video(path, noise(number, int(path.stem), 12 + number))
    return [path.read_bytes() for path in paths]


def write_tar(path: Path, members: Members, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def pack(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Runs the script in this process; returns its exit code and what it printed."""
    spec = importlib.util.spec_from_file_location("pack_shards", REPO / "scripts/pack_shards.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def call(*args: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["pack_shards.py", *map(str, args)])
        code = 0
        try:
            script.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out + said.err

    return call


def test_all_kinds_of_labels_and_keys(tmp_path: Path, videos: list[bytes]) -> None:
    first, second, third = videos
    write_tar(tmp_path / "train-000008.tar", [
        ("./a/0001.mp4", first), ("./a/0001.cls", b"1\n"), ("./a/0001.left.jpg", b"no video"),
        ("b.json", b'{"label": 0, "fps": 25}'), ("b.MP4", second), ("readme", b"hello"),
    ])  # fmt: skip
    write_tar(tmp_path / "train-000009.tar", [
        ("long/" + "x" * 120 + ".mp4", third), ("long/" + "x" * 120 + ".txt", b"light\n"),
        ("c.mp4", first), ("c.json", b'{"label": "dark"}'),
    ])  # fmt: skip
    pattern = "train-{000008..000009}.tar"
    listed = tar_shards(str(tmp_path), split=pattern, class_names=("dark", "light"))
    rows = [(video.id, video.label) for video in listed.videos]
    assert rows == [("a/0001", 1), ("b", 0), ("long/" + "x" * 120, 1), ("c", 0)]
    for video, content in zip(listed.videos, (first, second, third, first), strict=True):
        tar, offset, size = split_member(video.path) or ("", 0, 0)
        assert Path(tar).read_bytes()[offset : offset + size] == content
    with pytest.raises(InputError, match="some are numbers"):
        tar_shards(str(tmp_path), split=pattern)
    numbers = tar_shards(str(tmp_path), split="train-000008.tar")
    names = tar_shards(str(tmp_path), split="train-*9.tar")
    assert numbers.class_names == ("0", "1") and names.class_names == ("dark", "light")
    (tmp_path / "classes.txt").write_text("grey\nlight\n")
    with pytest.raises(InputError, match=r"000009.tar: the label 'dark' of c is not one of the 2"):
        tar_shards(str(tmp_path), split="train-00000{8,9}.tar")


def test_frames_of_a_member_are_those_of_its_file(tmp_path: Path, class_folders: Path) -> None:
    listed = folder(str(class_folders), split="val")
    files = [Path(video.path) for video in listed.videos[:4]]
    members = [(f"{file.stem}.mp4", file.read_bytes()) for file in files]
    write_tar(tmp_path / "val-0.tar", [*members, *((f"{f.stem}.cls", b"0") for f in files)])
    inside = tar_shards(str(tmp_path), split="val-*.tar").videos
    for video, original in zip(inside, listed.videos, strict=False):
        with open_video(video) as here, open_video(original) as there:
            assert here.num_frames == there.num_frames and here.fps == there.fps
            wanted = [5, 0, there.num_frames - 1]
            assert np.array_equal(here.read(wanted), there.read(wanted))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.mp4", b"v")], "a is a video without a label"),
        ([("a.mp4", b"v"), ("a.json", b'{"fps": 25}')], "a is a video without a label"),
        ([("a.mp4", b"v"), ("a.cls", b"0"), ("b.cls", b"0")], "b is a label without a video"),
        ([("a.mp4", b"v"), ("a.avi", b"v"), ("a.cls", b"0")], "holds the key 'a' twice"),
        ([("a.mp4", b"v"), ("a.cls", b"fight")], "a.cls does not hold a label"),
        ([("a.mp4", b"v"), ("a.json", b"{")], "a.json does not hold a label"),
        ([("a.mp4", b"v"), ("a.json", b'{"label": [1]}')], r"the label \[1\] is neither"),
        ([("a.mp4", b"v"), ("a.txt", b"")], "the label '' is neither"),
        ([("a.mp4", b"v"), ("a.cls", b"-1")], "the label -1 of a is not one of the 0"),
    ],
)
def test_wrong_members(tmp_path: Path, members: Members, message: str) -> None:
    write_tar(tmp_path / "train-0.tar", members)
    with pytest.raises(InputError, match=message):
        tar_shards(str(tmp_path), split="train-*.tar")


def test_wrong_shards(tmp_path: Path, videos: list[bytes]) -> None:
    members = [("a.mp4", videos[0]), ("a.cls", b"0")]
    write_tar(tmp_path / "packed.tar", members, "w:gz")
    write_tar(tmp_path / "packed.tar.gz", members, "w:gz")
    write_tar(tmp_path / "wrong.name", members)
    write_tar(tmp_path / "one.tar", members)
    write_tar(tmp_path / "two.tar", members)
    whole = write_tar(tmp_path / "cut.tar", members[::-1]).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(videos[0]) // 2])
    (tmp_path / "text.tar").write_text("no tar file " * 200)
    for split, message in (
        ("packed.tar", "is compressed"), ("packed.tar.gz", "is compressed"),
        ("wrong.name", "must be called"), ("{one,two}.tar", "holds the key 'a', which .*one.tar"),
        ("cut.tar", "cannot be read to its end"), ("text.tar", "cannot be read to its end"),
        ("train-*.tar", "there is no shard"),
        ("one-{00..01}.tar", "there is no shard .*one-00.tar"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            tar_shards(str(tmp_path), split=split)
    with pytest.raises(InputError, match="is no folder"):
        tar_shards(str(tmp_path / "nowhere"), split="train-*.tar")


def test_the_list_beside_a_shard(
    tmp_path: Path, videos: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    shard = write_tar(tmp_path / "train-0.tar", [("a.mp4", videos[0]), ("a.cls", b"0")])
    scanned = read_shard(str(shard))
    assert write_index(str(shard)) == 1 and read_shard(str(shard)) == scanned
    content = json.loads(index_path(str(shard)).read_text())
    content["videos"][0][3] = 7  # what only the list says
    index_path(str(shard)).write_text(json.dumps(content))
    assert read_shard(str(shard))[0].label == 7 and not capsys.readouterr().err
    os.utime(shard, ns=(1, 1))
    assert read_shard(str(shard)) == scanned
    assert "is of another state of the shard" in capsys.readouterr().err
    for rubbish in ("{", "[]", '{"version": 1}', "null"):
        index_path(str(shard)).write_text(rubbish)
        assert read_shard(str(shard)) == scanned
        assert f"--index {shard}" in capsys.readouterr().err


def test_a_listed_shard_is_not_read(tmp_path: Path) -> None:
    members = [(f"{n:04d}.{s}", c) for n in range(500) for s, c in (("mp4", b"v"), ("cls", b"3"))]
    shard = write_tar(tmp_path / "train-0.tar", members)
    found = read_shard(str(shard))
    write_index(str(shard))
    status = shard.stat()
    shard.write_bytes(bytes(status.st_size))
    os.utime(shard, ns=(status.st_mtime_ns, status.st_mtime_ns))
    assert read_shard(str(shard)) == found and len(found) == 500


def test_packing(class_folders: Path, tmp_path: Path, pack: Callable[..., tuple[int, str]]) -> None:
    out = tmp_path / "shards"
    size = sum(path.stat().st_size for path in class_folders.rglob("train/**/*.mp4"))
    command = (out, "--size-mb", size / 2.5e6, "data=folder", f"data.root={class_folders}")
    code, said = pack(*command)
    assert code == 0, said
    assert f"vidtrain train data=tar_shards data.root={out}" in said
    assert sorted(path.name for path in out.glob("*.tar")) == [
        "train-000000.tar", "train-000001.tar", "train-000002.tar", "val-000000.tar",
        "val-000001.tar",
    ]  # fmt: skip
    inside, files = (
        tar_shards(str(out), split="train-*.tar"),
        folder(str(class_folders), split="train"),
    )
    assert inside.class_names == CLASSES == files.class_names
    by_key = {re.sub(r"\.mp4$", "", video.id): video for video in files.videos}
    assert by_key.keys() == {video.id for video in inside.videos}
    assert list(by_key) != [video.id for video in inside.videos]  # shuffled
    for video in inside.videos:
        tar, offset, count = split_member(video.path) or ("", 0, 0)
        assert (
            Path(tar).read_bytes()[offset : offset + count]
            == Path(by_key[video.id].path).read_bytes()
        )
        assert video.label == by_key[video.id].label

    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "train-000001.tar").unlink()  # a kill between two shards
    assert pack(*command)[0] == 0
    after = {path.name: path.read_bytes() for path in out.iterdir()}
    assert {n: c for n, c in before.items() if n != "train-000001.tar.index.json"} == {
        n: c for n, c in after.items() if n != "train-000001.tar.index.json"
    }
    code, said = pack(*command, "--listed")
    assert code == 1 and "is not of this data set, order and size" in said
    code, said = pack(out, "--size-mb", 1000, *command[3:])
    assert code == 1 and "train-000001.tar is not of this data set and size" in said
    index_path(str(out / "val-000000.tar")).unlink()
    code, said = pack("--index", out / "val-000000.tar")
    assert code == 0 and re.search(r"val-000000.tar: \d+ videos", said)
    assert index_path(str(out / "val-000000.tar")).is_file()


def test_packing_refuses_what_it_cannot_hold(
    class_folders: Path, tmp_path: Path, pack: Callable[..., tuple[int, str]]
) -> None:
    name = "train/dark/train00.mp4"
    for split in ("train", "val"):
        (tmp_path / f"{split}.txt").write_text(f"{name} 8 0\n")
    lists = (f"data.train={tmp_path}/train.txt", f"data.val={tmp_path}/val.txt")
    code, said = pack(tmp_path / "out", "data=list_file", f"data.root={class_folders}", *lists)
    assert code == 1 and "is a part of a video" in said
    code, said = pack(tmp_path / "out", "data=lits_file")
    assert code == 2 and "did you mean list_file" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_training_on_shards_is_training_on_their_files(
    class_folders: Path, tmp_path: Path, pack: Callable[..., tuple[int, str]]
) -> None:
    files = ("data=folder", f"data.root={class_folders}")
    assert pack(tmp_path / "out", "--listed", *files)[0] == 0
    losses = []
    for data in (files, ("data=tar_shards", f"data.root={tmp_path / 'out'}")):
        done = vidtrain(
            "train", *TINY, *data, "data.num_workers=1", "num_threads=1", "train.batch_size=4",
            "train.epochs=1", "train.log_every_steps=1", "eval.batch_size=4", f"name={data[0][5:]}",
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        text = (tmp_path / "runs" / data[0][5:] / "metrics.jsonl").read_text()
        losses.append([row for row in map(json.loads, text.splitlines()) if "loss" in row])
    assert losses[0] == losses[1] and len(losses[0]) == 7
