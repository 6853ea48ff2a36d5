"""Evaluate a run on its validation split, over all views, on one process or many."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from vidtrain import build, distributed, runlog
from vidtrain.config import EvalStageConfig
from vidtrain.data.augment import to_input
from vidtrain.data.clip_samplers import describe
from vidtrain.evaluation import evaluate
from vidtrain.finished import Finished, open_run
from vidtrain.report.plots import plot_confusion
from vidtrain.tasks.classification import Scores, figures, summary
from vidtrain.training.precision import Precision

MOST_SHOWN = 10  # clips whose frame numbers are printed


def eval(config: EvalStageConfig) -> float | None:
    """Evaluates and writes eval/results.json, predictions.jsonl and confusion_matrix.png.

    Returns:
        Top-1, on rank 0.

    Raises:
        InputError: The run or a video cannot be read. No video is left out or replaced.
    """
    with distributed.session(config.device, num_threads=config.num_threads) as world:
        precision = Precision(config.precision.dtype, world.device, tf32=config.precision.tf32)
        run = open_run(config, world)
        listed = distributed.together(
            lambda: build.videos(config.data, "val", class_names=run.class_names), world
        )
        views = build.eval_views(config, config.eval, listed, world.device)
        inputs = config.model.input
        loader = build.eval_loader(views, config.eval, rank=world.rank, world_size=world.size)
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
            task = progress.add_task("eval", total=-(-len(listed.videos) // world.size))
            scores = evaluate(
                run.model, loader,
                batch_size=config.eval.batch_size,
                to_input=lambda clips: to_input(clips, mean=inputs.mean, std=inputs.std),
                precision=precision, world=world,
                advance=lambda videos: progress.advance(task, videos),
            )  # fmt: skip
        if not world.is_main:
            return None
        found = figures(scores, run.class_names)
        folder = run.folder / "eval"
        show(found, run)
        write(folder, config, run, scores, found)
        print(f"written to {folder}: results.json, predictions.jsonl, confusion_matrix.png")
        return found["top1"]


def write(
    folder: Path, config: EvalStageConfig, run: Finished, scores: list[Scores],
    found: dict[str, Any],
) -> None:  # fmt: skip
    """Writes the figures, one line per video, and the confusion matrix."""
    with runlog.writing(folder):
        folder.mkdir(exist_ok=True)
    facts = {
        "checkpoint": run.checkpoint, "step": run.step,
        "weights": run.started.record() if run.started else None,
        "eval": dataclasses.asdict(config.eval), "precision": config.precision.dtype,
    }  # fmt: skip
    runlog.write_json(folder / "results.json", facts | found)
    lines = []
    for score in scores:
        chances = score.probabilities
        order = np.argsort(-chances, kind="stable")[:5]
        top = {run.class_names[i]: round(float(chances[i]), 6) for i in order}
        row = {
            "id": score.id, "label": run.class_names[score.label], "prediction": next(iter(top)),
            "top5": top, "views": len(score.views),
        }  # fmt: skip
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    runlog.write_text(folder / "predictions.jsonl", "".join(lines))
    with runlog.writing(folder):
        confusion = np.array(found["confusion"])
        plot_confusion(confusion, run.class_names, folder / "confusion_matrix.png")


def show(found: dict[str, Any], run: Finished) -> None:
    """Prints the figures on standard output."""
    out = Console(highlight=False, soft_wrap=True)
    table = Table("class", "accuracy", "videos")
    for name, row in list(found["per_class"].items())[:40]:
        share = "-" if row["accuracy"] is None else f"{row['accuracy']:.4f}"
        table.add_row(name, share, str(row["videos"]))
    out.print(table)
    if len(found["per_class"]) > 40:
        out.print(f"... and {len(found['per_class']) - 40} more classes in results.json")
    out.print(f"{run.checkpoint} (step {run.step}): {summary(found)}, {found['num_views']} views")
