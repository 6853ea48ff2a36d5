"""From the parts of a training to a checkpoint and back."""

import dataclasses
from pathlib import Path
from typing import Any

from vidtrain import checkpoint, distributed, runlog
from vidtrain.checkpoint import config_differences
from vidtrain.config_train import TrainConfig
from vidtrain.distributed import World
from vidtrain.errors import InputError, UsageError
from vidtrain.parts import Parts, Progress
from vidtrain.saving import Saver, arrange, copied, newest_intact

# Settings that may differ between the parts of a resumed run: they do not change the weights.
FREE_TO_CHANGE = (
    "name", "runs", "run_dir", "resume", "device", "num_threads", "profile", "data.root",
    "data.num_workers", "data.prefetch_batches", "data.timeout_seconds", "data.index",
    "data.max_bad_fraction", "data.prepared", "data.published", "model.checkpointing",
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
    # Statistics are taken, and training may end, when it is validated.
    decides = config.train.patience is not None or config.train.precise_bn > 0
    return free if decides else (*free, "validate.")


def save(parts: Parts, config: TrainConfig, saver: Saver) -> None:
    """Writes a checkpoint of the present step.

    Raises:
        InputError: It, or the one before, cannot be written; earlier checkpoints are intact.
    """
    progress, average = parts.progress, parts.average
    content = {
        "model": copied(parts.model.state_dict()),
        "average": copied(average.module.state_dict())
        if average is not None and average.ready else None,
        "state": copied({
            "optimizer": parts.optimizer.state_dict(),
            "scaler": parts.precision.scaler.state_dict(),
            "average": average.state_dict() if average is not None else None,
            "progress": dataclasses.asdict(progress),
            "bad_videos": parts.bad.found,
            "nonfinite": parts.nonfinite.steps,
            "config": dataclasses.asdict(config),
            "data": parts.data_record,
            "task": parts.task.record(),
        }),
        "about": {
            "build": config.model.build,
            "class_names": list(parts.class_names),
            "best": progress.best[:1],
        },
    }  # fmt: skip
    saver.save(progress.step, [row["step"] for row in progress.best], content)


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
    names = checkpoint.manifest_of(chosen)["class_names"]
    refuse_changes(parts, config, folder, state, names)
    parts.model.load_state_dict(checkpoint.weights(chosen, averaged=False))
    if parts.average is not None:
        if (chosen / checkpoint.AVERAGE).exists():
            weights = checkpoint.weights(chosen, averaged=True)
            parts.average.module.load_state_dict(weights)
        parts.average.load_state_dict(state["average"])
    parts.optimizer.load_state_dict(state["optimizer"])
    parts.precision.scaler.load_state_dict(state["scaler"])
    parts.progress = Progress(**state["progress"])
    parts.bad.found = dict(state["bad_videos"])
    parts.nonfinite.steps = list(state["nonfinite"])
    if world.is_main:  # a kill may have come before the links and the removals
        checkpoint.tidy(kept)
        best = [row["step"] for row in parts.progress.best]
        arrange(kept, chosen, best, keep_last=config.save.keep_last)


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
