"""Evaluate a run on its validation split, over all views, on one process or many."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vidtrain import build, build_data, distributed
from vidtrain.config import EvalStageConfig
from vidtrain.data.augment import to_input
from vidtrain.data.clip_samplers import describe
from vidtrain.records import runlog
from vidtrain.report.plots import plot_confusion
from vidtrain.running.evaluation import evaluate
from vidtrain.running.finished import Finished, open_run
from vidtrain.training.precision import Precision

MOST_SHOWN = 10  # clips whose frame numbers are printed


def eval(config: EvalStageConfig) -> float | None:
    """Evaluates and writes eval/results.json, predictions.jsonl and confusion_matrix.png.

    Returns:
        The task's own figure (top1, mAP), on rank 0.

    Raises:
        InputError: The run or a video cannot be read. No video is left out or replaced.
    """
    with distributed.session(config.device, num_threads=config.num_threads) as world:
        precision = Precision(config.precision.dtype, world.device, tf32=config.precision.tf32)
        run = open_run(config, world)
        listed = distributed.together(
            lambda: build_data.videos(config.data, "val", class_names=run.class_names), world
        )
        task = build.task(config.task, listed)
        views = build_data.eval_views(config, config.eval, listed, world.device)
        inputs = config.model.input
        loader = build_data.eval_loader(views, config.eval, rank=world.rank, world_size=world.size)
        if world.is_main:
            say = runlog.console.print
            for number, frames in enumerate(views.frames(0)[:MOST_SHOWN]):
                say(f"frames of {listed.videos[0].id}, clip {number}: {describe(frames)}")
        progress = Progress(
            TextColumn("eval"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("videos of rank 0  ETA"), TimeRemainingColumn(), console=runlog.console,
            disable=not (world.is_main and runlog.console.is_terminal), transient=True,
        )  # fmt: skip
        with progress:
            bar = progress.add_task("eval", total=-(-len(listed.videos) // world.size))
            scores = evaluate(
                run.model, loader,
                batch_size=config.eval.batch_size,
                to_input=lambda clips: to_input(clips, mean=inputs.mean, std=inputs.std),
                precision=precision, world=world,
                advance=lambda videos: progress.advance(bar, videos),
            )  # fmt: skip
        if not world.is_main:
            return None
        found = task.figures(scores, run.class_names)
        folder = run.folder / "eval"
        show(found, run, task.summary(found))
        write(folder, config, run, [task.prediction(score, run.class_names) for score in scores],
              found)  # fmt: skip
        print(f"written to {folder}: {', '.join(sorted(p.name for p in folder.iterdir()))}")
        return found[task.metric]


def write(
    folder: Path, config: EvalStageConfig, run: Finished, predictions: list[dict[str, Any]],
    found: dict[str, Any],
) -> None:  # fmt: skip
    """Writes the figures, one line per video, and the confusion matrix where there is one."""
    with runlog.writing(folder):
        folder.mkdir(exist_ok=True)
    facts = {
        "checkpoint": run.checkpoint, "step": run.step,
        "weights": run.started.record() if run.started else None,
        "eval": dataclasses.asdict(config.eval), "precision": config.precision.dtype,
    }  # fmt: skip
    runlog.write_json(folder / "results.json", facts | found)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in predictions]
    runlog.write_text(folder / "predictions.jsonl", "".join(lines))
    if "confusion" in found:
        with runlog.writing(folder):
            confusion = np.array(found["confusion"])
            plot_confusion(confusion, run.class_names, folder / "confusion_matrix.png")


def show(found: dict[str, Any], run: Finished, summary: str) -> None:
    """Prints the figures on standard output."""
    out = Console(highlight=False, soft_wrap=True)
    rows = list(found["per_class"].items())
    figure = next(key for key in rows[0][1] if key != "videos")
    table = Table("class", figure.replace("_", " "), "videos")
    for name, row in rows[:40]:
        share = "-" if row[figure] is None else f"{row[figure]:.4f}"
        table.add_row(name, share, str(row["videos"]))
    out.print(table)
    if len(rows) > 40:
        out.print(f"... and {len(rows) - 40} more classes in results.json")
    out.print(f"{run.checkpoint} (step {run.step}): {summary}, {found['num_views']} views")
