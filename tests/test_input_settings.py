"""The input path's settings through the real command line: bad videos, quarantine, views, index."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import loaded, noise, write_video

Cli = Callable[..., int]


@pytest.fixture
def broken(class_folders: Path, tmp_path: Path) -> Path:
    """The class folders with one training video that is none."""
    root = shutil.copytree(class_folders, tmp_path / "broken")
    (root / "train" / "dark" / "train00.mp4").write_bytes(b"no video at all")
    return root


def rows(name: str) -> list[dict[str, Any]]:
    text = Path(f"runs/{name}/metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def weights(name: str) -> dict[str, torch.Tensor]:
    return loaded(f"runs/{name}")["model"]


def test_a_bad_video_is_replaced_within_the_budget_and_said_once(
    cli: Cli, small_run: tuple[str, ...], broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*small_run, f"data.root={broken}", "data.max_bad_fraction=0.05")
    assert cli("train", *settings, "name=whole") == 0
    said = capsys.readouterr().err
    assert said.count("another video stands in for dark/train00.mp4 (1 of at most 1)") == 1
    assert [row for row in rows("whole") if row["kind"] == "train"][-1]["bad_videos"] == 1
    # The same weights with loader processes and after a stop; the count goes on too.
    assert cli("train", *settings, "name=parts", "data.num_workers=2", "train.max_steps=5") == 0
    assert cli("train", *settings, "name=parts") == 0
    assert all(torch.equal(a, weights("parts")[n]) for n, a in weights("whole").items())
    found = loaded("runs/parts")["bad_videos"]
    assert list(found) == ["dark/train00.mp4"]


def test_past_the_budget_training_stops_with_the_list(
    cli: Cli, small_run: tuple[str, ...], broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", *small_run, f"data.root={broken}", "name=none") == 1
    assert "train00.mp4 is not a video file" in capsys.readouterr().err
    (broken / "train" / "grey" / "train01.mp4").write_bytes(b"neither")
    settings = (*small_run, f"data.root={broken}", "data.max_bad_fraction=0.05")
    assert cli("train", *settings) == 1
    said = capsys.readouterr().err
    assert "2 videos cannot be read, more than data.max_bad_fraction=0.05 allows (1)" in said
    assert "dark/train00.mp4: " in said and "grey/train01.mp4: " in said


def test_evaluation_never_replaces(
    cli: Cli, small_run: tuple[str, ...], broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (broken / "val" / "dark" / "val00.mp4").write_bytes(b"no video at all")
    settings = (*small_run, f"data.root={broken}", "data.max_bad_fraction=0.5")
    assert cli("train", *settings) == 1
    assert "val00.mp4 is not a video file" in capsys.readouterr().err


def test_check_finds_what_training_then_leaves_out(
    cli: Cli, small_run: tuple[str, ...], broken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("data=folder", f"data.root={broken}", "workers=1")
    assert cli("check", *data, "output=checked") == 1
    listed = Path("checked/quarantine.jsonl")
    (entry,) = [json.loads(line) for line in listed.read_text().splitlines()]
    assert entry["path"].endswith("train00.mp4")
    capsys.readouterr()
    settings = (*small_run, f"data.root={broken}", f"data.quarantine={listed}")
    assert cli("train", *settings) == 0
    assert (
        "data.quarantine leaves out 1 videos (dark/train00.mp4); 23 remain"
        in capsys.readouterr().err
    )
    assert json.loads(Path("runs/small/run.json").read_text())["data"]["train"]["videos"] == 23


def test_a_run_on_prepared_videos_says_so(cli: Cli, class_folders: Path, small_run: Any) -> None:
    data = ("data=folder", f"data.root={class_folders}")
    assert cli("prepare", *data, "output=prepared", "short_side=32", "workers=1") == 0
    assert cli("train", *small_run, "data.prepared=prepared", "train.max_steps=2") == 0
    record = json.loads(Path("runs/small/run.json").read_text())["data"]["prepared"]
    assert record["settings"]["short_side"] == 32 and len(record["sha256"]) == 64
    assert cli("eval", "run=runs/small") == 0


def test_everything_that_draws_is_the_same_at_any_worker_count_and_after_a_stop(
    cli: Cli, small_run: tuple[str, ...]
) -> None:
    settings = (
        *small_run, "augment=strong", "data.views_per_decode=2", "mix=mixup_cutmix",
        "model.input.crop_area=[0.2,1.0]", "average=ema", "average.decay=0.9", "train.epochs=2",
    )  # fmt: skip
    assert cli("train", *settings, "name=whole") == 0
    assert rows("whole")[-2]["step"] == 24  # 24 videos x 2 views, in batches of 4, twice
    assert cli("train", *settings, "name=parts", "data.num_workers=2", "train.max_steps=7") == 0
    assert cli("train", *settings, "name=parts", "data.num_workers=1") == 0
    assert all(torch.equal(a, weights("parts")[n]) for n, a in weights("whole").items())
    losses = [[r["loss"] for r in rows(name) if r["kind"] == "train"]
              for name in ("whole", "parts")]  # fmt: skip
    assert losses[0] == losses[1]
    assert cli("train", *small_run, "data.views_per_decode=3") == 2


def test_the_packet_index_is_kept_and_used(
    cli: Cli, small_run: tuple[str, ...], class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("data=folder", f"data.root={class_folders}", "data.index=kept.sqlite")
    assert cli("train", *small_run, "data.index=kept.sqlite", "data.num_workers=1",
               "train.max_steps=6") == 0  # fmt: skip
    size = Path("kept.sqlite").stat().st_size
    assert size > 10_000
    capsys.readouterr()
    assert cli("index", *data, "workers=1") == 0
    assert "37" in capsys.readouterr().out  # files of both splits


def test_parts_of_videos_are_read_by_time(cli: Cli, tmp_path: Path, small_run: Any) -> None:
    """Two labelled parts of each video, from a table; the other half would be another class."""
    lines = ["path,label,start,end"]
    for index in range(6):
        halves = [noise(index, level, 25) for level in (40, 200)]
        write_video(tmp_path / f"{index}.mp4", torch.cat([torch.from_numpy(h) for h in halves])
                    .numpy())  # fmt: skip
        lines += [f"{index}.mp4,dark,0,1", f"{index}.mp4,light,1,2"]
    (tmp_path / "all.csv").write_text("\n".join(lines) + "\n")
    settings = [s for s in small_run if not s.startswith("data")]
    assert cli(
        "train", *settings, "data=csv_file", f"data.root={tmp_path}", "data.train=all.csv",
        "data.val=all.csv", "data.source.start_column=start", "data.source.end_column=end",
        "data.num_workers=0", "train.epochs=12", "optimizer.lr=0.01",
    ) == 0  # fmt: skip
    assert max(r["top1"] for r in rows("small") if r["kind"] == "val") == 1.0


def test_several_classes_a_video_are_refused_by_name(
    cli: Cli, small_run: Any, class_folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = sorted((class_folders / "train").rglob("*.mp4"))[:8]
    text = "".join(
        f"{path.relative_to(class_folders)} 0 {n % 2}\n" for n, path in enumerate(videos)
    )
    Path("all.txt").write_text(text.replace(" 0 0\n", " 0\n"))
    settings = [s for s in small_run if not s.startswith("data")]
    data = ("data=list_file", f"data.root={class_folders}", "data.train=all.txt",
            "data.val=all.txt", "data.source.columns='path labels'")  # fmt: skip
    assert cli("train", *settings, *data) == 2
    assert "gives a video several classes" in capsys.readouterr().err
    assert cli("stats", *data, "workers=1", "output=stats") == 0


@pytest.mark.parametrize("model", ["mvit_base_16x4", "videomae_s", "hiera_base", "mvit_v2_s"])
def test_a_network_of_one_size_is_not_given_another_to_validate_on(
    cli: Callable[..., int], model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (f"model={model}", "model.input.crop_size=128", "model.input.short_side=[128,128]")
    assert cli("train", *words, "run_dir=none") == 2
    said = capsys.readouterr().err
    assert (
        "model.input.eval_crop_size=224, but" in said
        and "set model.input.eval_crop_size=128" in said
    )
