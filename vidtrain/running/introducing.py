"""What a training says of itself: what it is made of when it starts, and how it ended."""

import dataclasses

import numpy as np
from PIL import Image

from vidtrain import distributed
from vidtrain.config.train import TrainConfig
from vidtrain.data.augment import to_pixels
from vidtrain.data.clip_samplers import describe
from vidtrain.data.loading import as_batch
from vidtrain.distributed import World
from vidtrain.records import provenance, runlog
from vidtrain.records.runlog import RunLog
from vidtrain.report.plots import plot_clip_grid, plot_curves
from vidtrain.running.parts import Parts, last_step
from vidtrain.running.stepping import model_input
from vidtrain.running.validation import metric
from vidtrain.training.parameters import lr_factor


def introduce(parts: Parts, config: TrainConfig, log: RunLog, world: World) -> None:
    """Says and writes what the run is made of, and shows clips as they reach the model."""
    if not world.is_main:
        return
    runlog.write_yaml(log.folder / "config.yaml", dataclasses.asdict(config))
    write_record(parts, config, log, world)
    log.text("config", runlog.as_yaml(dataclasses.asdict(config)))
    inputs, plan, step = config.model.input, parts.plan, parts.progress.step
    size = sum(p.numel() for p in parts.model.parameters()) / 1e6
    log.say(
        f"{config.model.name}: {size:.2f} M parameters, {inputs.num_frames} frames x "
        f"{inputs.sampling_rate} @ {inputs.crop_size}. {config.data.name}: {plan.num_videos} train "
        f"and {len(parts.val.views.videos.videos)} val videos, {len(parts.class_names)} classes. "
        f"{world.size} x {world.device}{f' ({config.parallel.kind})' * (world.size > 1)}, "
        f"{config.precision.dtype}"
    )
    if advice := distributed.restart_advice():
        log.say(advice)
    chosen = {
        "task": config.task, "optimizer": config.optimizer, "schedule": config.schedule,
        "average": config.average, "mix": config.mix, "augment": config.augment,
        "multigrid": config.multigrid,
    }  # fmt: skip
    named = [f"{key} {node['_target_'].rpartition('.')[2]}" for key, node in chosen.items() if node]
    log.say(f"{', '.join(named)}; {plan.total_steps} steps of {plan.batch_size} clips")
    if parts.started:
        log.say("\n".join(parts.started.lines()))
    describe_training(parts, config, log)
    if step:
        whole = step >= last_step(parts, config) and not parts.progress.owes_validation
        words = "finished at" if whole else "going on from"
        log.say(f"{words} step {step} of {plan.total_steps} in {log.folder}")
        return
    show_inputs(parts, config, log, world)


def write_record(parts: Parts, config: TrainConfig, log: RunLog, world: World) -> None:
    """Writes run.json; what an earlier start of the run said of its weights stays."""
    facts = provenance.record(
        world, seed=config.seed, data=parts.data_record, config=dataclasses.asdict(config),
        videos={"train": parts.clips.videos, "val": parts.val.views.videos},
    )  # fmt: skip
    earlier = log.folder / "run.json"
    before = runlog.read_json(earlier) if parts.progress.step else {}
    this = {"started": facts["started"], "command": facts["command"],
            "step": parts.progress.step}  # fmt: skip
    weights = parts.started.record() if parts.started else before.get("weights")
    runlog.write_json(
        earlier, facts | {"weights": weights, "starts": [*before.get("starts", []), this]}
    )


def show_inputs(parts: Parts, config: TrainConfig, log: RunLog, world: World) -> None:
    """Draws inputs.png: clips as they reach the model, and which frames they are of."""
    keys = next(parts.plan.micro_batches(seed=config.seed, rank=0, start_step=0))
    batch = as_batch(parts.clips.batch(keys[:8]))
    for video, frames in zip(batch.videos[:2].tolist(), batch.frames[:2], strict=True):
        log.say(f"frames of {parts.clips.videos.videos[video].id}: {describe(frames.numpy())}")
    inputs = config.model.input
    clips, targets = model_input(parts, config, world, 0, batch)
    pixels = to_pixels(clips, mean=inputs.mean, std=inputs.std).numpy()
    picture = log.folder / "inputs.png"
    labels = [parts.task.describe(row, parts.class_names) for row in targets.cpu()]
    plot_clip_grid(pixels, labels, picture)
    log.picture("inputs", np.asarray(Image.open(picture).convert("RGB")), 0)


def describe_training(parts: Parts, config: TrainConfig, log: RunLog) -> None:
    """Says which part of the network is trained, and at which rate, where that is not plain."""
    counts = {flag: sum(p.numel() for p in parts.model.parameters() if p.requires_grad is flag)
              for flag in (True, False)}  # fmt: skip
    if counts[False]:
        origin = "" if config.model.weights else ", as model.build made them (no model.weights)"
        log.say(f"finetune: {counts[True] / 1e6:.3g} M parameters are trained, "
                f"{counts[False] / 1e6:.3g} M frozen{origin}")  # fmt: skip
    loop, groups = config.train, parts.optimizer.param_groups
    if loop.lr_batch is not None:
        base = groups[0]["base_lr"] / groups[0]["lr_scale"]
        factor = lr_factor(loop.lr_rule, loop.batch_size, loop.lr_batch)
        log.say(
            f"learning rate {base:.3g}: optimizer.lr={base / factor:.3g} is for batches "
            f"of {loop.lr_batch} (train.lr_batch), here they are {loop.batch_size} "
            f"(train.lr_rule={loop.lr_rule})"
        )
    scales = [group["lr_scale"] for group in groups]
    if scales != [1.0] * len(groups):
        log.say(f"finetune: layers learn at {min(scales):.3g} to {max(scales):g} times that rate")


def summarise(parts: Parts, config: TrainConfig, log: RunLog, *, seconds: float) -> None:
    """Draws the curves and says how the run ended."""
    if not log.main:
        return
    progress, total = parts.progress, parts.plan.total_steps
    plot_curves(runlog.read_rows(log.folder / "metrics.jsonl"), log.folder / "curves.png")
    name, best = metric(config, parts), "no validation yet"
    shown = {"top1": "top-1", "top5": "top-5"}.get(name, name)
    if progress.best:
        best = (
            f"best val {shown} {progress.best[0]['value']:.4f} at step {progress.best[0]['step']}"
        )
    early = ""
    if config.train.patience and progress.stale >= config.train.patience:
        early = f", ended early: {progress.stale} validations without a better {shown}"
    elif progress.step < total:
        early = f" (train.max_steps; the schedule is that of all {total})"
    left_out = len(parts.nonfinite.steps)
    if left_out:
        early += f"; {left_out} steps left out as not finite, see nonfinite.jsonl"
    confusion = "" if parts.task.multi_label else " confusion_matrix.png,"
    log.say(
        f"done: step {progress.step} of {total} after {seconds:.0f} s{early}; {best}\n"
        f"run folder {log.folder}: checkpoints/best, curves.png,{confusion} inputs.png, "
        f"worst_errors.png, metrics.jsonl, metrics.csv\n"
        f"next: vidtrain eval run={log.folder}    vidtrain export run={log.folder}    "
        f"tensorboard --logdir {log.folder}"
    )
