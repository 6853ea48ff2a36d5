"""`vidtrain benchmark scaling` as a command: real processes, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY

from vidtrain.benchmarking.scaling_group import started
from vidtrain.errors import InputError, UsageError

SCALING = ("benchmark", "scaling", *TINY)


@pytest.mark.slow
def test_two_processes_are_measured_beside_one(cli: Callable[..., int], tmp_path: Path) -> None:
    words = ("processes=[2]", "rounds=2", "batch_size=2", "train.accumulate=2", "gpus=[1,8,16]",
             "parallel.bucket_mb=0.001", "bandwidth_gbps=25", "output=figures")  # fmt: skip
    assert cli(*SCALING, *words) == 0
    found = json.loads((tmp_path / "figures/scaling.json").read_text("utf-8"))
    one, two = found["measured"]
    assert (one["processes"], two["processes"]) == (1, 2)
    for row in (one, two):
        assert len(row["seconds"]) == 2 and min(row["seconds"] + row["cpu"]) > 0
    assert one["efficiency"] == [1, 1] and one["overlap"] is None
    assert min(two["sums"]) > 0 and 0 <= two["overlap"] <= 1
    # The buckets of the model, in bytes, are those that DDP has made.
    assert [bucket["size"] for bucket in found["step"]["buckets"]] == found["ddp_buckets"]["2"]
    assert len(found["ddp_buckets"]["2"]) > 1 and found["ddp_buckets"]["1"] == []
    assert all(0 <= bucket["ready"] <= 1 for bucket in found["step"]["buckets"])
    assert found["step"]["buckets"][-1]["ready"] == 1 and 0 < found["step"]["backward"] < 1
    first, *others = found["predictions"]
    assert first["efficiency"] == 1
    assert all(0 < row["efficiency"] <= 1 for row in others)
    assert (tmp_path / "figures/scaling.png").read_bytes().startswith(b"\x89PNG")
    shown = (tmp_path / "figures/scaling.txt").read_text("utf-8")
    assert "not measured" in shown and "25 Gbit/s" in shown and "flatters" in shown
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_what_the_processes_refuse_is_said_once(
    cli: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*SCALING, "processes=[1]", "mix=mixup", "batch_size=1") == 2
    said = capsys.readouterr().err
    assert said.count("mix pairs clips") == 1 and "Traceback" not in said


@pytest.mark.slow
def test_processes_answer_and_one_that_fails_ends_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "orderly.py").write_text(
        "import os, sys\n"
        "from vidtrain.benchmarking.scaling_group import serve\n"
        "from vidtrain.errors import UsageError\n"
        "rank = int(os.environ['RANK'])\n"
        "def answer(order):\n"
        "    if order == 'refuse': raise UsageError('no')\n"
        "    if order == 'fail' and rank == 1: raise ZeroDivisionError('on rank 1')\n"
        "    return (rank, order)\n"
        "serve(sys.argv[1], answer)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    with started(2, "orderly") as group:
        assert group.order("here?") == [(0, "here?"), (1, "here?")]
        with pytest.raises(UsageError, match="no"):
            group.order("refuse")
    assert group.launcher.returncode == 0
    with (
        pytest.raises(InputError, match="ZeroDivisionError: on rank 1"),
        started(2, "orderly") as group,
    ):
        group.order("fail")
    assert group.launcher.returncode != 0


def test_one_of_several_processes_starts_no_others(
    cli: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")  # as under torchrun
    assert cli(*SCALING) == 2
    assert "run it without torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("processes=[0,2]", "processes=[0, 2] must be numbers of at least 1"),
        ("gpus=[]", "gpus=[] must be"),
        ("gpus=[8,12]", "gpus=12 is not a multiple of gpus_per_node=8"),
        ("rounds=0", "rounds=0 must be at least 1"),
        ("bandwidth_gbps=0", "bandwidth_gbps=0 must be above 0"),
        ("jitter=-0.1", "jitter=-0.1 must not be below 0"),
        ("parallel=fsdp", "parallel=fsdp: only parallel=ddp"),
        ("strong=true", "strong=true splits batch_size=4, which is no multiple of 8"),
        ("train.batch_size=8", "train.batch_size has no meaning for what=scaling; use batch_size="),
        ("dtype=bf16", "dtype has no meaning for what=scaling; use precision="),
    ],
)
def test_wrong_settings_are_refused(
    cli: Callable[..., int], word: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*SCALING, word) == 2
    assert said in capsys.readouterr().err
    assert not Path("runs").exists()


def test_help_has_its_examples(cli: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("benchmark", "--help") == 0
    shown = capsys.readouterr().out
    assert "vidtrain benchmark scaling model=" in shown and "model=  " in shown
