"""Train a model: build the parts in order, then loop."""

import dataclasses
import math
import time
from contextlib import ExitStack, closing
from pathlib import Path

import torch
from torch.profiler import record_function

from vidtrain import build, distributed, interrupt
from vidtrain.checkpoints.checkpoint_writing import bring_back
from vidtrain.checkpoints.saving import Saver
from vidtrain.config.train import TrainConfig
from vidtrain.data.loading import train_batches
from vidtrain.distributed import World
from vidtrain.errors import Interrupted
from vidtrain.interrupt import Stop
from vidtrain.models import memory
from vidtrain.parallel import telling
from vidtrain.records import sinks
from vidtrain.records.alone import alone
from vidtrain.records.runlog import Meter, RunLog, finite, shown_path
from vidtrain.running import batch_finder, profiling, strict, watchdog
from vidtrain.running.dry_run import dry_run
from vidtrain.running.introducing import introduce, summarise
from vidtrain.running.parts import Parts, build_parts, last_step
from vidtrain.running.resuming import restore, save, saver_of
from vidtrain.running.sharded_saving import ShardedSaver
from vidtrain.running.stepping import optimizer_step
from vidtrain.running.trials import warm_up
from vidtrain.running.validation import ROWS, validate


def train(config: TrainConfig) -> float | None:
    """Trains, validates, saves; goes on where the run folder's last checkpoint stands.

    Returns:
        The best value of the figure that "best" goes by, for sweeps.

    Raises:
        UsageError: Settings that do not fit together, found before any work is done.
        InputError: Unreadable data, a folder that cannot be written, a loss that is not finite.
        Interrupted: A signal stopped the run; its state is saved.
    """
    if config.train.dry_run:
        dry_run(config)
        return None
    sinks.check(config.log)
    began, folder = time.perf_counter(), shown_path(config.run_dir)
    limit = config.parallel.timeout_seconds
    with (
        interrupt.deferred() as stop,
        strict.mode(config),
        distributed.session(
            config.device, num_threads=config.num_threads,
            timeout_seconds=1.5 * limit + 30,  # the watchdog knows more, so it comes first
        ) as world,
        watchdog.watching(world, timeout_seconds=limit),
        ExitStack() as held,
    ):  # fmt: skip
        stop.tell = telling.flag("stop", world)
        distributed.together(lambda: take(folder, held), world)
        config = batch_finder.settled(config, world)
        parts = build_parts(config, world)
        restore(parts, config, folder, world)
        strict.refuse(config, parts, world)
        parts.network = build.replicated(config, parts.model, world)
        warm_up(parts, config, world)
        log = RunLog(folder, config.log, main=world.is_main, start_step=parts.progress.step,
                     again=ROWS if parts.progress.owes_validation else ())  # fmt: skip
        saver = saver_of(parts, config, folder / "checkpoints", world)
        with closing(log), closing(saver):
            distributed.together(lambda: log.open(dataclasses.asdict(config)), world)
            distributed.together(lambda: introduce(parts, config, log, world), world)
            fit(parts, config, log, saver, world, stop)
            saver.settle(world)
            summarise(parts, config, log, seconds=time.perf_counter() - began)
    return parts.progress.best[0]["value"] if parts.progress.best else None


def take(folder: Path, held: ExitStack) -> None:
    """Keeps others out of a run folder, and mends what a kill may have left there.

    Raises:
        InputError: Another training is there, or the folder cannot be written.
    """
    held.enter_context(alone(folder))
    bring_back(folder / "checkpoints")


def fit(
    parts: Parts, config: TrainConfig, log: RunLog, saver: Saver | ShardedSaver, world: World,
    stop: Stop,
) -> None:  # fmt: skip
    """The training loop: from the present step to the last, or to where it stops improving."""
    progress, last = parts.progress, last_step(parts, config)
    if progress.owes_validation:
        log.at(progress.step, parts.timeline.epoch_of(progress.step))
        after_step(parts, config, log, saver, world, stop, asked=False)
    batches = train_batches(parts.clips, parts.plan, rank=world.rank, start_step=progress.step)
    meter = Meter(total=last, start=progress.step, main=world.is_main)
    parts.model.train()
    with (
        closing(batches),
        closing(meter),
        profiling.watching(
            config.profile, log.folder, say=log.say, world=world, clips=config.train.batch_size
        ) as watch,
    ):
        while not over(parts, config):
            step = progress.step
            taken = optimizer_step(parts, config, world, step, batches, meter, stop=stop.asked)
            progress.step = step + 1
            meter.stepped(taken.clips)
            watch.step()
            if config.model.compile and step == meter.first:
                log.say(memory.graph_breaks())
            log.at(progress.step, parts.timeline.epoch_of(progress.step))
            if taken.left_out:
                log.left_out(taken.left_out)
            at_end = progress.step == last
            progress.owes_validation = due = parts.validating(progress.step) or at_end
            log_now = progress.step % config.train.log_every_steps == 0 or at_end
            if log_now or parts.saving(progress.step) or taken.stop or due:
                parts.bad.agree(world)
            if log_now:
                report(parts, log, world, meter, taken.loss, taken.norm)
            after_step(parts, config, log, saver, world, stop, asked=taken.stop)
            if due:
                meter.restart_clock()


def after_step(
    parts: Parts, config: TrainConfig, log: RunLog, saver: Saver | ShardedSaver, world: World,
    stop: Stop, *, asked: bool,
) -> None:  # fmt: skip
    """Validates and saves where that is due, and leaves where a process was asked to.

    Raises:
        Interrupted: The state is saved; a validation that is still owed comes first next time.
    """
    progress, save_now = parts.progress, parts.saving(parts.progress.step)
    if progress.owes_validation and not asked:
        with record_function("vidtrain.validate"):
            save_now |= validate(parts, config, log, world, lambda: stop.asked_anywhere)
    asked |= progress.owes_validation  # broken off
    at_end = over(parts, config) and not progress.owes_validation
    save_now |= at_end
    if (save_now or progress.step == config.train.log_every_steps) and not progress.owes_validation:
        log.weights(parts.model)
    if save_now or asked:
        save(parts, config, saver, world)
    if asked and not at_end:
        # Nobody leaves before it is on the disk: torchrun ends all when one has ended.
        saver.settle(world)
        raise Interrupted(
            stop.signum,
            f"stopped and saved at step {progress.step} of {last_step(parts, config)}; "
            "the same command goes on from there",
            saved=True,
        )


def over(parts: Parts, config: TrainConfig) -> bool:
    """Returns whether training has come to its last step, or no longer improves."""
    progress = parts.progress
    return progress.step >= last_step(parts, config) or progress.stale >= (
        config.train.patience or math.inf
    )


def report(
    parts: Parts, log: RunLog, world: World, meter: Meter, loss: torch.Tensor, norm: torch.Tensor
) -> None:
    """Writes a row of the training's figures, and shows it."""
    groups = parts.optimizer.param_groups
    rates = {group["lr_scale"]: group["lr"] for group in groups}
    row = {
        "loss": finite(distributed.mean(loss, world)), "grad_norm": finite(norm),
        "lr": groups[0]["lr"] / groups[0]["lr_scale"], "bad_videos": len(parts.bad.found),
        "left_out": len(parts.nonfinite.steps),
    }  # fmt: skip
    log.row("train", **row)
    log.scalars({f"lr/x{scale:g}": rate for scale, rate in rates.items()})
    log.speed(**meter.speed(world))
    meter.show(row)
