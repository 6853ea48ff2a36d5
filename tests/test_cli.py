"""The command line as a person meets it: help, typos, wrong values, exit codes."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY, vidtrain

Cli = Callable[..., int]


@pytest.mark.parametrize("args", [[], ["--help"], ["train", "--help"], ["--version"]])
def test_help_is_quick_and_needs_no_torch(args: list[str], tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = vidtrain(*args, cwd=tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    assert done.returncode == 0 and "vidtrain" in done.stdout and not done.stderr
    assert seconds < 0.3, f"{seconds:.2f} s of CPU time"
    probe = "import sys; from vidtrain.cli import run; run(sys.argv[1:]); "
    probe += "sys.exit('torch' in sys.modules or 'hydra' in sys.modules)"
    assert vidtrain(*args, cwd=tmp_path, prefix=("-c", probe)).returncode == 0


def test_help_lists_every_stage_and_choice(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli() == 0
    text = capsys.readouterr().out
    for stage in ("train", "eval", "export", "models", "doctor"):
        assert f"\n  {stage} " in text
    assert cli("train", "--help", *TINY[:2]) == 0
    text = capsys.readouterr().out
    for name in ("slowfast_r50", "tiny", "list_file", "mixup_cutmix", "bf16", "adamw", "tsn"):
        assert name in text


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "'trian' is not a stage; did you mean train?"),
        (["train", "model=slowfst_r50"], "slowfst_r50 is not a choice; did you mean slowfast"),
        (["train", "data=kinetix"], "data=kinetix is not a choice; did you mean"),
        (["train", "clip_sampler=tns"], "clip_sampler=tns is not a choice; did you mean tsn"),
        (["train", "train.epoch=3"], "train.epoch is not a setting of vidtrain train; did you mean "
         "train.epochs"),
        (["train", "modle=x3d_s"], "modle is not a setting of vidtrain train; did you mean model"),
        (["train", "epochs=3"], "epochs is not a setting of vidtrain train; did you mean train.ep"),
        (["train", "optimizer.lrr=3"], "did you mean optimizer.lr"),
        (["train", "train.epochs=many"], "train.epochs='many': expected int, got str"),
        (["train", "train.clip_grad_norm=big"], "train.clip_grad_norm='big': expected float, got"),
        (["train", "resume=perhaps"], "resume='perhaps': expected bool"),
        (["train", "data=folder"], "data.root must be given: add data.root=VALUE"),
        (["train", "model.input.mean=3"], "model.input.mean"),
        (["train", "train.epochs=[1"], "train.epochs=[1"),
        (["eval"], "vidtrain eval needs a run folder: run=FOLDER"),
    ],
)  # fmt: skip
def test_mistakes_are_answered_with_what_is_valid(
    cli: Cli, args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli(*args) == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert "Traceback" not in error and error.count("\n") <= 3
    assert not Path("runs").exists(), "a wrong command line leaves nothing behind"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.lr=fast", "optimizer.lr='fast': expected"),
        ("model.build.dropout=much", "model.build.dropout='much': expected float, got str"),
        ("+model.build.depth=50", "model.build.depth is not an argument of my_models.tiny"),
        ("+optimizer.momentun=0.9", "optimizer.momentun is not an argument of torch.optim.AdamW"),
        ("model.build._target_=os.system", "model.build._target_='os.system' is not in an allowed"),
        ("model.build._target_=vidtrain.cli.Path", "is not in an allowed package"),
        ("model.build._target_=vidtrain.models.nothing", "cannot be imported"),
        ("model.build._target_=vidtrain.records.runlog.write_text", "is not in an allowed package"),
        ("+train.epoch=3 +foo=1", "foo, train.epoch is not a setting"),
        ("optimizer.lr=-1", "optimizer: torch.optim.AdamW refuses its arguments: Invalid learning"),
        ("seed=-1", "seed=-1 must be at least 0"),
        ("num_threads=0", "num_threads=0 must be at least 1"),
        ("data.num_workers=-1", "data.num_workers=-1 must be at least 0"),
        ("train.clip_grad_norm=0", "train.clip_grad_norm=0.0 must be at least"),
        ("task.label_smoothing=1.5", "task.label_smoothing=1.5 must be from 0 to below 1"),
        ("save.every=0", "save.every=0 is less than one optimizer step"),
        ("save.every=soon", "save.every='soon' is not a length of time"),
        ("save.keep_last=0", "save.keep_last=0 must be at least 1"),
        ("train.accumulate=some", "train.accumulate=some must be at least 1, or auto"),
        ("train.clip_grad_norm=1 train.clip_grad_agc=0.1", "are two ways to clip"),
        ("train.precise_bn=2 finetune.freeze_norm=true", "train.precise_bn=2 changes nothing"),
        ("train.lr_rule=sqrt", "train.lr_rule=sqrt changes nothing without train.lr_batch"),
        ("train.max_steps=0", "train.max_steps=0 must be at least 1"),
        ("data.decoder=pyva", "pyva"),
        ("precision.dtype=fp8", "precision.dtype='fp8' is unknown; use one of fp32, bf16, fp16"),
        ("device=tpu", "device='tpu'"),
        ("device=cuda:7", "device='cuda:7' needs GPU 7"),
        ("train.batch_size=5 train.accumulate=2", "train.batch_size=5 is the batch over all"),
        ("train.batch_size=64", "train.batch_size=64 is more than the 24 videos"),
        ("train.batch_size=3 mix=mixup", "mix pairs clips"),
        ("mix=mixup mix.mixup_alpha=-1", "mix.mixup_alpha=-1"),
        ("schedule.warmup=9", "schedule.warmup=9"),
        ("eval.num_crops=2", "eval.num_crops=2 must be 1 or 3"),
        ("validate.num_crops=2", "validate.num_crops=2 must be 1 or 3"),
        ("augment=trivialaugment +augment.magnitude=1", "augment.magnitude=1.0 is of randaugment"),
        ("schedule=multistep schedule.milestones=[1] schedule.gamma=0", "schedule.gamma=0 ends"),
        ("validate.num_clips=0", "validate.num_clips=0 must be at least 1"),
        ("task=multilabel task.gamma_neg=3", "task.gamma_neg=3.0 is of task.criterion=asymmetric"),
        ("train.dry_run=true -m seed=1,2", "train.dry_run=true tries one training"),
        ("model.input.crop_size=64", "model.input.short_side=[32, 40] must be"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(
    cli: Cli, small_run: tuple[str, ...], override: str, message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert cli("train", *small_run, *override.split()) == 2
    error = capsys.readouterr().err
    assert message in error, error
    assert "Traceback" not in error
    assert not list(Path("runs").rglob("*.pt"))


def test_a_missing_run_folder_is_named(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("eval", "run=runs/none") == 1
    assert "run=runs/none is not a run folder" in capsys.readouterr().err


def test_cfg_job_prints_the_config_and_does_nothing(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", "--cfg", "job", "optimizer.lr=0.25") == 0
    assert "lr: 0.25" in capsys.readouterr().out
    assert not Path("runs").exists()


def test_a_folder_that_cannot_be_made(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("in the way")
    assert cli("train", "runs=file") == 1
    error = capsys.readouterr().err
    assert "cannot make the run folder file/" in error and "runs=" in error


def test_models_lists_what_matches(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("models", "x3d_?", *TINY[:2]) == 0
    text = capsys.readouterr().out
    assert "x3d_m" in text and "3.79" in text and "slow" not in text
    assert cli("models", "nosuch") == 2
    assert "no model matches 'nosuch'; there are c2d_r50" in capsys.readouterr().err


def test_doctor_checks_this_machine(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("doctor") == 0
    text = capsys.readouterr().out
    assert "decoder pyav" in text and "open files" in text
    assert cli("doctor", "runs=/proc/nowhere") == 1
    assert "run folder" in capsys.readouterr().err


def test_module_and_torchrun_reach_the_same_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "vidtrain",
         "trian"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "'trian' is not a stage" in done.stderr
