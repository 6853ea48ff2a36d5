"""Options of the training loop on the real command line: what ends it, what it keeps and says."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import loaded, same_state
from test_stages import FULL

Cli = Callable[..., int]


def rows(kind: str, run: str = "small") -> list[dict]:
    text = Path(f"runs/{run}/metrics.jsonl").read_text()
    return [row for row in map(json.loads, text.splitlines()) if row["kind"] == kind]


def test_training_ends_early_and_stays_ended(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    # A rate of nothing: the first validation is never bettered.
    settings = (*small_run, "optimizer.lr=1e-20", "train.epochs=6", "train.patience=2",
                "save.metric=top1", "save.every='100 epochs'", "model.build.dropout=0",
                "finetune.freeze_norm=true")  # fmt: skip
    assert cli("train", *settings) == 0
    assert "ended early: 2 validations without a better top-1" in capsys.readouterr().err
    assert [row["step"] for row in rows("val")] == [6, 12, 18]
    found = loaded("runs/small")
    assert found["step"] == 18 and found["progress"]["stale"] == 2
    assert cli("train", *settings) == 0
    assert loaded("runs/small")["step"] == 18, "the same command does not train on"
    assert cli("train", *settings, "train.patience=9") == 2
    assert "train.patience: 2 -> 9" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("metric", "best"), [("loss", min), pytest.param("top1", max, marks=pytest.mark.slow)]
)
def test_the_best_are_kept_by_any_figure(
    cli: Cli, small_run: tuple[str, ...], metric: str, best: Callable
) -> None:
    settings = (*small_run, "train.epochs=5", f"save.metric={metric}", "save.keep_best=2",
                "save.keep_last=1")  # fmt: skip
    assert cli("train", *settings) == 0
    vals = {row["step"]: row[metric] for row in rows("val")}
    sign = 1 if best is min else -1
    ranked = sorted(vals, key=lambda step: (sign * vals[step], step))[:2]
    folder = Path("runs/small/checkpoints")
    assert (folder / "best").resolve().name == f"step_{ranked[0]:08d}"
    kept = {path.name for path in folder.glob("step_*")}
    assert kept == {f"step_{step:08d}" for step in {*ranked, 30}}


def test_an_unknown_figure_is_answered_with_those_there_are(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", *small_run, "train.max_steps=1", "save.metric=tpo1") == 2
    assert "did you mean top1" in capsys.readouterr().err
    # Of three classes the five best are no choice, which is said before anything is trained.
    assert cli("train", *small_run, "train.max_steps=1", "save.metric=top5") == 2
    assert "save.metric=top5 is no figure of this task's" in capsys.readouterr().err
    assert not Path("runs/small").exists()


def test_both_sets_of_weights_are_judged(cli: Cli, small_run: tuple[str, ...]) -> None:
    assert cli("train", *small_run, "average=ema", "average.decay=0.9") == 0
    assert [row["step"] for row in rows("val")] == [row["step"] for row in rows("val_raw")]
    assert rows("val")[0]["loss"] != rows("val_raw")[0]["loss"]
    # Later stages take the averaged ones.
    assert cli("eval", "run=runs/small", "checkpoint=last") == 0
    results = json.loads(Path("runs/small/eval/results.json").read_text())
    assert results["loss"] == rows("val")[-1]["loss"]


@pytest.mark.parametrize("average", ["swa", pytest.param("ema", marks=pytest.mark.slow)])
def test_averages_and_precise_statistics_go_on_exactly(
    cli: Cli, small_run: tuple[str, ...], average: str
) -> None:
    # The last validation takes all statistics anew, so where a part ended does not matter.
    settings = (*small_run, *FULL, f"average={average}", "train.precise_bn=2", "train.epochs=4",
                "train.accumulate=1", "validate.every='4 epochs'")  # fmt: skip
    if average == "swa":
        settings = (*(s for s in settings if s != "average.decay=0.9"), "average.start='1 epoch'",
                    "average.every='2 steps'")  # fmt: skip
    assert cli("train", *settings, "name=whole") == 0
    assert cli("train", *settings, "name=parts", "save.every='7 steps'", "train.max_steps=7") == 0
    assert cli("train", *settings, "name=parts", "save.every='7 steps'") == 0
    weights = [{k: v for k, v in loaded(f"runs/{run}")[part].items() if "running" not in k}
               for run in ("whole", "parts") for part in ("model", "average")]  # fmt: skip
    for one, two in ((weights[0], weights[2]), (weights[1], weights[3])):
        assert all(torch.equal(value, two[key]) for key, value in one.items())
    if average == "swa":  # batch norm in training mode does not read what validation wrote
        same_state("runs/whole", "runs/parts")


@pytest.mark.slow
def test_validation_on_few_views_and_evaluation_on_all(
    cli: Cli, small_run: tuple[str, ...]
) -> None:
    settings = (*small_run, "eval.num_clips=2", "eval.num_crops=3", "validate.num_clips=1",
                "validate.num_crops=1", "validate.every='4 steps'")  # fmt: skip
    assert cli("train", *settings) == 0
    assert [row["num_views"] for row in rows("val")] == [13, 13, 13]
    assert [row["step"] for row in rows("val")] == [4, 8, 12]
    assert cli("eval", "run=runs/small") == 0
    assert json.loads(Path("runs/small/eval/results.json").read_text())["num_views"] == 78


@pytest.mark.parametrize(
    "optimizer", ["lion", *(pytest.param(name, marks=pytest.mark.slow)
                            for name in ("sgd", "adam", "nadamw", "lamb"))]
)  # fmt: skip
def test_every_optimizer_goes_on_exactly(
    cli: Cli, small_run: tuple[str, ...], optimizer: str
) -> None:
    settings = (*small_run, f"optimizer={optimizer}", "train.clip_grad_agc=0.1",
                "schedule=one_cycle")  # fmt: skip
    assert cli("train", *settings, "name=whole", "train.max_steps=4") == 0
    assert cli("train", *settings, "name=parts", "train.max_steps=2") == 0
    assert cli("train", *settings, "name=parts", "train.max_steps=4") == 0
    same_state("runs/whole", "runs/parts")


def test_rare_classes_are_drawn_and_weighed(cli: Cli, small_run: tuple[str, ...]) -> None:
    settings = (*small_run, "data.class_balance=1", "task.class_weights=balanced",
                "train.max_steps=7")  # fmt: skip
    assert cli("train", *settings, "name=whole") == 0
    assert cli("train", *settings, "name=parts", "train.max_steps=3") == 0
    assert cli("train", *settings, "name=parts", "data.num_workers=2") == 0
    same_state("runs/whole", "runs/parts")
