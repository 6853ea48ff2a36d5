"""Sweeps: one folder and one table, whatever launches the runs and however they end."""

import csv
import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from conftest import REPO

from vidtrain.command import sweeping, sweeps
from vidtrain.command.composing import register_schemas
from vidtrain.records.runlog import read_rows

Cli = Callable[..., int]
SHORT = ("-m", "train.epochs=1", "train.max_steps=1")
LONG = ("-m", "train.epochs=400", "validate.every=400 epochs", "save.every=4 epochs")


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    reason = f"{', '.join(missing)} missing: pip install 'vidtrain[sweep]'"
    return pytest.mark.skipif(bool(missing), reason=reason)


def table(name: str) -> list[dict[str, str]]:
    with open(f"runs/{name}/sweep.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 200
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "the sweep did not get so far"
        time.sleep(0.05)


def started(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "vidtrain", "train", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def steps(run: str | Path) -> int:
    return sum(row["kind"] == "train" for row in read_rows(Path(run) / "metrics.jsonl"))


def test_the_best_run_comes_first_and_a_failed_one_last(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    swept = ("train.batch_size=0,4,8",)
    assert cli("train", *small_run, *SHORT, "name=s", *swept) == 1
    told = capsys.readouterr()
    assert "1 run(s) of the sweep in runs/s failed" in told.err
    found = table("s")
    assert [row["state"] for row in found] == ["done", "done", "failed"]
    assert found[2]["train.batch_size"] == "0"
    for row in found[:2]:
        val = [line["top1"] for line in read_rows(Path("runs/s", row["run"], "metrics.jsonl"))
               if line["kind"] == "val"]  # fmt: skip
        assert (float(row["best top1"]), float(row["last top1"])) == (max(val), val[-1])
        assert row["steps"] == "1" and float(row["seconds"]) > 0 and row["error"] == ""
    assert float(found[0]["best top1"]) >= float(found[1]["best top1"])
    assert found[2]["error"] == "train.batch_size=0 must be at least 1"
    text = Path("runs/s/sweep.md").read_text("utf-8")
    assert "- train.batch_size=0 failed: train.batch_size=0 must be at least 1" in text
    assert "train.batch_size=4" in told.out


def write_run(folder: Path, record: dict[str, Any], losses: list[float | None]) -> None:
    folder.mkdir(parents=True)
    whole = {"swept": {"optimizer.lr": folder.name}, "number": 0, "began": 1.0, "metric": "loss"}
    (folder / "sweep.json").write_text(json.dumps(whole | record), "utf-8")
    metric = (whole | record)["metric"]
    lines = [json.dumps({"kind": "val", "step": i + 1, metric: x}) for i, x in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"kind": "val", "st']), "utf-8")


def test_a_lower_loss_is_better_and_a_killed_run_is_not_finished(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"state": "done"}, [0.5, 0.7])
    write_run(tmp_path / "b", {}, [0.4, 0.9])
    write_run(tmp_path / "c", {"state": "done"}, [0.45, None])
    write_run(tmp_path / "d", {}, [])
    write_run(tmp_path / "e", {"state": "failed", "error": "two\nlines | bar"}, [0.1])
    found = sweeps.rows(tmp_path)
    assert [row.folder for row in found] == ["b", "c", "a", "d", "e"]
    assert [(row.best, row.last, row.step) for row in found[:2]] == [(0.4, 0.9, 2), (0.45, 0.45, 2)]
    sweeps.write_table(tmp_path, found)
    lines = (tmp_path / "sweep.md").read_text("utf-8").splitlines()
    assert lines[2] == "| b | 0.4000 | 0.9000 | 2 | 0.0 | not finished | b |"
    assert lines[-1] == "- optimizer.lr=e failed: two lines | bar"


def test_runs_judged_by_different_figures_are_not_ranked_against_each_other(tmp_path: Path) -> None:
    write_run(tmp_path / "a", {"state": "done", "metric": "top1"}, [0.2, 0.3])
    write_run(tmp_path / "b", {"state": "done", "metric": "loss"}, [1.9, 1.8])
    write_run(tmp_path / "c", {"state": "done", "metric": "top1"}, [0.4, 0.1])
    found = sweeps.rows(tmp_path)
    assert [row.folder for row in found] == ["b", "c", "a"]
    lines = sweeps.shown(found).splitlines()
    assert lines[0].split() == ["optimizer.lr", "by", "best", "last", "steps", "seconds", "state",
                                "run"]  # fmt: skip
    assert lines[1].split()[:4] == ["b", "loss", "1.8000", "1.8000"]
    assert lines[2].split()[:4] == ["c", "top1", "0.4000", "0.1000"]


def test_all_runs_are_in_one_folder_whatever_is_swept(tmp_path: Path) -> None:
    register_schemas()
    flags = ["-m", "--config-dir", str(REPO / "tests" / "my_conf")]
    words = ["model=tiny,slow_r50", "train.epochs=1", "eval.num_clips=1"]
    folder, added, elsewhere = sweeping.settings("train", flags, words, REPO / "conf")
    assert folder == "runs/sweep-model" and not elsewhere
    assert added[0].endswith("exclude_keys=[eval.num_clips,train.epochs]")
    assert added[1] == 'hydra.sweep.dir="runs/sweep-model"'
    folder, _, _ = sweeping.settings("train", flags, ["model=tiny", "seed=1,2"], REPO / "conf")
    assert folder == "runs/tiny-synthetic"
    assert sweeping.settings("train", [], words, REPO / "conf") == (None, [], False)


def test_a_missing_launcher_is_said_to_be_an_extra(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", "-m", "seed=1,2", "hydra/launcher=nonsense") == 2
    assert "vidtrain[sweep]" in capsys.readouterr().err


@needs("submitit", "hydra_plugins.hydra_submitit_launcher")
def test_the_preset_for_slurm_composes() -> None:
    register_schemas()
    with hydra.initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        config = hydra.compose("train", ["hydra/launcher=slurm"], return_hydra_config=True)
    launcher = config.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.tasks_per_node, launcher.gpus_per_node, launcher.signal_delay_s) == (1, 1, 180)


@pytest.mark.slow
def test_a_stopped_sweep_goes_on(cli: Cli, small_run: tuple[str, ...]) -> None:
    words = (*small_run, *LONG, "train.max_steps=40", "name=s", "seed=1,2")
    process = started(*words)
    wait_for(lambda: steps("runs/s/seed=1") > 2, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 75, err
    assert "interrupted" in out and [row["state"] for row in table("s")] == ["interrupted"]
    assert cli("train", *words) == 0
    assert [(row["state"], row["steps"]) for row in table("s")] == [("done", "40")] * 2
    assert steps("runs/s/seed=1") == 40


@pytest.mark.slow
@needs("joblib", "hydra_plugins.hydra_joblib_launcher")
def test_joblib_runs_two_at_a_time_and_stops_both(cli: Cli, small_run: tuple[str, ...]) -> None:
    at_once = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    assert cli("train", *small_run, *SHORT, *at_once, "name=s", "train.batch_size=4,0,8") == 1
    assert [row["state"] for row in table("s")] == ["done", "done", "failed"]
    assert "must be at least 1" in table("s")[2]["error"]

    process = started(*small_run, *LONG, *at_once, "name=t", "seed=1,2,3")
    wait_for(lambda: steps("runs/t/seed=1") > 2 and steps("runs/t/seed=2") > 2, process)
    process.send_signal(signal.SIGTERM)  # to the sweep alone, not to the runs
    _, err = process.communicate(timeout=200)
    assert process.returncode == 75, err
    assert [row["state"] for row in table("t")] == ["interrupted"] * 2  # the third never began
    assert all("stopped and saved at step" in row["error"] for row in table("t"))


@pytest.mark.slow
@needs("submitit", "hydra_plugins.hydra_submitit_launcher")
def test_submitit_runs_each_in_a_job(cli: Cli, small_run: tuple[str, ...]) -> None:
    words = (*small_run, *SHORT, "hydra/launcher=submitit_local", "train.batch_size=4,0")
    assert cli("train", *words, "name=s") == 1
    assert [row["state"] for row in table("s")] == ["done", "failed"]
    assert list(Path("runs/s/.submitit").rglob("*.out"))
