"""What run.json holds: the code, the settings, the packages, the machine, the data."""

import importlib.metadata
import json
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import REPO

from vidtrain.data.inventory import inventory
from vidtrain.data.video import Video, VideoList, tar_member
from vidtrain.distributed import World
from vidtrain.records import provenance

CPU = World(rank=0, size=1, device=torch.device("cpu"))
NAMES = ("walk", "run")


def git(folder: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *words],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a git checkout of its own."""
    folder = tmp_path / "checkout" / "nets"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("width = 8\n")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-q", "-m", "first")
    return folder


@pytest.fixture
def files(tmp_path: Path) -> VideoList:
    """Two files, a folder of three images, and a member of a tar file."""
    (tmp_path / "a.mp4").write_bytes(b"12345")
    (tmp_path / "b.mp4").write_bytes(b"123")
    frames = tmp_path / "frames"
    frames.mkdir()
    for name in ("1.jpg", "2.JPG", "3.png", "notes.txt"):
        (frames / name).write_bytes(b"x")
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(tmp_path / "a.mp4", "a.mp4")
    member = tar_member(str(tmp_path / "shard.tar"), 512, 5)
    paths = (str(tmp_path / "a.mp4"), str(tmp_path / "b.mp4"), str(frames), member)
    videos = [Video(path, index % 2, f"v{index}") for index, path in enumerate(paths)]
    return VideoList(tuple(videos), NAMES)


def test_files_are_counted(files: VideoList) -> None:
    found = inventory(files)
    assert found["files"] == 4
    assert found["bytes"] == 5 + 3 + 5
    assert found["images"] == 3
    assert found["classes"] == {"walk": 2, "run": 2}
    assert (found["missing"], found["missing_first"]) == (0, [])


def test_missing_empty_and_cut_videos_are_named(files: VideoList, tmp_path: Path) -> None:
    (tmp_path / "a.mp4").unlink()
    (tmp_path / "b.mp4").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    (tmp_path / "shard.tar").write_bytes((tmp_path / "shard.tar").read_bytes()[:515])
    videos = (*files.videos, Video(str(tmp_path / "empty"), 0, "empty"))
    found = inventory(replace(files, videos=videos))
    assert found["missing"] == 4
    assert found["missing_first"] == ["v0", "v1", "v3", "empty"]


def test_a_grown_file_changes_the_digest_of_sizes_alone(files: VideoList, tmp_path: Path) -> None:
    before, ids = inventory(files), provenance.fingerprint(files)
    (tmp_path / "b.mp4").write_bytes(b"1234")
    after = inventory(files)
    assert after["sizes_sha256"] != before["sizes_sha256"]
    assert after["bytes"] == before["bytes"] + 1
    assert provenance.fingerprint(files) == ids


def test_parts_of_one_file_are_one_file(files: VideoList) -> None:
    whole = files.videos[0]
    parts = (replace(whole, id="p0", end=1.0), replace(whole, id="p1", start=1.0))
    found = inventory(replace(files, videos=parts))
    assert (found["files"], found["bytes"]) == (1, 5)


def test_several_classes_of_a_video_are_all_counted(files: VideoList) -> None:
    both = replace(files.videos[0], labels=(0, 1))
    none = replace(files.videos[1], label=-1)
    listed = VideoList((both, none), NAMES, multi_label=True)
    assert inventory(listed)["classes"] == {"walk": 1, "run": 1}


def test_the_digest_that_checkpoints_hold_has_not_changed() -> None:
    video = Video("/anywhere/a.mp4", 1, "a.mp4", num_frames=9, labels=(1,))
    found = provenance.fingerprint(VideoList((video,), NAMES))
    assert found == {
        "videos": 1,
        "sha256": "278cf5e7345d7c7843814dd5bd60e80067cdd6003454b5a973663cb20383bfcb",
    }


def test_the_record_is_json_and_complete(files: VideoList) -> None:
    config = {"seed": 3, "data": {"decoder": "pyav"}, "optimizer": {"lr": 0.1}}
    data = {"train": (ids := provenance.fingerprint(files)), "prepared": None}
    found = provenance.record(CPU, seed=3, data=data, config=config, videos={"train": files})
    assert json.loads(json.dumps(found)) == found
    assert found["config"] == config
    assert found["packages"]["torch"] == importlib.metadata.version("torch")
    assert found["libraries"]["torch"] == torch.__version__
    assert len(found["packages"]) > len(provenance.PACKAGES)
    assert found["libraries"]["ffmpeg_of_pyav"]["libavcodec"]
    assert found["decoder"] == {"name": "pyav", "ffmpeg": None}
    assert found["data"]["train"] == {**ids, **inventory(files)}
    assert (found["seed"], found["world_size"], found["threads"]) == (3, 1, torch.get_num_threads())
    assert found["cpu"]
    assert found["deterministic"] is False


def test_the_hash_of_a_config_depends_on_values_alone() -> None:
    one, two = {"a": 1, "b": {"c": 2, "d": None}}, {"b": {"d": None, "c": 2}, "a": 1}
    assert provenance.hash_of(one) == provenance.hash_of(two)
    assert provenance.hash_of(one) != provenance.hash_of({**one, "a": 2})


def test_secrets_are_not_recorded() -> None:
    found = provenance.environment({
        "OMP_NUM_THREADS": "2", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONHASHSEED": "0",
        "VIDTRAIN_HF_TOKEN": "t", "VIDTRAIN_API_KEY": "k", "TORCH_PASSWORD": "p",
        "VIDTRAIN_MIRROR": "https://me:word@host/x", "HOME": "/home/me", "AWS_SECRET": "s",
    })  # fmt: skip
    assert found == {
        "OMP_NUM_THREADS": "2", "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "PYTHONHASHSEED": "0",
    }  # fmt: skip


def test_a_change_that_is_not_committed_shows(package: Path) -> None:
    clean = provenance.source(package)
    assert clean["commit"] == git(package, "rev-parse", "HEAD")
    assert clean["diff_sha256"] is None
    (package / "__init__.py").write_text("width = 16\n")
    changed = provenance.source(package)
    assert changed["commit"] == clean["commit"]
    assert changed["diff_sha256"] is not None
    assert changed["sha256"] != clean["sha256"]
    (package / "__init__.py").write_text("width = 32\n")
    assert provenance.source(package)["diff_sha256"] != changed["diff_sha256"]


def test_a_new_file_shows_in_the_hash(package: Path) -> None:
    before = provenance.source(package)["sha256"]
    (package / "more.py").write_text("")
    assert provenance.source(package)["sha256"] != before


def test_one_file_of_a_folder_is_looked_at_alone(package: Path) -> None:
    module = package.parent / "alone.py"
    module.write_text("depth = 2\n")
    found = provenance.source(module)
    assert (found["commit"], found["diff_sha256"]) == (None, None)  # not tracked
    (package / "__init__.py").write_text("width = 16\n")
    assert provenance.source(module) == found


def test_an_installed_package_is_not_of_the_checkout_around_it(package: Path) -> None:
    inside = package.parent / "env" / "vidtrain"
    inside.mkdir(parents=True)
    (inside / "__init__.py").write_text("")
    (package.parent / ".gitignore").write_text("env/\n")
    assert provenance.source(inside)["commit"] is None


def test_nothing_of_a_repository_is_executed(package: Path) -> None:
    marker = package.parent / "ran"
    script = package.parent / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {marker}\n")
    script.chmod(0o755)
    for key in ("core.fsmonitor", "diff.external", "core.pager", "diff.py.textconv"):
        git(package, "config", key, str(script))
    (package.parent / ".gitattributes").write_text("*.py diff=py\n")
    (package / "__init__.py").write_text("width = 16\n")
    assert provenance.source(package)["diff_sha256"]
    assert not marker.exists()


def test_own_packages_are_part_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDTRAIN_ALLOW_TARGETS", "my_models, no_such_package")
    found = provenance.code()
    assert set(found) == {"vidtrain", "conf", "my_models"}
    assert found["my_models"]["sha256"] == provenance.source_hash(REPO / "tests" / "my_models.py")
