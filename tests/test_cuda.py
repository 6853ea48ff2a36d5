"""What only a GPU can show: precisions, strict repeats, resume, compiling, memory, profiles."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import loaded, same_state

Cli = Callable[..., int]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
# Dropout is drawn on the device, and otherwise in a compiled network.
ALIKE = ("model.build.dropout=0", "train.max_steps=6")
FULL = ("mix=mixup_cutmix", "augment=randaugment", "average=ema", "average.decay=0.9",
        "train.accumulate=2", "data.num_workers=2", "train.clip_grad_norm=1.0")  # fmt: skip


def run(cli: Cli, small_run: tuple[str, ...], name: str, *words: str) -> list[dict[str, Any]]:
    """Trains on the GPU, and returns the rows of metrics.jsonl."""
    assert cli("train", *small_run, "device=cuda", *words, f"name={name}") == 0
    lines = Path("runs", name, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def losses(rows: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([row["loss"] for row in rows if row["kind"] == "train"])


def test_a_gpu_trains_as_a_cpu_does(cli: Cli, small_run: tuple[str, ...]) -> None:
    there = losses(run(cli, small_run, "gpu", *ALIKE))
    here = losses(run(cli, small_run, "cpu", *ALIKE, "device=cpu"))
    torch.testing.assert_close(there, here, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("precision", ["tf32", "bf16", "fp16"])
def test_lower_precision_stays_near(cli: Cli, small_run: tuple[str, ...], precision: str) -> None:
    exact = losses(run(cli, small_run, "exact", *ALIKE))
    found = losses(run(cli, small_run, precision, *ALIKE, f"precision={precision}"))
    torch.testing.assert_close(found, exact, rtol=0.03, atol=0.03)


def test_strict_runs_are_equal_and_resume_exactly(cli: Cli, small_run: tuple[str, ...]) -> None:
    settings = (*FULL, "repro=strict", "precision=bf16")
    run(cli, small_run, "whole", *settings)
    run(cli, small_run, "again", *settings)
    run(cli, small_run, "parts", *settings, "train.max_steps=5")
    run(cli, small_run, "parts", *settings)
    for name in ("again", "parts"):
        same_state("runs/whole", f"runs/{name}")
    hashes = {hashlib.sha256(Path("runs", name, "metrics.jsonl").read_bytes()).hexdigest()
              for name in ("whole", "again")}  # fmt: skip
    assert len(hashes) == 1


def test_compiled_and_channels_last_train_alike(cli: Cli, small_run: tuple[str, ...]) -> None:
    plain = losses(run(cli, small_run, "plain", *ALIKE))
    for name, word in (("last", "model.channels_last=true"), ("compiled", "model.compile=true")):
        found = losses(run(cli, small_run, name, word, *ALIKE))
        torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-3)


def test_the_largest_micro_batch_is_found(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run(cli, small_run, "auto", "train.accumulate=auto", "train.max_steps=1")
    assert "train.accumulate=1" in capsys.readouterr().err


def test_a_profile_adds_up(cli: Cli, small_run: tuple[str, ...]) -> None:
    run(cli, small_run, "seen", "profile=true", "train.epochs=3")
    summary = json.loads(Path("runs/seen/profile/summary.json").read_text())
    shares = summary["shares"]
    assert abs(sum(shares.values()) - 1) < 0.01
    assert shares["forward"] > 0 and shares["backward"] > 0


def test_memory_and_what_comes_after(cli: Cli, small_run: tuple[str, ...]) -> None:
    rows = run(cli, small_run, "done", "train.batch_size=8")
    speed = [json.loads(line) for line in Path("runs/done/speed.jsonl").read_text().splitlines()]
    assert all(row["memory_gib"] > 0 for row in speed)
    assert cli("eval", "run=runs/done", "device=cuda") == 0
    there = json.loads(Path("runs/done/eval/results.json").read_text())
    assert cli("eval", "run=runs/done", "device=cpu") == 0
    here = json.loads(Path("runs/done/eval/results.json").read_text())
    assert there["top1"] == here["top1"] and abs(there["loss"] - here["loss"]) < 1e-3
    assert cli("export", "run=runs/done") == 0
    assert loaded("runs/done")["step"] == rows[-1]["step"]


@pytest.mark.dist
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_one_process_under_torchrun_is_what_it_is_alone(
    cli: Cli, small_run: tuple[str, ...], kind: str
) -> None:
    """With one process there is nobody to talk to: neither DDP nor FSDP does anything."""
    alone = losses(run(cli, small_run, "alone", "repro=strict"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1",
               "-m", "vidtrain", "train", *small_run, "device=cuda", "repro=strict",
               f"parallel={kind}", f"name={kind}"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in Path("runs", kind, "metrics.jsonl").read_text().split("\n")
            if line]  # fmt: skip
    assert torch.equal(losses(rows), alone)


def test_doctor_sees_the_gpu(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    cli("doctor", "--json", "model=c3d_small", "device=cuda")
    assert torch.cuda.get_device_name() in capsys.readouterr().out
