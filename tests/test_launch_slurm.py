"""Trainings under a real Slurm: preempted, near the time limit, on a node that dies."""

import csv
import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import TESTS, same_state, torchrun, vidtrain
from slurm_cluster import Cluster, cluster, why_not

REASON = why_not()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.dist,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.timeout(900),
]

STEPS = 1500
NODES = ("nodes=2", "processes_per_node=1", "gpus_per_node=0", "cpus_per_process=1",
         "interface=lo", "grace_seconds=30", "partition=low", "time=20:00")  # fmt: skip


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    with cluster(folder) as running:
        yield running


@pytest.fixture(scope="module")
def training(class_folders: Path) -> tuple[str, ...]:
    """Arguments of a training of a minute."""
    return (
        "train", "--config-dir", str(TESTS / "my_conf"), "model=tiny", "data=folder",
        f"data.root={class_folders}", "data.num_workers=1", "num_threads=1", "train.batch_size=8",
        "train.epochs=2000", f"train.max_steps={STEPS}", "eval.batch_size=4", "log.to=[]",
        "optimizer.lr=0.001", "save.every='100 steps'", "validate.every=5000",
    )  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(training: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the same training on two processes, which nothing disturbed."""
    os.environ.update(VIDTRAIN_ALLOW_TARGETS="my_models", OMP_NUM_THREADS="1",
                      PYTHONPATH=os.pathsep.join([str(TESTS), str(TESTS.parent)]))  # fmt: skip
    folder = tmp_path_factory.mktemp("unbroken")
    done = torchrun(2, *training, "name=whole", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "runs/whole"


def saved(run: Path) -> int:
    """The step of the last checkpoint, 0 before the first."""
    manifest = run / "checkpoints/last/manifest.json"
    return int(json.loads(manifest.read_text())["step"]) if manifest.exists() else 0


def words(run: Path) -> str:
    return "".join(path.read_text() for path in run.glob("slurm-*.log"))


def finished(slurm: Cluster, job: str, run: Path, unbroken: Path) -> int:
    """Waits for the end of a job, compares it with the unbroken run, returns how often it began."""

    def ended() -> bool:
        slurm.start_soon(job)
        state = slurm.fact(job, "JobState")
        assert state not in ("FAILED", "TIMEOUT", "CANCELLED"), words(run)
        return state == "COMPLETED"

    slurm.wait(ended, seconds=600)
    assert saved(run) == STEPS
    same_state(run, unbroken)
    steps = [row["step"] for row in map(json.loads, (run / "metrics.jsonl").open())
             if row["kind"] == "train"]  # fmt: skip
    assert steps == sorted(set(steps)) and steps[-1] == STEPS, "each row once"
    return 1 + int(slurm.fact(job, "Restarts"))


def preempt(slurm: Cluster, job: str) -> None:
    slurm.run("sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 3",
              "--output=/dev/null")  # fmt: skip


def near_the_limit(slurm: Cluster, job: str) -> None:
    slurm.run("scancel", "--batch", "--signal=USR1", job)


def kill_node(slurm: Cluster, job: str) -> None:
    """The second node loses power: its daemon and all that runs on it."""
    daemon = int((slurm.folder / "run/slurmd-n2.pid").read_text())
    for name in os.listdir("/proc"):
        try:
            environment = Path(f"/proc/{name}/environ").read_bytes() if name.isdigit() else b""
        except OSError:
            continue
        if b"SLURMD_NODENAME=n2\0" in environment:
            os.kill(int(name), signal.SIGKILL)
    os.kill(daemon, signal.SIGKILL)
    slurm.wait(lambda: slurm.fact(job, "Restarts") == "1")  # Slurm has noticed
    slurm.start_node("n2")


@pytest.mark.parametrize("trouble", [preempt, near_the_limit, kill_node])
def test_a_job_is_queued_again_and_ends_with_the_same_bits(
    slurm: Cluster, training: tuple[str, ...], unbroken: Path, tmp_path: Path,
    trouble: Callable[[Cluster, str], None],
) -> None:  # fmt: skip
    run = tmp_path / "runs/job"
    job = slurm.submit(*NODES, "--", *training, "name=job", cwd=tmp_path)
    slurm.wait(lambda: saved(run) >= 200)
    assert slurm.fact(job, "JobState") == "RUNNING"
    trouble(slurm, job)
    assert finished(slurm, job, run, unbroken) == 2, words(run)
    said = words(run)
    assert "going on from step" in said
    assert ("stopped and saved at step" in said) == (trouble is not kill_node)


def test_a_time_limit_is_met_by_starting_again(
    slurm: Cluster, training: tuple[str, ...], unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs/job"
    slowly = ("model.build._target_=my_models.unhurried", "+model.build.seconds=0.05")
    limit = ("time=2:00", "grace_seconds=20")
    job = slurm.submit(*NODES, *limit, "--", *training, *slowly, "name=job", cwd=tmp_path)
    assert finished(slurm, job, run, unbroken) >= 2, "the limit did not come"
    assert "stopped and saved at step" in words(run)


def test_a_job_that_fails_is_not_queued_again(
    slurm: Cluster, training: tuple[str, ...], tmp_path: Path
) -> None:
    job = slurm.submit(*NODES, "--", *training, "name=bad", "data.root=/nowhere", cwd=tmp_path)
    slurm.wait(lambda: slurm.fact(job, "JobState") == "FAILED", seconds=120)
    assert slurm.fact(job, "Restarts") == "0"
    assert "/nowhere" in words(tmp_path / "runs/bad")


def test_a_job_that_is_cancelled_saves_and_is_not_queued_again(
    slurm: Cluster, training: tuple[str, ...], tmp_path: Path
) -> None:
    run = tmp_path / "runs/job"
    job = slurm.submit(*NODES, "--", *training, "name=job", cwd=tmp_path)
    slurm.wait(lambda: saved(run) >= 100)
    slurm.run("scancel", job)
    slurm.wait(lambda: slurm.fact(job, "JobState") == "CANCELLED")
    assert slurm.fact(job, "Restarts") == "0"
    assert "stopped and saved at step" in words(run)


def test_a_sweep_is_a_job_for_each_run(
    slurm: Cluster, training: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="vidtrain[sweep]")
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    where = ("hydra/launcher=slurm", "hydra.launcher.partition=low", "hydra.launcher.mem_gb=1",
             "hydra.launcher.gpus_per_node=0", "hydra.launcher.cpus_per_task=1")  # fmt: skip
    short = ("train.max_steps=20", "name=s", "seed=0,1")
    done = vidtrain("train", "-m", *where, *training[1:-1], *short, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "runs/s/sweep.csv", encoding="utf-8", newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["done", "done"]
    jobs = {path.name.partition("_")[0] for path in tmp_path.glob("runs/s/.submitit/*_*")}
    assert jobs, "it ran under Slurm"


def test_a_printed_script_may_be_changed_and_submitted_from_anywhere(
    slurm: Cluster, training: tuple[str, ...], tmp_path: Path
) -> None:
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir()
    elsewhere.mkdir()
    short = ("train.max_steps=20", "name=printed")
    done = vidtrain("launch", "slurm", *NODES, "--dry-run", "--", *training, *short, cwd=here)
    assert done.returncode == 0, done.stderr
    assert not list(here.iterdir())
    script = elsewhere / "my.sbatch"
    script.write_text(done.stdout.replace("--time=20:00", "--time=10:00"))
    # The environment is that of the person who submits.
    slurm.environment = os.environ | {"SLURM_CONF": slurm.environment["SLURM_CONF"]}
    job = slurm.run("env", "-C", str(elsewhere), "sbatch", "--parsable", str(script))
    slurm.wait(lambda: slurm.fact(job, "JobState") == "COMPLETED", seconds=180)
    assert slurm.fact(job, "TimeLimit") == "00:10:00"
    assert saved(here / "runs/printed") == 20
    assert "done: step 20" in (here / f"printed-{job}.log").read_text()
    assert [path.name for path in elsewhere.iterdir()] == ["my.sbatch"]
