"""From the parts of a training to a checkpoint and back."""

import dataclasses
from pathlib import Path
from typing import Any

from vidtrain import distributed
from vidtrain.checkpoints import checkpoint, checkpoint_writing
from vidtrain.checkpoints.checkpoint import config_differences
from vidtrain.checkpoints.saving import Saver, arrange, copied, newest_intact
from vidtrain.config.train import TrainConfig
from vidtrain.distributed import World
from vidtrain.errors import InputError, UsageError
from vidtrain.records import runlog
from vidtrain.report.terminal import counted
from vidtrain.running.parts import Parts, Progress
from vidtrain.running.sharded_saving import ShardedSaver, content_of, restore_tensors

# Settings that may differ between the parts of a resumed run: they do not change the weights.
FREE_TO_CHANGE = (
    "name", "runs", "run_dir", "resume", "device", "num_threads", "profile", "data.root",
    "data.num_workers", "data.prefetch_batches", "data.timeout_seconds", "data.index",
    "data.max_bad_fraction", "data.prepared", "data.published", "model.checkpointing",
    "parallel.kind", "parallel.timeout_seconds", "parallel.bucket_mb", "parallel.static_graph",
    "parallel.find_unused", "parallel.reshard",
    "model.published", "train.log_every_steps", "train.max_steps", "train.skip_nonfinite",
    "train.dry_run", "save.every", "task.teacher",
    "teacher.weights", "teacher.published", "save.keep_last", "save.keep_best",
    "save.background", "eval.", "log.",
)  # fmt: skip


def free_to_change(config: TrainConfig) -> tuple[str, ...]:
    """Returns the settings that a resumed run may change, or their prefixes."""
    fixed = set()
    if config.repro == "strict":  # sums on a CPU depend on the number of threads
        fixed.add("num_threads")
    if config.train.patience is not None:  # the validation at the end counts
        fixed.add("train.max_steps")
    free = tuple(key for key in FREE_TO_CHANGE if key not in fixed)
    if config.train.micro_batch is not None:  # follows from it and the number of processes
        free = (*free, "train.accumulate")
    # Statistics are taken, and training may end, when it is validated.
    decides = config.train.patience is not None or config.train.precise_bn > 0
    return free if decides else (*free, "validate.")


def save(parts: Parts, config: TrainConfig, saver: Saver | ShardedSaver, world: World) -> None:
    """Writes a checkpoint of the present step; to be called by all processes.

    Raises:
        InputError: It, or the one before, cannot be written; earlier checkpoints are intact.
    """
    progress, average, best = parts.progress, parts.average, parts.progress.best
    if not (parts.sharded or world.is_main):
        return
    state = {
        "optimizer": parts.optimizer.state_dict(),
        "scaler": parts.precision.scaler.state_dict(),
        "average": average.state_dict() if average is not None else None,
        "progress": dataclasses.asdict(progress),
        "bad_videos": parts.bad.found,
        "nonfinite": parts.nonfinite.steps,
        "config": dataclasses.asdict(config),
        "data": parts.data_record,
        "task": parts.task.record(),
    }
    about = {
        "build": config.model.build,
        "class_names": list(parts.class_names),
        "best": progress.best[:1],
        "processes": world.size,
        "accumulate": parts.plan.accumulate,
    }
    if parts.sharded:
        content = content_of(parts, state, about)
    else:
        weights = average.module.state_dict() if average is not None and average.ready else None
        content = {"model": copied(parts.model.state_dict()), "average": copied(weights),
                   "state": copied(state), "about": about}  # fmt: skip
    saver.save(progress.step, [row["step"] for row in best], content)


def saver_of(parts: Parts, config: TrainConfig, folder: Path, world: World) -> Saver | ShardedSaver:
    """Returns what writes the checkpoints of a training into a folder."""
    keep, background = config.save.keep_last, config.save.background
    if parts.sharded:
        group = distributed.side_group()
        return ShardedSaver(folder, world, group, keep_last=keep, background=background)
    return Saver(folder, keep_last=keep, background=background)


def restore(parts: Parts, config: TrainConfig, folder: Path, world: World) -> None:
    """Takes the run folder's newest intact checkpoint up, if there is one.

    Raises:
        UsageError: The config or the data has changed, or resume=false met a checkpoint.
        InputError: All checkpoints are damaged.
    """
    kept = folder / "checkpoints"

    chosen = distributed.together(lambda: newest_intact(kept, runlog.warn), world)
    if chosen is not None and not chosen.is_dir():
        raise InputError(
            f"rank 0 has {chosen}, this process does not; all nodes must share the folder of runs "
            "(runs=)"
        )
    if chosen is None:
        return
    if not config.resume:
        raise UsageError(
            f"resume=false, but {chosen} exists; give a new name with name=, or remove the folder"
        )
    state = checkpoint.state(chosen)
    manifest = checkpoint.manifest_of(chosen)
    refuse_changes(parts, config, folder, state, manifest["class_names"])
    if parts.average is not None:
        parts.average.load_state_dict(state["average"])
    restore_tensors(parts, chosen, state)
    parts.precision.scaler.load_state_dict(state["scaler"])
    parts.progress = Progress(**state["progress"])
    parts.bad.found = dict(state["bad_videos"])
    parts.nonfinite.steps = list(state["nonfinite"])
    if world.is_main:  # a kill may have come before the links and the removals
        tell_other_processes(manifest, parts, world)
        checkpoint_writing.tidy(kept)
        best = [row["step"] for row in parts.progress.best]
        arrange(kept, chosen, best, keep_last=config.save.keep_last)


def tell_other_processes(manifest: dict[str, Any], parts: Parts, world: World) -> None:
    """Says what it means that a run goes on with another number of processes."""
    before = manifest["processes"], manifest["accumulate"]
    alike = before[0] * before[1] == world.size * parts.plan.accumulate
    if before != (world.size, parts.plan.accumulate):
        now, then = (
            f"{counted(size, 'process', 'processes')} x "
            f"{counted(accumulate, 'micro-batch', 'micro-batches')}"
            for size, accumulate in ((world.size, parts.plan.accumulate), before)
        )
        runlog.warn(
            f"going on with {now} instead of {then}: the same clips in the same steps, "
            + ("in the same micro-batches; sums may differ in their last bits" if alike else
               "in micro-batches of another size, which batch norm, where there is any, sees: "
               "train.micro_batch keeps it")
        )  # fmt: skip


def refuse_changes(
    parts: Parts, config: TrainConfig, folder: Path, state: dict[str, Any], names: list[str]
) -> None:
    """Refuses to go on with a run under other settings, or on other data.

    Raises:
        UsageError: What has changed.
    """
    changed = config_differences(
        state["config"], dataclasses.asdict(config), ignore=free_to_change(config)
    )
    for part, now in parts.data_record.items():
        was = state["data"].get(part)
        if was != now and part == "prepared":
            changed.append("what data.prepared holds, or whether it is used")
        elif was != now:
            counts = f"{was['videos']} -> {now['videos']} videos" if was else "unknown before"
            changed.append(f"the list of {part} videos ({counts})")
    if names != list(parts.class_names):
        changed.append(f"class names: {names} -> {list(parts.class_names)}")
    if state["task"] != parts.task.record():
        changed.append(f"the task: {state['task']} -> {parts.task.record()}")
    if changed:
        raise UsageError(
            f"{folder} was trained with other settings ({'; '.join(changed)}); undo the change to "
            "go on with that run, or start a new one with name="
        )
