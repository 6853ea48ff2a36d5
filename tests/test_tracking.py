"""The two services that a training may be logged to, where they are installed."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from test_logging import SETTINGS, in_a_process, log_some

from vidtrain.config.train import LogConfig
from vidtrain.errors import Interrupted
from vidtrain.records.runlog import RunLog


@pytest.mark.slow
def test_weights_and_biases_goes_on_in_the_same_run(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="pip install 'vidtrain[wandb]'")
    run = tmp_path / "run"
    for arguments in ("['tensorboard', 'wandb'], steps=4", "['wandb'], start=2"):
        done = in_a_process(f"log_some(Path({str(run)!r}), {arguments})", WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr
        assert "WARNING" not in done.stderr
    name = json.loads((run / "tracking.json").read_text())["wandb"]
    parts = sorted((run / "wandb").glob("offline-run-*"))
    assert len(parts) == 2 and all(part.name.endswith(f"-{name}") for part in parts)
    for part in parts:
        (content,) = (file.read_bytes() for file in part.glob("*.wandb"))
        for word in (b"train/loss", b"speed/clips_per_second", b"best/top1", b"optimizer"):
            assert word in content
        assert list(part.glob("files/media/images/inputs*.png"))


@pytest.mark.slow
def test_weights_and_biases_without_a_login_says_what_to_do(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="pip install 'vidtrain[wandb]'")
    done = in_a_process(
        f"log_some(Path({str(tmp_path)!r}), ['wandb'])",
        WANDB_MODE="online", HOME=str(tmp_path), NETRC="/nowhere", WANDB_API_KEY="",
    )  # fmt: skip
    assert "UsageError: log.to=wandb: Weights & Biases says: No API key" in done.stderr
    assert "run `wandb login`, or set WANDB_MODE=offline" in done.stderr


def stopped(folder: Path) -> None:
    """A training that a signal stops after its first step."""
    log = RunLog(folder, LogConfig(to=["mlflow"]), main=True, start_step=0)
    with closing(log):
        log.open(SETTINGS)
        log.at(1, 0.1)
        log.row("train", loss=1.0)
        raise Interrupted(15, "stopped", saved=True)


@pytest.mark.slow
def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'vidtrain[mlflow]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(Interrupted):
        stopped(tmp_path / "run")
    name = json.loads((tmp_path / "run/tracking.json").read_text())["mlflow"]
    client = mlflow.MlflowClient()
    assert client.get_run(name).info.status == "KILLED"
    log_some(tmp_path / "run", ["mlflow"], start=1)
    found = client.get_run(name)
    assert found.info.status == "FINISHED" and found.info.run_name == "run"
    assert found.data.params["optimizer.lr"] == "0.1" and found.data.params["data.name"] == "folder"
    assert found.data.metrics["best/top1"] == 0.54
    assert [each.step for each in client.get_metric_history(name, "train/loss")] == [1, 2, 3, 4]
    assert "config.txt" in {file.path for file in client.list_artifacts(name)}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    with pytest.raises(ValueError, match=f"its run {name} is named in tracking.json"):
        log_some(tmp_path / "run", ["mlflow"], start=1)


@pytest.mark.slow
def test_runs_of_a_sweep_that_begin_together_share_an_experiment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'vidtrain[mlflow]'")
    monkeypatch.chdir(tmp_path)  # pictures and texts go there
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    codes = [f"log_some(Path({str(tmp_path / name)!r}), ['mlflow'])"
             for name in ("run0", "run1", "run2")]  # fmt: skip
    with ThreadPoolExecutor() as pool:
        for done in pool.map(lambda code: in_a_process(code, MLFLOW_TRACKING_URI=uri), codes):
            assert done.returncode == 0, done.stderr
    client = mlflow.MlflowClient(uri)
    (group,) = client.search_experiments(filter_string="name = 'vidtrain'")
    assert {run.info.run_name for run in client.search_runs([group.experiment_id])} == {
        "run0", "run1", "run2",
    }  # fmt: skip
