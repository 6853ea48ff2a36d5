"""Validation while training: statistics, both sets of weights, and which is the best so far."""

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import nn

from vidtrain import distributed
from vidtrain.config.train import TrainConfig
from vidtrain.data.augment import to_input
from vidtrain.data.loading import ClipBatch, statistics_batches
from vidtrain.distributed import World
from vidtrain.errors import UsageError, did_you_mean
from vidtrain.parallel.replicas import restore_buffers
from vidtrain.parallel.shards import whole
from vidtrain.records.runlog import RunLog
from vidtrain.running.evaluation import BrokenOff, evaluate
from vidtrain.running.parts import Parts
from vidtrain.running.stepping import plain_input
from vidtrain.tasks.scores import Scores
from vidtrain.training.batch_norm import precise_statistics

# The rows of metrics.jsonl that are written after a validation, not with the step before it.
ROWS = ("val", "val_raw", "weights")


def validate(
    parts: Parts, config: TrainConfig, log: RunLog, world: World, stop: Callable[[], bool]
) -> bool:
    """Evaluates the averaged weights if there are any, and the plain ones; notes the best.

    Where a signal breaks it off, all is as it was before, and `progress.owes_validation` is true.

    Args:
        parts: What is trained.
        config: The training's settings.
        log: Where figures go.
        world: This process among all.
        stop: Says whether this process was asked to stop.

    Returns:
        Whether the weights are among the best so far; the same on every process.

    Raises:
        InputError: A video cannot be read.
        UsageError: save.metric is none of the figures.
    """
    progress = parts.progress
    progress.owes_validation = True
    averaged = parts.average is not None and parts.average.ready
    networks = {"val": parts.average.module if averaged else parts.model}
    if averaged:
        networks["val_raw"] = parts.model
    kept = {kind: [buffer.clone() for buffer in network.buffers()]
            for kind, network in networks.items()}  # fmt: skip
    try:
        results = {kind: scores_of(parts, config, network, world, stop)
                   for kind, network in networks.items()}  # fmt: skip
    except BrokenOff:
        for kind, network in networks.items():
            restore_buffers(network, kept[kind])
        return False
    progress.owes_validation = False
    told: list[dict[str, Any]] = []  # on rank 0 all figures of each network
    judged, *_ = [
        distributed.together(partial(tell, parts, config, log, kind, scores, told), world)
        for kind, scores in results.items()
    ]
    log.table()
    name = metric(config, parts)
    among = progress.judge(judged[name], judged, lower_is_better=name == "loss",
                           keep=config.save.keep_best)  # fmt: skip
    if progress.best[0]["step"] == progress.step:
        distributed.together(
            lambda: log.best(results["val"], told[0], parts.class_names, task=parts.task,
                             views=parts.val.views),
            world,
        )  # fmt: skip
    return among


def scores_of(
    parts: Parts, config: TrainConfig, network: nn.Module, world: World, stop: Callable[[], bool]
) -> list[Scores]:
    """Returns on rank 0 the scores of all videos, for weights whose statistics are brought up.

    Raises:
        BrokenOff: A process was asked to stop.
    """
    distributed.copy_buffers(network, world)
    if config.train.precise_bn:
        take_statistics(parts, config, network, world, stop)
    with whole(network, reshard=config.parallel.reshard):  # shards may differ in length
        return evaluate(
            network, parts.val,
            batch_size=config.eval.batch_size,
            to_input=lambda clips: to_input(
                clips, mean=config.model.input.mean, std=config.model.input.std
            ),
            precision=parts.precision, world=world, stop=stop,
        )  # fmt: skip


def tell(
    parts: Parts, config: TrainConfig, log: RunLog, kind: str, scores: list[Scores],
    told: list[dict[str, Any]],
) -> dict[str, float]:  # fmt: skip
    """Writes and says the figures of an evaluation, and adds all of them to `told`.

    Returns:
        The figures that are plain numbers.

    Raises:
        UsageError: save.metric is none of them.
    """
    found = parts.task.figures(scores, parts.class_names)
    numbers = {k: float(v) for k, v in found.items() if isinstance(v, int | float)}
    name = metric(config, parts)
    if name not in numbers:
        hint = did_you_mean(name, numbers) or f"it is one of {', '.join(numbers)}"
        raise UsageError(f"save.metric={name} is no figure of this validation; {hint}")
    log.row(kind, **{k: v for k, v in found.items() if isinstance(v, int | float)})
    averaged = parts.average is not None and parts.average.ready
    words = {"val": " (averaged weights)" if averaged else "", "val_raw": " (plain weights)"}
    log.say(f"epoch {parts.timeline.epoch_of(parts.progress.step):.4g}: "
            f"{parts.task.summary(found)}{words[kind]}")  # fmt: skip
    told.append(found)
    return numbers


def metric(config: TrainConfig, parts: Parts) -> str:
    """Returns the figure that "best" goes by."""
    return config.save.metric or parts.task.metric


def take_statistics(
    parts: Parts, config: TrainConfig, network: nn.Module, world: World, stop: Callable[[], bool]
) -> None:
    """Takes batch-norm statistics anew over some training batches, as they come in training.

    They are of no use where `stop` says so meanwhile.
    """
    count, step = config.train.precise_bn, parts.progress.step

    def clips(batches: Iterator[ClipBatch]) -> Iterator[torch.Tensor]:
        for batch in batches:
            if distributed.any_true(stop(), world):  # all alike: FSDP sends weights in each pass
                return
            parts.bad.add(batch.bad, parts.clips.videos)
            yield plain_input(parts, config, world, batch)

    wanted = statistics_batches(parts.clips, parts.plan, rank=world.rank, step=step, count=count)
    with closing(wanted) as batches:
        precise_statistics(
            network, clips(batches), num_batches=count,
            mean=lambda value: distributed.mean(value, world),
            autocast=parts.precision.autocast,
        )  # fmt: skip
