"""Two trainings do not share a run folder; none goes on without the torchrun that started it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import vidtrain
from namespaces import until

from vidtrain.errors import InputError
from vidtrain.records import alone as keeping
from vidtrain.records.alone import alone

SLOWLY = ("model.build._target_=my_models.unhurried", "+model.build.seconds=0.2", "log.to=[]",
          "train.epochs=100", "train.log_every_steps=1", "save.every='1000 steps'",
          "validate.every=1000")  # fmt: skip


def rows(run: Path) -> list[dict]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def start(*words: str, cwd: Path) -> subprocess.Popen:
    log = open(cwd / "said.txt", "w")  # noqa: SIM115
    return subprocess.Popen([sys.executable, "-m", *words], cwd=cwd, stdout=log, stderr=log)


def test_a_second_training_of_a_run_folder_is_refused(
    small_run: tuple[str, ...], tmp_path: Path
) -> None:
    words = ("train", *small_run, *SLOWLY, "name=one")
    run = tmp_path / "runs/one"
    first = start("vidtrain", *words, cwd=tmp_path)
    try:
        until(lambda: bool(rows(run)), "a row", seconds=120)
        second = vidtrain(*words, cwd=tmp_path)
        assert second.returncode == 1
        assert f"pid {first.pid}) is writing to runs/one" in second.stderr
        assert first.poll() is None
    finally:
        first.terminate()
        assert first.wait(60) == 75
    steps = [row["step"] for row in rows(run) if row["kind"] == "train"]
    assert steps == list(range(1, len(steps) + 1)), "no row of it is lost"
    assert not (run / keeping.LOCK).exists()


def test_a_lock_goes_with_the_process_that_had_it(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from vidtrain.records.alone import alone\n"
        "with alone(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL and (tmp_path / keeping.LOCK).exists()
    with alone(tmp_path):
        assert f"pid {os.getpid()}" in (tmp_path / keeping.LOCK).read_text()
    assert not list(tmp_path.iterdir())


def test_waiting_has_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "PATIENCE_SECONDS", 1)
    with (
        alone(tmp_path),
        pytest.raises(InputError, match=r"another training .* give another name="),
        alone(tmp_path),
    ):
        raise AssertionError("it was let in")


@pytest.mark.dist
@pytest.mark.slow
def test_processes_save_and_end_when_their_torchrun_is_killed(
    small_run: tuple[str, ...], tmp_path: Path
) -> None:
    words = ("train", *small_run, *SLOWLY, "train.batch_size=4", "name=one")
    torchrun = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "vidtrain")
    launcher = start(*torchrun, *words, cwd=tmp_path)
    until(lambda: bool(rows(tmp_path / "runs/one")), "a row", seconds=120)
    workers = psutil.Process(launcher.pid).children(recursive=True)
    launcher.kill()
    launcher.wait()
    gone, left = psutil.wait_procs(workers, timeout=60)
    assert not left and len(gone) >= 2
    assert "stopped and saved at step" in (tmp_path / "said.txt").read_text()
