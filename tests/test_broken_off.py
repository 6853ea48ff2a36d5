"""A signal during a validation: the state is saved at once, and the validation comes next time."""

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import loaded, same_state

Cli = Callable[..., int]

# The second validation, that of the plain weights, follows at once on that of the averaged ones.
SETTINGS = ("average=ema", "average.decay=0.5", "train.precise_bn=2", "validate.every='3 steps'",
            "train.epochs=3", "save.every='6 steps'", "mix=mixup_cutmix", "mix.mode=sample",
            "model.build.dropout=0.3")  # fmt: skip
# A stage of the real command, in which a signal comes when so many batches have been evaluated.
CODE = """
import os, signal, sys
from vidtrain.data.eval_loading import EvalLoader
from vidtrain.cli import main
count, after, rank = 0, int(sys.argv[1]), os.environ.get("RANK", "0")
each = EvalLoader.__iter__
def counted(self):
    global count
    for item in each(self):
        yield item
        count += 1
        if count == after and rank == os.environ.get("HIT", rank):
            os.kill(os.getpid(), signal.SIGTERM)
EvalLoader.__iter__ = counted
sys.argv[1:] = sys.argv[2:]
main()
"""


def file_hash(run: str) -> str:
    return hashlib.sha256((Path("runs") / run / "metrics.jsonl").read_bytes()).hexdigest()


def test_a_validation_broken_off_anywhere_is_made_up_for(
    cli: Cli, small_run: tuple[str, ...]
) -> None:
    settings = (*small_run, *SETTINGS)
    assert cli("train", *settings, "name=whole") == 0
    # Hit once in each start: within either network of the owed validation, in later ones.
    for after in (2, 6, 20, 1000):
        command = [sys.executable, "-c", CODE, str(after), "train", *settings, "name=hit"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            break
        assert done.returncode == 75, done.stderr
        state = loaded("runs/hit")
        assert state["progress"]["owes_validation"]
        assert f"stopped and saved at step {state['step']} of" in done.stderr
    assert done.returncode == 0 and after == 1000, done.stderr
    same_state("runs/whole", "runs/hit")
    assert loaded("runs/whole")["progress"] == loaded("runs/hit")["progress"]
    assert file_hash("whole") == file_hash("hit")
    best = [Path("runs", name, "checkpoints/best").resolve().name for name in ("whole", "hit")]
    assert best[0] == best[1]


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_one_process_of_two_that_is_hit_breaks_off_both(
    cli: Cli, small_run: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:  # fmt: skip
    script = tmp_path / "hit.py"
    script.write_text(CODE)
    settings = (*small_run, *SETTINGS, f"parallel={kind}", "device=cpu")

    def start(after: int, name: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                   "--nproc-per-node=2", str(script), str(after), "train", *settings,
                   f"name={name}"]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, check=False)

    assert start(1000, "whole").returncode == 0
    monkeypatch.setenv("HIT", "1")
    done = start(1, "hit")
    assert done.returncode != 0 and "stopped and saved at step 3 of" in done.stderr
    assert loaded("runs/hit")["progress"]["owes_validation"]
    assert start(1000, "hit").returncode == 0
    same_state("runs/whole", "runs/hit")
    assert file_hash("whole") == file_hash("hit")


# Rank 1 alone is hit: in the statistics before a validation, or while rank 0 has long to go on.
IN_STATISTICS = """
import os, signal
from vidtrain.cli import main
from vidtrain.running import validation
each = validation.statistics_batches
def hit(*args, **settings):
    for number, batch in enumerate(each(*args, **settings)):
        if number == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch
validation.statistics_batches = hit
main()
"""
BEFORE_THE_OTHER = """
import os, signal, time
from vidtrain.cli import main
from vidtrain.data.eval_loading import EvalLoader
each = EvalLoader.__iter__
def hit(self):
    for item in each(self):
        yield item
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            time.sleep(5)
EvalLoader.__iter__ = hit
main()
"""
X3D = ("model=x3d_xs", "parallel=fsdp", "train.precise_bn=6",
       *(f"model.input.{key}=32" for key in ("crop_size", "eval_crop_size", "eval_short_side")),
       "model.input.short_side=[32,32]")  # fmt: skip


@pytest.mark.dist
@pytest.mark.parametrize(
    ("code", "more"),
    [pytest.param(IN_STATISTICS, X3D, marks=pytest.mark.slow),
     (BEFORE_THE_OTHER, ("eval.batch_size=1", "parallel.timeout_seconds=20"))],
)  # fmt: skip
def test_all_break_off_when_one_is_asked(
    small_run: tuple[str, ...], tmp_path: Path, code: str, more: tuple[str, ...]
) -> None:
    """Neither waits for the other where it stands: the limit on that would end both unsaved."""
    script = tmp_path / "hit.py"
    script.write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
               str(script), "train", *small_run, "device=cpu", "validate.every='2 steps'",
               "train.epochs=40", *more]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "rank 1: stopped and saved at step 2 of" in done.stderr, done.stderr
    assert loaded(tmp_path / "runs/small")["progress"]["owes_validation"]


def test_a_signal_in_a_long_validation_does_not_wait_for_its_end(
    small_run: tuple[str, ...], tmp_path: Path
) -> None:
    slow = ("validate.num_clips=400", "eval.num_crops=3", "eval.batch_size=1")
    command = [sys.executable, "-m", "vidtrain", "train", *small_run, *slow, "train.epochs=1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        metrics = tmp_path / "runs/small/metrics.jsonl"
        while process.poll() is None and not (
            metrics.exists() and '"step": 6' in metrics.read_text()
        ):
            time.sleep(0.02)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert time.monotonic() - began < 10
    assert "stopped and saved at step 6 of 6" in said
    assert '"val"' not in metrics.read_text()
