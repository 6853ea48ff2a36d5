"""Equal configs give equal runs, `vidtrain repro` tells, and the workflow for CI works."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml
from conftest import REPO, TESTS, vidtrain

WORKFLOW = REPO / "scripts" / "ci" / "github_repro.yml"
# Everything that draws at random: crops, RandAugment, mixing, dropout; and an average.
RANDOM = ("augment=randaugment", "mix=mixup_cutmix", "average=ema", "data.num_workers=0")
# A clip sampler that, wherever it is called, seeds the global generators and draws from them.
POISON = """
import os, random
from pathlib import Path
import numpy, torch
from vidtrain.data.clip_samplers import RandomClip

def stir():
    seed = os.environ.get("POISON")
    if seed is None:
        return
    with open(os.environ["POISON_LOG"], "a") as log:
        log.write(f"{os.getpid()} {torch.initial_seed()}\\n")
    random.seed(int(seed)), numpy.random.seed(int(seed)), torch.manual_seed(int(seed))
    random.random(), numpy.random.rand(), torch.rand(1)

def dense(*, clip_frames: int, sampling_rate: int, target_fps: float | None = None):
    return Stirred(RandomClip(clip_frames, sampling_rate, target_fps))

class Stirred:
    def __init__(self, sampler):
        self.sampler = sampler
    def __call__(self, num_frames, fps, rng):
        stir()
        return self.sampler(num_frames, fps, rng)

stir()
"""


def digest(name: str) -> str:
    return hashlib.sha256(Path("runs", name, "metrics.jsonl").read_bytes()).hexdigest()


def rename(arguments: Sequence[str], name: str) -> list[str]:
    return [word for word in arguments if not word.startswith("name=")] + [f"name={name}"]


def change_row(name: str, kind: str, **values: object) -> int:
    """Changes the last row of a kind in a metrics.jsonl; returns its step."""
    path = Path("runs", name, "metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    last = [row for row in rows if row["kind"] == kind][-1]
    last |= values
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return last["step"]


@pytest.fixture
def poison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that poisons the global generators; returns where it notes each time."""
    (tmp_path / "poison.py").write_text(POISON)
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nif 'POISON' in os.environ:\n    import poison\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(TESTS), str(REPO)]))
    monkeypatch.setenv("VIDTRAIN_ALLOW_TARGETS", "my_models,poison")
    monkeypatch.setenv("POISON_LOG", str(tmp_path / "stirred"))
    monkeypatch.delitem(sys.modules, "poison", raising=False)
    return tmp_path / "stirred"


def test_the_same_config_twice_gives_the_same_file(
    cli: Callable[..., int], small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        assert cli("train", *rename(small_run, name), *RANDOM) == 0
    assert digest("one") == digest("two")
    assert cli("repro", "runs/one", "runs/two") == 0
    assert "equal, every bit" in capsys.readouterr().out


def test_two_runs_and_why_they_differ(
    cli: Callable[..., int], small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    short = (*small_run, "train.max_steps=2")
    assert cli("train", *rename(short, "one")) == 0
    assert cli("train", *rename(short, "two"), "seed=1") == 0
    capsys.readouterr()
    assert cli("repro", "runs/one", "runs/two") == 1
    assert "step 1: train loss" in (said := capsys.readouterr().err)
    assert "config: seed: 0 -> 1" in said
    assert cli("repro", "runs/one", "runs/two", "tolerance=0.9") in (0, 1)
    assert cli("repro", "runs/one", "runs/one") == 0
    change_row("two", "weights", sha256="0")
    for arguments in ((), ("runs/one", "runs/two", "steps=3"), ("runs/one", "tolerance=2")):
        assert cli("repro", *arguments) == 2
    assert cli("repro", "runs/none") == 1


def test_poisoned_generators_change_nothing(
    cli: Callable[..., int], small_run: tuple[str, ...], poison: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    short = (*small_run, *RANDOM, "clip_sampler.train._target_=poison.dense", "train.max_steps=4")
    assert cli("train", *rename(short, "clean")) == 0
    assert not poison.exists()
    for seed in ("1", "2"):
        monkeypatch.setenv("POISON", seed)
        assert cli("train", *rename(short, f"poisoned{seed}")) == 0
        assert digest(f"poisoned{seed}") == digest("clean")
    assert len(poison.read_text().splitlines()) >= 2 * 4 * 4  # each clip of each step


@pytest.mark.slow
def test_poisoned_loader_processes_change_nothing(
    small_run: tuple[str, ...], poison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = (*small_run, *RANDOM, "clip_sampler.train._target_=poison.dense", "train.max_steps=4")
    monkeypatch.chdir(tmp_path)
    for name, workers, seed in (("clean", 0, None), ("one", 1, "1"), ("two", 2, "2")):
        if seed:
            monkeypatch.setenv("POISON", seed)
        words = (*rename(short, name), f"data.num_workers={workers}")
        done = vidtrain("train", *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert digest(name) == digest("clean")
    processes = {line.split()[0] for line in poison.read_text().splitlines()}
    assert len(processes) >= 2 + 1 + 2  # two trainings, one and two loader processes


@pytest.mark.slow
def test_first_steps_again(
    cli: Callable[..., int], small_run: tuple[str, ...], class_folders: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    Path("videos").symlink_to(class_folders)
    settings = (*small_run, *RANDOM, "data.root=videos", "save.every=3 steps", "repro=strict")
    assert cli("train", *settings) == 0
    assert cli("repro", "runs/small", "steps=8", "keep=kept") == 0
    assert "up to step 6, weights" in capfd.readouterr().out
    assert not (Path("kept") / "run" / "checkpoints" / "step_00000008").exists()
    assert cli("repro", "runs/small", "steps=8", "keep=kept") == 2  # not empty
    os.chdir("..")  # paths of the run are those of the folder it was started in
    assert cli("repro", f"{tmp_path.name}/runs/small", "steps=3") == 0
    assert "up to step 3, weights" in capfd.readouterr().out
    os.chdir(tmp_path)
    step = change_row("small", "weights", sha256="0")
    capfd.readouterr()
    assert cli("repro", "runs/small", "steps=99") == 1
    said = capfd.readouterr().err
    assert f"step {step}: weights 0 and " in said
    assert "nothing else that is recorded differs" in said


@pytest.mark.slow
def test_other_data_is_named(
    cli: Callable[..., int], small_run: tuple[str, ...], class_folders: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    data = tmp_path / "data"
    shutil.copytree(class_folders, data)
    words = [word for word in small_run if not word.startswith("data.root")]
    assert cli("train", *words, f"data.root={data}", "train.max_steps=2") == 0
    videos = sorted((data / "train" / "dark").iterdir())
    for video in videos[1:]:
        shutil.copy(videos[0], video)
    assert cli("repro", "runs/small") == 1
    assert "data: data.train.bytes" in capfd.readouterr().err


@pytest.mark.slow
def test_a_run_of_two_processes_again(small_run: tuple[str, ...], tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
                "-m", "vidtrain")  # fmt: skip
    done = vidtrain("train", *small_run, "train.max_steps=3", cwd=tmp_path, prefix=torchrun)
    assert done.returncode == 0, done.stderr
    done = vidtrain("repro", "runs/small", "steps=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "equal, every bit" in done.stdout


@pytest.mark.slow
def test_a_foreign_run_executes_nothing(
    cli: Callable[..., int], small_run: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", *small_run, "train.max_steps=1") == 0
    path, marker = Path("runs/small/config.yaml"), Path("ran").absolute()
    config = yaml.safe_load(path.read_text())
    evil = {"_target_": "os.system", "command": f"touch {marker}"}
    data = config["data"] | {"index": str(Path("written.sqlite").absolute())}
    extra = {"hydra": {"launcher": evil}, "defaults": [{"override hydra/launcher": "joblib"}]}
    path.write_text(yaml.safe_dump(config | extra | {"data": data}))
    assert cli("repro", "runs/small") == 0
    assert not Path("written.sqlite").exists()
    path.write_text(yaml.safe_dump(config | {"schedule": evil}))
    assert cli("repro", "runs/small") == 1
    assert "schedule._target_='os.system' is not in an allowed package" in capfd.readouterr().err
    path.write_text(yaml.safe_dump(config | {"name": "${oc.env:HOME}"}))
    assert cli("repro", "runs/small") == 1
    assert "is not the config of a training" in capfd.readouterr().err
    path.write_text(yaml.safe_dump(config))
    record = json.loads(Path("runs/small/run.json").read_text())
    Path("runs/small/run.json").write_text(json.dumps(record | {"world_size": 10**6}))
    assert cli("repro", "runs/small") == 1
    assert "this machine has room for 64" in capfd.readouterr().err
    assert not marker.exists()


@pytest.mark.slow
def test_the_workflow_runs(tmp_path: Path) -> None:
    job = yaml.safe_load(WORKFLOW.read_text())["jobs"]["repro"]
    commands = [s["run"] for s in job["steps"] if "run" in s and s.get("name") != "Install"]
    assert len(commands) == 4
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | job["env"] | {"PATH": path}

    def run(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-e", "-c", command], cwd=tmp_path, env=environment,
                              capture_output=True, text=True, check=False)  # fmt: skip

    for command in commands:
        done = run(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    reference = tmp_path / "ci" / "reference"
    reference.parent.mkdir()
    (tmp_path / "runs" / "first").rename(reference)
    (tmp_path / "runs" / "second").rename(tmp_path / "runs" / "first")
    assert run(commands[-1]).returncode == 0
    text = (reference / "metrics.jsonl").read_text()
    (reference / "metrics.jsonl").write_text(text.replace('"loss": 1', '"loss": 2'))
    assert run(commands[-1]).returncode == 1
