"""A misspelt setting is answered with the nearest of what the chosen parts take."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import TINY

Cli = Callable[..., int]


@pytest.mark.parametrize(
    ("settings", "answer"),
    [
        ("average=ema average.decey=0.9", "did you mean average.decay?"),
        ("optimizer=sgd optimizer.momentun=0.9", "did you mean optimizer.momentum?"),
        ("optimizer=lamb,sgd optimizer.lrr=1 -m", "did you mean optimizer.lr?"),
        ("schedule=one_cycle schedule.warmpu=3", "did you mean schedule.warmup?"),
        ("augment=randaugment augment.magnitud=3", "did you mean augment.magnitude or augment."),
        ("mix=mixup mix.alfa=1", "mix takes mixup_alpha, prob, mode, +cutmix_alpha, +switch_prob"),
        ("clip_sampler=dense clip_sampler.train.target_fpss=3",
         "did you mean +clip_sampler.train.target_fps?"),
        ("data.source.sed=1", "did you mean data.source.seed?"),
        ("model=slowfast_r50 model.build.dropuot=0.1", "did you mean model.build.dropout?"),
        ("model=slowfast_r50 model.build.vershun=4x16", "did you mean model.build.version?"),
        ("optimizer.amsgrad=true", "torch.optim.AdamW takes it, and its YAML does not give it; "
         "write +optimizer.amsgrad=..."),
        ("average.decay=0.9", "nothing is chosen for average; choose average=ema or swa"),
        ("task.teacher=runs/base", "as it is; it is one of task=distillation"),
        ("task.gamma_neg=3", "as it is; it is one of task=multilabel"),
        ("task.foo=3", "task takes label_smoothing, class_weights, criterion, threshold\n"),
        ("log.to=[] log.to=tensorboard", "log.to is a list: write log.to=[tensorboard]"),
        ("+optimizer.lr.x=1", "optimizer.lr"),
        ("~optimizer.lrr", "did you mean optimizer.lr?"),
        ("data.rooot=1", "did you mean data.root?"),
        ("lr=1", "did you mean optimizer.lr?"),
        ("weights=1", "did you mean model.weights?"),
        ("qqq=1", "it must be one of augment, average, clip_sampler"),
    ],
)  # fmt: skip
def test_the_answer_is_a_setting_of_what_was_chosen(
    cli: Cli, settings: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("train", *settings.split()) == 2
    error = capsys.readouterr().err
    assert answer in error, error
    assert "_target_" not in error and "Traceback" not in error
    assert not Path("runs").exists()


def test_a_model_of_ones_own_is_known_too(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("train", *TINY, "model.build.wdth=3") == 2
    assert "did you mean model.build.width?" in capsys.readouterr().err
