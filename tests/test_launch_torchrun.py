"""`vidtrain launch torchrun` with real processes: signals, failures, machines that start late."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import same_state, torchrun, vidtrain

pytestmark = [pytest.mark.slow, pytest.mark.dist]
LONG = ("train.epochs=40", "validate.every=100", "save.every=100", "log.to=[]")  # 240 steps


def started(cwd: Path, *words: str) -> subprocess.Popen[str]:
    """Starts `vidtrain launch torchrun` in a group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "vidtrain", "launch", "torchrun", *words], cwd=cwd, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def await_steps(run: Path, least: int, process: subprocess.Popen[str]) -> None:
    rows, end = run / "metrics.jsonl", time.monotonic() + 120
    while not rows.exists() or len(rows.read_text().splitlines()) < least:
        assert process.poll() is None and time.monotonic() < end, process.stderr
        time.sleep(0.1)


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGUSR1], [signal.SIGTERM] * 3])
def test_a_signal_saves_the_training_and_the_same_command_goes_on(
    small_run: tuple[str, ...], tmp_path: Path, numbers: list[int]
) -> None:
    train = ("train", *small_run, *LONG)
    whole = torchrun(2, *train, "name=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    command = ("processes_per_node=2", "--", *train, "name=cut")
    process = started(tmp_path, *command)
    await_steps(tmp_path / "runs/cut", 30, process)
    for number in numbers:  # to the launcher alone; a second would end torchrun at once
        process.send_signal(number)
        time.sleep(0.05)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 75, said
    assert "stopped and saved at step" in said and "Traceback" not in said
    rest = vidtrain("launch", "torchrun", *command, cwd=tmp_path)
    assert rest.returncode == 0, rest.stderr
    assert "going on from step" in rest.stderr + rest.stdout
    same_state(tmp_path / "runs/cut", tmp_path / "runs/whole")


def test_a_failure_is_reported_with_rank_and_reason(
    small_run: tuple[str, ...], tmp_path: Path
) -> None:
    command = ("processes_per_node=2", "max_restarts=0", "--", "train", *small_run)
    for word, code in (("data.root=/nowhere", 1), ("train.batch_size=400", 2)):
        done = vidtrain("launch", "torchrun", *command, word, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        report = done.stderr[done.stderr.index("Root Cause") :]
        assert word.partition("=")[2] in report and "rank" in report, report


def test_a_machine_waits_for_the_one_where_all_meet(
    small_run: tuple[str, ...], tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    shared = ("nodes=2", "processes_per_node=1", f"endpoint=127.0.0.1:{port}", "interface=lo",
              "local_addr=127.0.0.1")  # fmt: skip
    train = ("--", "train", *small_run, "train.max_steps=2")
    late = started(tmp_path, *shared, "node_rank=1", *train)
    assert late.stderr is not None
    assert "waiting for 127.0.0.1" in late.stderr.readline()
    head = started(tmp_path, *shared, "node_rank=0", *train)
    for process in (head, late):
        said = process.communicate(timeout=120)[1]
        assert process.returncode == 0, said
    rows = [json.loads(line) for line in (tmp_path / "runs/small/metrics.jsonl").open()]
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]


def test_nobody_at_the_meeting_place_is_said(small_run: tuple[str, ...], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    words = ("nodes=2", f"endpoint=127.0.0.1:{port}", "node_rank=1", "join_seconds=1")
    done = vidtrain("launch", "torchrun", *words, "--", "train", *small_run, cwd=tmp_path)
    assert done.returncode == 1
    assert f"nobody answers at endpoint=127.0.0.1:{port}" in done.stderr


def test_a_port_in_use_is_said(small_run: tuple[str, ...], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as place:
        endpoint = f"endpoint=127.0.0.1:{place.getsockname()[1]}"
        words = ("nodes=2", endpoint, "node_rank=0", "--", "train", *small_run)
        done = vidtrain("launch", "torchrun", *words, cwd=tmp_path)
    assert done.returncode == 1
    assert f"cannot listen at {endpoint}" in done.stderr, done.stderr


def test_a_wrong_config_is_tried_once(small_run: tuple[str, ...], tmp_path: Path) -> None:
    command = ("processes_per_node=2", "--", "train", *small_run, "train.batch_size=400")
    done = vidtrain("launch", "torchrun", *command, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert len(re.findall("^vidtrain: train.batch_size=400", done.stderr, re.MULTILINE)) == 1


def test_a_signal_before_anything_is_saved_says_so(
    small_run: tuple[str, ...], tmp_path: Path
) -> None:
    command = ("processes_per_node=2", "grace_seconds=1", "--", "train", *small_run)
    process = started(tmp_path, *command)
    while not psutil.Process(process.pid).children() and process.poll() is None:
        time.sleep(0.01)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert "nothing is saved yet, so the same command begins anew" in said
    assert "goes on from" not in said


def test_a_signal_in_a_long_validation_saves(small_run: tuple[str, ...], tmp_path: Path) -> None:
    slow = ("validate.num_clips=400", "eval.num_crops=3", "eval.batch_size=1", "train.epochs=1")
    process = started(tmp_path, "processes_per_node=2", "--", "train", *small_run, *slow)
    await_steps(tmp_path / "runs/small", 7, process)  # 6, and the digest of the first's weights
    time.sleep(1)
    process.terminate()
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert "stopped and saved at step 6 of 6" in said
    assert "goes on from runs/small/checkpoints/step_00000006" in said
