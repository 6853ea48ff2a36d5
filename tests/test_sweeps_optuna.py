"""The Optuna sweeper: its search space, what it tells Optuna, and how it goes on."""

import csv
import importlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from test_sweeps import LONG, SHORT, started, steps, wait_for

from vidtrain.errors import UsageError

optuna = pytest.importorskip("optuna", reason="pip install 'vidtrain[sweep]'")
vidtrain_optuna = importlib.import_module("hydra_plugins.vidtrain_optuna")
CategoricalDistribution, FloatDistribution, IntDistribution = (
    getattr(optuna.distributions, f"{kind}Distribution") for kind in ("Categorical", "Float", "Int")
)

Cli = Callable[..., int]
OPTUNA = ("-m", "hydra/sweeper=optuna")


def distribution(text: str) -> Any:
    return vidtrain_optuna._distribution(OverridesParser.create().parse_override(text))


def trials(name: str) -> list[Any]:
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///runs/{name}/optuna.db")
    return study.get_trials()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=interval(0.1,2.5)", FloatDistribution(0.1, 2.5)),
        ("a=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("a=int(interval(2,9))", IntDistribution(2, 9)),
        ("a=range(1,10,4)", IntDistribution(1, 9, step=4)),
        ("a=range(0,1,0.25)", FloatDistribution(0, 0.75, step=0.25)),
        ("a=choice(1,b,[2,3])", CategoricalDistribution(["1", "b", "[2,3]"])),
    ],
)
def test_what_is_swept_becomes_a_distribution(text: str, expected: Any) -> None:
    assert distribution(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a=tag(loga,interval(1,2))", "loga"),
        ("a=tag(log,range(1,4))", "log goes with interval"),
        ("a=interval(2,1)", "a=interval"),
        ("a=tag(log,interval(0,1))", "a=tag"),
    ],
)
def test_a_space_that_optuna_cannot_draw_from_is_refused(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        distribution(text)


def test_a_grid_has_every_point_once() -> None:
    space = {text[0]: distribution(text) for text in ("a=x,y", "b=range(1,4)")}
    grid = vidtrain_optuna._grid(space)
    assert [(p["a"], p["b"]) for p in grid] == [(a, b) for a in "xy" for b in (1, 2, 3)]
    with pytest.raises(UsageError, match="a is an interval"):
        vidtrain_optuna._grid({"a": distribution("a=interval(0.5,1.5)")})


def test_wrong_settings_leave_no_study(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for words, said in (
        (("train.batch_size=4",), "needs a setting to sweep over"),
        (("optimizer.lrr=interval(1,2)",), "did you mean optimizer.lr"),
        (("optimizer.lr=interval(1,2)", "hydra.sweeper.direction=up"), "minimize, maximize"),
    ):
        assert cli("train", *small_run, *OPTUNA, *words, "name=s") == 2
        assert said in capsys.readouterr().err
    assert not list(Path("runs").rglob("trial_*"))


@pytest.mark.slow
def test_a_grid_tells_failures_and_refuses_other_settings(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*small_run, *OPTUNA, *SHORT[1:], "name=s", "hydra.sweeper.sampler=grid")
    assert cli("train", *words, "train.batch_size=4,0,8", "save.metric=loss") == 1
    assert [t.params["train.batch_size"] for t in trials("s")] == ["4", "0", "8"]
    assert [t.state.name for t in trials("s")] == ["COMPLETE", "FAIL", "COMPLETE"]
    with open("runs/s/sweep.csv", encoding="utf-8", newline="") as file:
        found = {row["run"]: row for row in csv.DictReader(file)}
    for trial in trials("s"):
        if trial.value is not None:
            told = float(found[f"trial_{trial.number:04d}"]["best loss"])
            assert math.isclose(trial.value, told, rel_tol=1e-6)
    capsys.readouterr()
    assert cli("train", *words, "train.batch_size=4,0,8", "save.metric=loss") == 0  # all is done
    assert len(trials("s")) == 3
    assert cli("train", *words, "train.batch_size=4,0,8") == 2
    assert "begun with other settings (settings:" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_sweep_goes_on_as_it_would_have(cli: Cli, small_run: tuple[str, ...]) -> None:
    words = (
        *small_run, *OPTUNA, *LONG[1:], "train.max_steps=30", "hydra.sweeper.n_trials=4",
        "hydra.sweeper.startup_trials=1", "optimizer.lr=tag(log,interval(1e-4,1e-1))",
    )  # fmt: skip
    process = started(*words, "name=killed")
    wait_for(lambda: steps("runs/killed/trial_0001") > 14, process)
    process.kill()
    process.communicate()
    assert [t.state.name for t in trials("killed")] == ["COMPLETE", "RUNNING"]
    assert cli("train", *words, "name=killed") == 0
    assert cli("train", *words, "name=whole") == 0
    found = [[(t.params, t.value, t.state.name) for t in trials(n)] for n in ("killed", "whole")]
    assert len(found[0]) == 4 and found[0] == found[1]
    assert len({t.params["optimizer.lr"] for t in trials("whole")}) == 4
