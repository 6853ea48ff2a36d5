"""`vidtrain launch`: what is looked through, and what is written."""

import dataclasses
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPO

from vidtrain.config.launch import LaunchConfig
from vidtrain.launching import slurm

Cli = Callable[..., int]
EXAMPLES = REPO / "scripts/launch/kubernetes"
# What a person may write, and a shell, Hydra or Kubernetes might read otherwise.
COMMANDS = (
    ("name='a, b=[c] \"d\" it\\'s'", "runs='/x y/$(PATH) `id`'", "log.to=[tensorboard,wandb]"),
    ("name=x-${model.name}", "runs='/back\\slash\\\\'"),
)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["slurm"], "what is to be started?"),
        ([], "which engine, of slurm, kubernetes, torchrun?"),
        (["slrum", "--", "train"], "engine=slrum is not known; did you mean slurm?"),
        (["slurm", "--", "trian"], "'trian' after -- is not a stage; did you mean train?"),
        (["slurm", "--", "train", "model=slowfst_r50"], "did you mean slowfast"),
        (["slurm", "--", "train", "train.epoch=3"], "did you mean train.epochs"),
        (["slurm", "--", "train", "data=folder"], "data.root must be given"),
        (["slurm", "--", "train", "-m", "seed=1,2"], "hydra/launcher=slurm"),
        (["slurm", "--", "train", "--cfg", "job"], "--cfg shows something and runs nothing"),
        (["slurm", "nodse=2", "--", "train"], "did you mean nodes"),
        (["slurm", "nodes=many", "--", "train"], "nodes=many must be a number of machines"),
        (["slurm", "nodes=3:2", "--", "train"], "nodes=3:2 must be"),
        (["slurm", "gpus_per_node=-1", "--", "train"], "gpus_per_node=-1 must be at least 0"),
        (["slurm", "image=x", "--", "train"], "image=x is a setting of kubernetes"),
        (["slurm", "env=[A]", "--", "train"], "env: 'A' must be NAME=VALUE"),
        (["slurm", "env=A=1,B=2", "--", "train"], "env=[NAME=VALUE,NAME=VALUE]"),
        (["slurm", "time=soon", "--", "train"], "time=soon must be a time limit of Slurm"),
        (["slurm", "time=3:29", "--", "train"], "save 150 s before its limit"),
        (["slurm", "nodes=2", "--", "check"], "nodes=2: vidtrain check is one process"),
        (["torchrun", "processes_per_node=2", "--", "stats"], "vidtrain stats is one process"),
        (["slurm", "--", "benchmark", "scaling"], "starts processes of its own"),
        (["torchrun", "node_rank=1", "--", "train"], "node_rank=1 says nothing without endpoint="),
        (["torchrun", "partition=gpu", "--", "train"], "partition=gpu is a setting of slurm"),
        (["torchrun", "nodes=2", "--", "train"], "add endpoint=HOST:29400"),
        (["torchrun", "endpoint=head", "--", "train"], "endpoint=head must be HOST:PORT"),
        (["torchrun", "endpoint=head:1", "node_rank=1", "--", "train"], "numbers from 0 to 0"),
        (["slurm", "nodes=2", "train", "seed=1"], "put -- before train"),
        (["slurm", "--", "train", "--help"], "--help shows something"),
        (["slurm", "options=[exclusive]", "--", "train"], "write it as --exclusive"),
        (["slurm", "nodes=2", "--", "train", "train.batch_size=9"], "times 2 processes"),
        (["slurm", "nodes=2:3", "--", "train", "train.batch_size=4"], "with 3 machines"),
        (["torchrun", "processes_per_node=3", "--", "train", "train.micro_batch=2"], "use 1, 2, 4"),
        (["slurm", "--", "train", "parallel=fsdp", "precision=fp16"], "precision=fp16 is not"),
        (["kubernetes", "--", "train"], "image must be given"),
        (["kubernetes", "image=x", "nodes=1:2", "--", "train"], "a TrainJob has a fixed number"),
        (["kubernetes", "image=x", "volumes=[data]", "--", "train"], "CLAIM:PATH"),
    ],
)  # fmt: skip
def test_mistakes_are_found_before_anything_is_submitted(
    cli: Cli, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("launch", *words) == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert "Traceback" not in error
    assert not list(Path().iterdir()), "nothing is left behind"


def test_without_the_programs_of_a_cluster_it_says_so(
    cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    for words in (["slurm"], ["kubernetes", "image=x"]):
        assert cli("launch", *words, "--", "train") == 1
        assert "--dry-run" in capsys.readouterr().err


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_comes_through_every_engine_as_it_was(
    cli: Cli, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    def printed(*settings: str) -> str:
        assert cli("launch", *settings, "--dry-run", "--", "train", *words) == 0
        return capsys.readouterr().out

    command = ["train", *words]
    assert shlex.split(printed("torchrun"))[-len(command) :] == command
    script = printed("slurm", "nodes=2")
    on_each_node = re.search(r"bash -c (.*) &\nsrun=", script, re.DOTALL)
    assert on_each_node is not None
    (line,) = shlex.split(on_each_node[1])
    assert shlex.split(line.partition(" -- ")[2]) == command
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0
    (job,) = yaml.safe_load_all(printed("kubernetes", "image=x"))
    runtime, train_job = yaml.safe_load_all(printed("kubernetes", "image=x", "nodes=2"))
    assert "args" not in pod([runtime])["containers"][0]
    for args in (pod([job])["containers"][0]["args"], train_job["spec"]["trainer"]["args"]):
        assert list(map(expanded, args[args.index("--") + 1 :])) == command
    assert not list(Path().iterdir()), "nothing is left behind"


def expanded(text: str) -> str:
    """What Kubernetes makes of an argument: `$$(` is `$(`, which would else be a variable."""
    assert not re.search(r"(?<!\$)\$\(", text)
    return text.replace("$$(", "$(")


def pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    spec = objects[0]["spec"]
    if objects[0]["kind"] == "TrainingRuntime":
        (job,) = spec["template"]["spec"]["replicatedJobs"]
        spec = job["template"]["spec"]
    found: dict[str, Any] = spec["template"]["spec"]
    return found


def test_the_batch_script_asks_for_what_was_said(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ("nodes=1:4", "gpus_per_node=4", "cpus_per_process=6", "memory_gb=500",
                "partition=gpu", "account=me", "time=1-12:00:00", "grace_seconds=300",
                'options=["--constraint=a100","--comment=two words"]',
                'setup=["module load cuda"]', 'env=["NCCL_DEBUG=WARN"]', "interface=ib0",
                "max_requeues=7")  # fmt: skip
    assert (
        cli(
            "launch",
            "slurm",
            *settings,
            "--dry-run",
            "--",
            "train",
            "name=big",
            "train.batch_size=48",
        )
        == 0
    )
    script = capsys.readouterr().out
    asked = re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)
    assert {word for line in asked for word in shlex.split(line)} == {
        "--job-name=big", f"--chdir={Path.cwd()}", "--nodes=1-4", "--ntasks-per-node=1",
        "--gpus-per-node=4",
        "--cpus-per-task=24", "--mem=500G", "--partition=gpu", "--account=me",
        "--time=1-12:00:00", "--signal=B:USR1@330", "--open-mode=append", "--requeue",
        f"--output={Path.cwd()}/big-%j.log", "--constraint=a100",
        "--comment=two words",
    }  # fmt: skip
    for line in ("export NCCL_DEBUG=WARN", "module load cuda", "--wait=330", "-ge 7 ]",
                 "processes_per_node=4", "grace_seconds=300", "interface=ib0"):  # fmt: skip
        assert line in script
    assert "@" not in script.replace("USR1@330", ""), "no gap is left open"


def test_a_machine_knows_whether_the_meeting_place_is_its_own() -> None:
    from vidtrain.launching.meeting_place import is_here

    assert is_here("localhost:29400", None) and is_here("127.0.0.1:29400", None)
    assert not is_here("192.0.2.7:29400", None), "an address kept for documentation"
    assert not is_here("no-such-name.invalid:29400", None), "torchrun itself would fail here"
    assert is_here("192.0.2.7:29400", 0) and not is_here("localhost:29400", 1)


def test_nothing_is_left_of_a_machine_that_lost_the_others() -> None:
    script = """if True:
        import subprocess, sys, time
        from vidtrain.launching.meeting_place import _kill_children
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        _kill_children()
        sys.exit(-child.wait(10))
    """
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60)
    assert done.returncode == signal.SIGKILL


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("3:30", 210), ("24:00:00", 86400), ("2-12", 216000), ("2-12:30", 217800),
     ("1-00:00:05", 86405), ("UNLIMITED", float("inf"))],
)  # fmt: skip
def test_time_limits_are_read_as_slurm_does(time: str, seconds: float) -> None:
    assert slurm.limit_seconds(time) == seconds


def test_what_follows_is_written_as_without_launch(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("doctor", "--json"), ("models", "x3d*"), ("models", "x3d_m", "--detail")):
        assert cli("launch", "torchrun", "--dry-run", "--", *words) == 0, capsys.readouterr().err
    assert "pattern=" in capsys.readouterr().out


def test_what_does_not_go_on_is_not_started_again(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("slurm", "--dry-run", "gpus_per_node=8")
    for words, restarts, requeues in ((("train",), 3, 100), (("check",), 0, 100),
                                      (("models", "x3d_m"), 0, 0)):  # fmt: skip
        assert cli("launch", *options, "--", *words) == 0
        text = capsys.readouterr().out
        assert f"max_restarts={restarts} " in text
        assert f'"${{SLURM_RESTART_COUNT:-0}}" -ge {requeues} ]' in text
        assert f"processes_per_node={8 if words[0] == 'train' else 1} " in text
    assert cli("launch", *options, "max_requeues=5", "--", "models", "x3d_m") == 0
    assert "-ge 5 ]" in capsys.readouterr().out


def test_a_setup_line_that_fails_ends_the_job() -> None:
    lines = ["X='a b'", "# a comment", "cd /", "[ \"$X\" = 'a b' ]"]
    for more, code in (([], 0), (["no_such_command 'a b'"], 1)):
        job = slurm.Job(
            name="a", folder=Path("/"), log=Path("a.log"), nodes="1", processes=1, gpus=0, cpus=1,
            memory_gb=None,
            partition=None, account=None, time=None, grace_seconds=1, join_seconds=1,
            max_restarts=0, max_requeues=0, interface=None, options=[], setup=[*lines, *more],
            env={},
        )  # fmt: skip
        text = slurm.script(job, ["train"])
        (inner,) = [word for word in shlex.split(text, comments=True) if "exec " in word]
        assert "exec " in inner.splitlines()[-1]
        ran = subprocess.run(["bash", "-c", inner.rpartition("exec ")[0]], check=False,
                             capture_output=True, text=True)  # fmt: skip
        assert ran.returncode == code, ran.stderr
        assert ("vidtrain: setup: no_such_command 'a b' failed" in ran.stderr) == bool(more)


def test_lists_and_texts_may_be_written_as_a_shell_takes_them(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("options=[--exclusive,--constraint=a100]", "setup=module load cuda", "env=[A=1,B=x y]",
             "partition=gpu,long")  # fmt: skip
    assert cli("launch", "slurm", *words, "--dry-run", "--", "train") == 0
    script = capsys.readouterr().out
    for line in ("#SBATCH --exclusive", "#SBATCH --constraint=a100", "export A=1",
                 "export B='x y'", "#SBATCH --partition=gpu,long"):  # fmt: skip
        assert f"\n{line}\n" in script
    assert "bash -c 'module load cuda\n" in script
    assert cli("launch", "slurm", "env=A=1", "--dry-run", "--", "train") == 0
    assert "\nexport A=1\n" in capsys.readouterr().out


def test_help_names_every_setting(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("launch", "--help") == 0
    said = capsys.readouterr().out
    named = set(re.findall(r"\w+", said.split("\nSettings")[1].split("\nLists")[0]))
    fields = {field.name for field in dataclasses.fields(LaunchConfig)}
    assert fields - named == {"engine", "command", "dry_run"}
    assert "data=" not in said.replace("data=...", ""), "no groups of a training"


def test_a_run_in_a_volume_can_be_launched_from_elsewhere(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    job = ("launch", "kubernetes", "image=x", "volumes=runs:/runs", "--dry-run", "--")
    assert cli(*job, "eval", "run=/runs/mine") == 0
    found = capsys.readouterr()
    assert "run=/runs/mine" in found.out and "name: vidtrain-eval" in found.out
    assert "is not looked through here" in found.err
    assert cli(*job, "train", "data=folder", "data.root=/data") == 0
    assert "no volume holds /data, which is read from" in capsys.readouterr().err
    elsewhere = Path("elsewhere").absolute()
    assert cli(*job, "train", f"runs={elsewhere}") == 0
    assert f"no volume holds {elsewhere}/" in capsys.readouterr().err
    assert cli(*job, "doctor", "data=folder", "data.root=/runs/data") == 0
    assert "no volume" not in capsys.readouterr().err
    assert cli("launch", "slurm", "--", "eval", "run=/runs/mine") == 1


def test_torchrun_starts_no_launcher(
    cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert cli("launch", "torchrun", "--", "train") == 2
    assert "run it without torchrun" in capsys.readouterr().err
