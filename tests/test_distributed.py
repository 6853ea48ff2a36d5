"""Real gloo processes under torchrun: the same training, the same counts, errors that are heard."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import CLASSES, noise, torchrun, write_video

Cli = Callable[..., int]
pytestmark = pytest.mark.dist


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def test_evaluation_counts_are_the_same_on_1_2_and_3_ranks(
    cli: Cli, small_run: tuple[str, ...], tmp_path: Path
) -> None:
    assert cli("train", *small_run) == 0
    found, lines = [], []
    for ranks in (1, 2, 3):  # 13 videos: neither divides them
        views = ("run=runs/small", "eval.num_clips=3", "eval.batch_size=7")
        if ranks == 1:
            assert cli("eval", *views) == 0
        else:
            done = torchrun(ranks, "eval", *views, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert done.stdout.count("mean class") == 1, "rank 0 alone speaks"
        found.append(json.loads((tmp_path / "runs/small/eval/results.json").read_text()))
        lines.append((tmp_path / "runs/small/eval/predictions.jsonl").read_text())
    assert found[0]["num_videos"] == 13 and found[0]["num_views"] == 39
    assert found[0] == found[1] == found[2]
    assert lines[0] == lines[1] == lines[2]


def test_two_ranks_train_as_one_process_does(
    cli: Cli, small_run: tuple[str, ...], tmp_path: Path
) -> None:
    # Batch norm sees its own process's clips only, so a model with it differs by design.
    settings = (*small_run, "model.build._target_=my_models.tiny_without_batch_norm",
                "model.build.dropout=0.0", "mix=mixup", "train.max_steps=6")  # fmt: skip
    assert cli("train", *settings, "name=one") == 0
    assert cli("train", *settings, "train.accumulate=2", "name=accumulated") == 0
    done = torchrun(2, "train", *settings, "name=two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("best val top-1") == 1, "rank 0 alone speaks"
    one = losses(tmp_path / "runs/one")
    assert len(one) == 6
    assert losses(tmp_path / "runs/accumulated") == pytest.approx(one, rel=1e-5)
    assert losses(tmp_path / "runs/two") == pytest.approx(one, rel=1e-5)


def test_every_rank_gets_the_message_when_the_data_is_wrong(
    small_run: tuple[str, ...], tmp_path: Path
) -> None:
    done = torchrun(2, "train", *small_run, "data.root=/nowhere", cwd=tmp_path)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("vidtrain: ")]
    assert len(said) == 2 and all("/nowhere" in line for line in said)
    assert any(line.startswith("vidtrain: rank 1: ") for line in said)


def test_the_error_of_another_rank_is_not_lost(
    cli: Cli, small_run: tuple[str, ...], class_folders: Path, tmp_path: Path
) -> None:
    import shutil

    assert cli("train", *small_run, "train.max_steps=1") == 0
    root = shutil.copytree(class_folders, tmp_path / "data")
    victim = sorted((root / "val").rglob("*.mp4"))[4]  # the second group of four: rank 1's
    victim.write_bytes(b"")
    done = torchrun(2, "eval", "run=runs/small", f"data.root={root}", cwd=tmp_path)
    assert done.returncode != 0
    assert any(
        line.startswith("vidtrain: rank 1: ") and victim.name in line
        for line in done.stderr.splitlines()
    ), done.stderr


@pytest.mark.slow
def test_101_videos_count_once_on_1_to_8_ranks(
    cli: Cli, small_run: tuple[str, ...], tmp_path: Path
) -> None:
    """101 is prime: no number of processes divides it, and padding would change the counts."""
    assert cli("train", *small_run, "train.max_steps=1") == 0
    root = tmp_path / "many"
    for index in range(101):
        label = index % 3
        video = root / "val" / CLASSES[label] / f"{index:03d}.mp4"
        write_video(video, noise(index, 50 + 60 * label, 8 + index % 5))
        if index < 3:
            write_video(root / "train" / CLASSES[label] / "a.mp4", noise(index, 90, 8))
    found = []
    for ranks in (1, 2, 3, 4, 8):
        views = ("run=runs/small", f"data.root={root}", "eval.num_clips=3", "eval.batch_size=7")
        if ranks == 1:
            assert cli("eval", *views) == 0
        else:
            done = torchrun(ranks, "eval", *views, cwd=tmp_path)
            assert done.returncode == 0, done.stderr
        folder = tmp_path / "runs/small/eval"
        found.append(
            [(folder / name).read_text() for name in ("results.json", "predictions.jsonl")]
        )
    figures = json.loads(found[0][0])
    assert (figures["num_videos"], figures["num_views"]) == (101, 303)
    names = [json.loads(line)["id"] for line in found[0][1].splitlines()]
    assert len(set(names)) == len(names) == 101
    assert all(other == found[0] for other in found[1:])
