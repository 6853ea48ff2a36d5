"""One training on any number of gloo processes: the same losses, bits and weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import loaded, same_state, torchrun
from safetensors.torch import load_file

from vidtrain.build import accumulation
from vidtrain.config.train import LoopConfig
from vidtrain.errors import UsageError

Cli = Callable[..., int]
pytestmark = pytest.mark.dist

# Batch norm, dropout and mixing, which all depend on what lies in a micro-batch.
MICRO = ("train.batch_size=8", "train.micro_batch=2", "model.build.dropout=0.3", "mix=mixup",
         "augment=randaugment", "average=ema", "train.clip_grad_norm=1.0", "log.to=[]")  # fmt: skip
TOKENS = ("model=tokens", "train.batch_size=8", "train.micro_batch=2", "average=ema",
          "train.clip_grad_norm=1.0", "log.to=[]")  # fmt: skip


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def trained(ranks: int, *args: str, cwd: Path) -> str:
    done = torchrun(ranks, "train", *args, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.slow
def test_one_two_and_four_processes_have_the_same_losses(
    cli: Cli, small_run: tuple[str, ...], tmp_path: Path
) -> None:
    settings = (*small_run, *MICRO, "train.max_steps=5")
    assert cli("train", *settings, "name=one") == 0
    for ranks in (2, 4):
        trained(ranks, *settings, f"name=with{ranks}", cwd=tmp_path)
    one = losses(tmp_path / "runs/one")
    assert len(one) == 5
    for ranks in (2, 4):
        assert losses(tmp_path / f"runs/with{ranks}") == pytest.approx(one, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [3, 4])
def test_a_resumed_run_has_the_same_bits(
    small_run: tuple[str, ...], tmp_path: Path, ranks: int
) -> None:
    settings = (*small_run, *MICRO, "model.build.width=32", "parallel.bucket_mb=0.01")
    settings = (*settings, f"train.batch_size={4 * ranks}", "train.micro_batch=2")
    trained(ranks, *settings, "name=whole", "train.max_steps=3", cwd=tmp_path)
    trained(ranks, *settings, "name=cut", "train.max_steps=1", cwd=tmp_path)
    trained(ranks, *settings, "name=cut", "train.max_steps=3", cwd=tmp_path)
    same_state(tmp_path / "runs/whole", tmp_path / "runs/cut")
    assert losses(tmp_path / "runs/whole") == losses(tmp_path / "runs/cut")


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(
    cli: Cli, small_run: tuple[str, ...], tmp_path: Path
) -> None:
    settings = (*small_run, *MICRO)
    assert cli("train", *settings, "name=one", "train.max_steps=6") == 0
    trained(4, *settings, "name=moved", "train.max_steps=2", cwd=tmp_path)
    said = trained(2, *settings, "name=moved", "train.max_steps=4", cwd=tmp_path)
    two, four = "2 processes x 2 micro-batches", "4 processes x 1 micro-batch"
    assert f"going on with {two} instead of {four}: " in said
    assert cli("train", *settings, "name=moved", "train.max_steps=6") == 0
    assert losses(tmp_path / "runs/moved") == pytest.approx(losses(tmp_path / "runs/one"), rel=1e-5)


@pytest.mark.parametrize(
    "extra",
    [(), pytest.param(("model.checkpointing=true", "precision=bf16"), marks=pytest.mark.slow)],
)
def test_fsdp_learns_as_ddp_does(
    small_run: tuple[str, ...], tmp_path: Path, extra: tuple[str, ...]
) -> None:
    settings = (*small_run, *TOKENS, *extra, "train.max_steps=4")
    trained(2, *settings, "name=ddp", cwd=tmp_path)
    trained(2, *settings, "name=fsdp", "parallel=fsdp", cwd=tmp_path)
    tolerance = 1e-2 if extra else 1e-5
    assert losses(tmp_path / "runs/fsdp") == pytest.approx(
        losses(tmp_path / "runs/ddp"), rel=tolerance
    )


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_compiled_network_learns_as_the_plain_one_does(
    small_run: tuple[str, ...], tmp_path: Path, kind: str
) -> None:
    settings = (*small_run, *MICRO, "model.build.dropout=0.0", f"parallel={kind}",
                "train.max_steps=3")  # fmt: skip
    trained(2, *settings, "name=plain", cwd=tmp_path)
    said = trained(2, *settings, "name=compiled", "model.compile=true", cwd=tmp_path)
    assert "graph break" in said
    assert losses(tmp_path / "runs/compiled") == pytest.approx(
        losses(tmp_path / "runs/plain"), rel=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "tolerance"),
    [
        ("parallel.find_unused=true", 1e-6),
        ("parallel.bucket_mb=0.01", 1e-6),
        ("parallel.compress=bf16", 0.1),
    ],
)
def test_options_of_ddp_change_no_loss(
    cli: Cli, small_run: tuple[str, ...], tmp_path: Path, option: str, tolerance: float
) -> None:
    settings = (*small_run, *MICRO, "train.max_steps=4")
    assert cli("train", *settings, "name=one") == 0
    trained(2, *settings, option, "name=two", cwd=tmp_path)
    one, two = losses(tmp_path / "runs/one"), losses(tmp_path / "runs/two")
    assert two == pytest.approx(one, rel=tolerance)
    means = [loaded(tmp_path / f"runs/{name}")["optimizer"]["state"][0]["exp_avg"]
             for name in ("one", "two")]  # fmt: skip
    alike = torch.allclose(means[0], means[1], rtol=1e-4, atol=1e-7)
    assert alike == ("bf16" not in option), "it rounds"


@pytest.mark.slow
def test_shards_have_the_statistics_of_rank_0(small_run: tuple[str, ...], tmp_path: Path) -> None:
    settings = (*small_run, *MICRO, "train.max_steps=3", "validate.every=100")
    for kind in ("ddp", "fsdp"):
        trained(3, *settings, "train.batch_size=6", f"name={kind}", f"parallel={kind}",
                "save.every='2 steps'", "save.keep_last=3", cwd=tmp_path)  # fmt: skip
    one, two = (
        loaded(tmp_path / f"runs/{kind}", "step_00000002")["model"] for kind in ("ddp", "fsdp")
    )
    assert one.keys() == two.keys()
    for name in ("1.running_mean", "1.running_var", "4.running_mean", "4.running_var"):
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_sgd_goes_on_under_another_kind_of_parallel(
    cli: Cli, small_run: tuple[str, ...], tmp_path: Path
) -> None:
    settings = (*small_run, *TOKENS, "optimizer=sgd")
    assert cli("train", *settings, "name=one", "train.max_steps=4") == 0
    assert cli("train", *settings, "name=moved", "train.max_steps=1") == 0
    trained(2, *settings, "name=moved", "parallel=fsdp", "train.max_steps=3", cwd=tmp_path)
    assert cli("train", *settings, "name=moved", "train.max_steps=4") == 0
    assert losses(tmp_path / "runs/moved") == pytest.approx(losses(tmp_path / "runs/one"), rel=1e-5)
    group = loaded(tmp_path / "runs/moved")["optimizer"]["param_groups"][0]
    assert group["fused"], "the kernels are those of the network at hand"


@pytest.mark.slow
def test_a_sharded_checkpoint_is_read_by_any_number_of_processes(
    cli: Cli, small_run: tuple[str, ...], tmp_path: Path
) -> None:
    settings = (*small_run, *TOKENS, "train.batch_size=12", "train.micro_batch=1")
    trained(4, *settings, "name=four", "parallel=fsdp", cwd=tmp_path)
    for ranks, step, kind in ((4, 1, "fsdp"), (3, 2, "fsdp"), (2, 3, "ddp"), (1, 4, "ddp")):
        limit = (f"parallel={kind}", f"train.max_steps={step}")
        said = trained(ranks, *settings, "name=moved", *limit, cwd=tmp_path)
        assert step == 1 or f"going on from step {step - 1} of 4" in said
        assert loaded(tmp_path / "runs/moved")["step"] == step
    assert losses(tmp_path / "runs/moved") == pytest.approx(
        losses(tmp_path / "runs/four"), rel=1e-5
    )
    assert cli("eval", "run=runs/four") == 0
    assert cli("export", "run=runs/four", "format=safetensors", "checkpoint=last") == 0
    exported = load_file(tmp_path / "runs/four/export/model.safetensors")
    average = loaded(tmp_path / "runs/four")["average"]
    assert exported.keys() == average.keys()
    assert all(torch.equal(exported[name], average[name]) for name in average)


def test_a_process_that_raises_is_named_and_ends_the_others(
    small_run: tuple[str, ...], tmp_path: Path
) -> None:
    trouble = ("~model.build.width", "model.build._target_=my_models.troubled",
               "~model.build.dropout", "+model.build.trouble=raise")  # fmt: skip
    done = torchrun(3, "train", *small_run, "train.batch_size=6", *trouble, cwd=tmp_path)
    assert done.returncode != 0
    assert "ZeroDivisionError: a bug of this model" in done.stderr
    assert "in forward" in done.stderr and "my_models.py" in done.stderr
    assert "vidtrain: rank 1: failed, see above" in done.stderr
    assert "another process is gone" in done.stderr


@pytest.mark.slow
def test_a_process_that_hangs_is_named_and_ends_the_others(
    small_run: tuple[str, ...], tmp_path: Path
) -> None:
    trouble = ("~model.build.width", "model.build._target_=my_models.troubled",
               "~model.build.dropout", "+model.build.trouble=hang")  # fmt: skip
    settings = (*small_run, "train.batch_size=6", "parallel.timeout_seconds=8")
    done = torchrun(3, "train", *settings, *trouble, cwd=tmp_path)
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("vidtrain: rank ")]
    assert said and all("rank 1 (" in line and "forward of step 2" in line for line in said)
    assert "rank 0 (" not in done.stderr and "rank 2 (" not in done.stderr
    assert "time.sleep(3600)" in done.stderr, "it shows where it stands"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("parallel=fsdp", "parallel.compress=bf16"), "means nothing to parallel=fsdp"),
        (("parallel.gather=bf16",), "means nothing to parallel=ddp"),
        (("parallel=fsdp", "parallel.gather=bf16"), "set precision=bf16 too"),
        (("parallel.compress=fp8",), "parallel.compress=fp8 must be null or bf16"),
        (("parallel.compress=bf16", "repro=strict"), "repro=strict does not"),
        (("parallel=fsdp", "model.channels_last=true"), "not known to be right"),
        (("parallel.static_graph=true", "train.accumulate=2"), "fails in torch with"),
        (("parallel.kind=pipeline",), "must be one of ddp, fsdp"),
        (("parallel.timeout_seconds=0",), "parallel.timeout_seconds=0"),
        (("train.micro_batch=3",), "train.micro_batch must divide train.batch_size"),
        (("train.micro_batch=2", "train.accumulate=4"), "train.accumulate=4 says otherwise"),
        (("train.micro_batch=2", "train.accumulate=auto"), "use one of them"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str],
    settings: tuple[str, ...], message: str,
) -> None:  # fmt: skip
    assert cli("train", *small_run, *settings) == 2
    assert message in capsys.readouterr().err


def test_a_number_of_processes_that_does_not_fit_is_named() -> None:
    with pytest.raises(UsageError, match="with it, use 1, 2, 4 processes"):
        accumulation(LoopConfig(batch_size=8), 2, world_size=3)
    assert accumulation(LoopConfig(batch_size=8), 2, world_size=2) == 2
