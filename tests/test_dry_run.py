"""`train.dry_run=true`: built, run and told, with no data and nothing left behind."""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import REPO, torchrun

from vidtrain.config.train import TrainConfig
from vidtrain.data.clip_samplers import RandomClip
from vidtrain.data.generated import noise_batches
from vidtrain.data.loading import Reading, TrainClips
from vidtrain.data.multigrid import Multigrid
from vidtrain.data.plan import Plan
from vidtrain.data.sources.generated import generated
from vidtrain.report.terminal import duration
from vidtrain.running.dry_run import occurrences

Cli = Callable[..., int]
PUBLISHED = """
defaults:
  - kinetics400
  - _self_
root: /nowhere
published: {num_classes: 7, num_train: 1200, num_val: 90}
"""


@pytest.fixture
def absent(tmp_path: Path) -> tuple[str, ...]:
    """Arguments of a training whose data is not there."""
    for group, name, text in (
        ("data", "absent", PUBLISHED),
        ("model", "tiny", (REPO / "tests/my_conf/model/tiny.yaml").read_text("utf-8")),
    ):
        folder = tmp_path / "conf" / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text, "utf-8")
    return (
        "--config-dir", str(tmp_path / "conf"), "model=tiny", "data=absent", "num_threads=1",
        "train.dry_run=true", "train.batch_size=8", "train.epochs=3", "eval.batch_size=4",
    )  # fmt: skip


def test_it_goes_by_published_numbers_where_the_data_is_not_there(
    cli: Cli, absent: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", *absent, "augment=randaugment", "average=ema", "train.accumulate=2") == 0
    said = capsys.readouterr().err
    assert "1200 training and 90 validation videos, 7 classes" in said
    assert "training step of 8 clips (2 x 1 micro-batches of 4 clips)" in said
    assert re.search(r"[\d.]+ M parameters, [\d.]+ M trained, [\d.e-]+ GFLOPs a clip", said)
    assert "for 450 steps (3 epochs)" in said
    told = [line for line in said.splitlines() if line.endswith(" ...")]
    assert [line.split(":")[0] for line in told] == ["dry run"] * 5, (
        "it is not silent until its end"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["conf"], "no run folder"


def test_splits_of_other_names_keep_their_numbers_of_videos(
    cli: Cli, absent: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    splits = ("data.train=training.txt", "data.val=held_out.txt")
    assert cli("train", *absent, *splits, "train.batch_size=100", "train.accumulate=auto") == 0
    said = capsys.readouterr().err
    assert "1200 training and 90 validation videos" in said and "for 36 steps (3 epochs)" in said


def test_real_lists_come_before_published_numbers(
    cli: Cli, small_run: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", *small_run, "train.dry_run=true") == 0
    assert "24 training and 13 validation videos, 3 classes" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []


def test_neither_data_nor_numbers_is_the_sources_own_error(
    cli: Cli, absent: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", *absent, "data.published=null") == 1
    assert "/nowhere" in capsys.readouterr().err


def test_wrong_settings_are_refused_as_in_a_training(
    cli: Cli, absent: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", *absent, "train.accumulate=3") == 2
    assert "train.batch_size=8" in capsys.readouterr().err
    assert cli("train", *absent, "optimizer.lrr=1") == 2


def test_generated_batches_are_shaped_and_keyed_as_the_plan_says() -> None:
    listed = generated("", split="train", num_classes=3, num_train=40, num_val=4)
    assert len(listed.videos) == 40 and listed.class_names == ("class 0", "class 1", "class 2")
    assert {video.label for video in listed.videos} == {0, 1, 2}
    clips = TrainClips(
        listed, RandomClip(8, 2), num_frames=8, crop_size=16, short_side=(16, 20), flip=True,
        seed=5, reading=Reading(), views_per_decode=2,
    )  # fmt: skip
    shapes = Multigrid(num_frames=8, crop_size=16, short_cycle=(0.5,), stages=(1, 0))
    plan = Plan(40, batch_size=4, accumulate=1, epochs=1, world_size=1, views_per_decode=2,
                shapes=shapes)  # fmt: skip
    batches = noise_batches(clips, plan, rank=0, start_step=0)
    small, full = next(batches), next(batches)
    assert tuple(small.clips.shape) == (16, 8, 8, 8, 3)
    assert tuple(full.clips.shape) == (4, 8, 16, 16, 3) and full.clips.dtype == torch.uint8
    keys = next(plan.micro_batches(seed=5, rank=0, start_step=0))
    assert small.videos.tolist() == [key[1] for key in keys] * 2
    assert small.labels.tolist() == [index % 3 for index in small.videos.tolist()]
    again = next(noise_batches(clips, plan, rank=0, start_step=0))
    assert torch.equal(again.clips, small.clips) and torch.equal(again.draws, small.draws)


@pytest.mark.parametrize("shapes", [
    None,
    Multigrid(num_frames=8, crop_size=16, short_cycle=(0.5, 0.7), stages=(1, 0)),
    Multigrid(num_frames=8, crop_size=16, long_cycle=((0.5, 0.5), (1, 1)), stages=(3, 2, 1)),
    Multigrid(num_frames=8, crop_size=16, long_cycle=((0.5, 0.5), (1, 1)), short_cycle=(1, 0.5)),
])  # fmt: skip
@pytest.mark.parametrize("last", [1, 7, 100, 10**6])
def test_shapes_are_counted_as_a_walk_over_all_steps_counts_them(
    shapes: Multigrid | None, last: int
) -> None:
    plan = Plan(301, batch_size=4, accumulate=1, epochs=12, world_size=1, shapes=shapes)
    last = min(last, plan.total_steps)
    walked = [plan.shape(step) for step in range(last)]
    first, number = occurrences(plan, last)
    assert number == Counter(walked)
    assert first == {shape: walked.index(shape) for shape in walked}
    assert last < plan.total_steps or list(first) == list(plan.all_shapes or [None])


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.0789, "0.0789 s"), (119.0, "119 s"), (150.0, "2.5 min"), (7200.0, "2 h"),
     (86400.0, "24 h"), (10 * 86400.0, "10 days")],
)  # fmt: skip
def test_times_are_said_in_the_unit_that_fits(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_what_is_one_is_said_as_one(
    cli: Cli, absent: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    one = ("train.batch_size=1", "train.epochs=1", "train.max_steps=1", "eval.batch_size=1")
    assert cli("train", *absent, *one) == 0
    said = capsys.readouterr().err
    assert "training step of 1 clip (1 x 1 micro-batch of 1 clip)" in said
    assert "evaluation of 1 view:" in said
    assert "for 1 step (train.max_steps, of 1200 in 1 epoch)" in said


@pytest.mark.slow
def test_processes_that_share_the_weights_try_them_together(
    absent: tuple[str, ...], tmp_path: Path
) -> None:
    done = torchrun(2, "train", *absent, "parallel=fsdp", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "(1 x 2 micro-batches of 4 clips)" in done.stderr
    assert float(re.findall(r"checkpoint ([\d.]+) MB", done.stderr)[0]) > 0


def test_a_dry_run_is_off_by_default() -> None:
    assert TrainConfig().train.dry_run is False
