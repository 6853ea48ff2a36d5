"""Fine-tuning from the command line: what is trained, at which rate, and an exact resume."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import loaded, same_state
from test_distributed import losses, torchrun
from test_stages import FULL

Cli = Callable[..., int]


def rows(run: str = "small") -> list[dict]:
    return [json.loads(line) for line in Path(f"runs/{run}/metrics.jsonl").read_text().splitlines()]


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {key for key in before if not before[key].equal(after[key])}


@pytest.mark.parametrize("preset", ["frozen_backbone", "linear_probe"])
def test_only_the_classifier_changes(
    cli: Cli, small_run: tuple[str, ...], preset: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*small_run, f"finetune={preset}", "average=ema", "average.decay=0.9")
    assert cli("train", *settings, "train.max_steps=1") == 0
    first = loaded("runs/small")
    assert "parameters are trained" in capsys.readouterr().err
    assert cli("train", *settings, "train.max_steps=3") == 0
    last = loaded("runs/small")
    for part in ("model", "average"):
        assert changed(first[part], last[part]) == {"9.weight", "9.bias"}
    frozen = {key: value for key, value in last["model"].items() if not key.startswith("9.")}
    assert not changed(frozen, last["average"])
    assert last["model"]["1.num_batches_tracked"] == 0
    assert cli("eval", "run=runs/small") == 0
    assert cli("export", "run=runs/small", "format=torch_export", "num_videos=2") == 0


def test_part_of_the_layers_changes(cli: Cli, small_run: tuple[str, ...]) -> None:
    settings = (*small_run, "finetune=partial", "finetune.train_layers=1", "average=ema",
                "average.decay=0.9")  # fmt: skip
    assert cli("train", *settings, "train.max_steps=1") == 0
    first = loaded("runs/small")["model"]
    assert cli("train", *settings, "train.max_steps=2") == 0
    assert {key.split(".")[0] for key in changed(first, loaded("runs/small")["model"])} == {
        "3", "4", "9"
    }  # fmt: skip


def test_layers_have_their_rates(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*small_run, "finetune=layer_decay", "finetune.head_lr=10", "train.lr_batch=64")
    assert cli("train", *settings, "train.max_steps=8") == 0
    said = capsys.readouterr().err
    assert "learning rate 6.25e-05: optimizer.lr=0.001 is for batches of 64" in said
    assert "layers learn at 0.562 to 10 times that rate" in said
    groups = loaded("runs/small")["optimizer"]["param_groups"]
    base = 0.001 * 4 / 64
    assert [(g["lr_scale"], g["weight_decay"]) for g in groups] == [
        (10, 0.05), (10, 0), (0.75, 0.05), (0.75, 0), (0.5625, 0.05), (0.5625, 0)
    ]  # fmt: skip
    assert [g["base_lr"] for g in groups] == pytest.approx([base * g["lr_scale"] for g in groups])
    rates = [row["lr"] for row in rows() if row["kind"] == "train"]
    assert max(rates) == pytest.approx(base)
    assert groups[0]["lr"] == pytest.approx(10 * rates[-1])


def test_a_fine_tuning_in_two_parts_equals_one_bit_for_bit(
    cli: Cli, small_run: tuple[str, ...]
) -> None:
    settings = (*small_run, *FULL, "finetune=layer_decay", "finetune.train_layers=1",
                "finetune.head_lr=10", "finetune.freeze_norm=true")  # fmt: skip
    assert cli("train", *settings, "name=whole", "train.max_steps=8") == 0
    assert cli("train", *settings, "name=parts", "train.max_steps=4") == 0
    assert cli("train", *settings, "name=parts", "train.max_steps=8") == 0
    same_state("runs/whole", "runs/parts")


@pytest.mark.dist
def test_two_ranks_fine_tune_as_one_process_does(
    cli: Cli, small_run: tuple[str, ...], tmp_path: Path
) -> None:
    # All batch norms are frozen, so that clips of other processes do not matter.
    settings = (*small_run, "finetune=layer_decay", "finetune.train_layers=1", "train.max_steps=6",
                "finetune.freeze_norm=true", "model.build.dropout=0.0")  # fmt: skip
    assert cli("train", *settings, "name=one") == 0
    done = torchrun(2, "train", *settings, "name=two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "runs/two") == pytest.approx(losses(tmp_path / "runs/one"), rel=1e-5)


def test_the_experiment_takes_any_model_and_data(
    cli: Cli, small_run: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [s for s in small_run if not s.startswith(("optimizer", "train.epochs", "name"))]
    assert cli("train", "experiment=finetune_small", *settings, "train.max_steps=2") == 0
    assert "learning rate 2.5e-05: optimizer.lr=0.0004" in capsys.readouterr().err
    assert Path("runs/tiny-folder-finetune/checkpoints/best/manifest.json").is_file()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("finetune=partial",), "train_layers=3 freezes nothing: the network has 2 layers below"),
        (("finetune.train_layers=some",), "train_layers=some must be all, head, or a number"),
        (("finetune.train_layers=-1",), "train_layers=-1 must be all, head, or a number"),
        (("finetune.layer_decay=1.0",), "finetune.layer_decay=1.0 must be"),
        (("finetune.head_lr=0",), "finetune.head_lr=0.0 must be at least"),
        (("finetune=linear_probe", "finetune.layer_decay=0.5"), "only the classifier is trained"),
        (
            ("finetune=linear_probe", "finetune.freeze_norm=true"),
            "freeze_norm=true freezes nothing",
        ),
        (("finetune=probe",), "finetune=probe is not a choice"),
        (("train.lr_batch=0",), "train.lr_batch=0 must be at least 1"),
        (("model.checkpointing=true",), "no blocks of several layers"),
    ],
)
def test_what_would_change_nothing_is_refused(
    cli: Cli, small_run: tuple[str, ...], settings: tuple[str, ...], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert cli("train", *small_run, *settings) == 2
    assert message in capsys.readouterr().err
    assert not Path("runs/small/checkpoints").exists()


def test_help_lists_the_presets(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("train", "--help") == 0
    out = capsys.readouterr().out
    assert "finetune=  frozen_backbone head_lr_x10 layer_decay linear_probe none partial" in out
