"""How long a training waits for its clips: a short, real one."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

# What is trained: a network that a GPU is busy with, and one that a CPU gets through.
ON_GPU = ("model=slowfast_r50", "precision=bf16")
ON_CPU = ("model=x3d_xs", "device=cpu")


def wait_share(
    files: Sequence[str], *, gpu: bool, read_rows: Callable[[Path], list[dict[str, Any]]]
) -> dict[str, Any]:
    """Trains for a few steps with `vidtrain train` and returns what its log says of waiting.

    Args:
        files: Videos to train on, over and over.
        gpu: Whether to train on the GPU.
        read_rows: Reads the rows of a speed.jsonl.

    Returns:
        wait_share (of wall time, median of the rows but the first), clips_per_second, settings; or
        `problem` in the place of the figures.
    """
    batch, steps, cores = (16, 30, len(os.sched_getaffinity(0))) if gpu else (4, 6, 1)
    settings = [
        *(ON_GPU if gpu else ON_CPU), "data=folder", f"data.num_workers={cores}",
        f"train.batch_size={batch}", f"train.max_steps={steps}", "train.epochs=1",
        "train.log_every_steps=2",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for split, count in (("train", batch * steps), ("val", 2)):
            for number in range(count):
                file = Path(files[number % len(files)])
                link = Path(folder, split, f"class{number % 2}", f"{number:04d}{file.suffix}")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file)
        command = [
            sys.executable, "-m", "vidtrain", "train", *settings, f"data.root={folder}",
            f"runs={folder}/runs", "name=run",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        rows = read_rows(Path(folder, "runs/run/speed.jsonl"))
    found: dict[str, Any] = {"device": "GPU" if gpu else "CPU", "settings": settings}
    if done.returncode or len(rows) < 2:
        words = " / ".join(done.stderr.strip().splitlines()[-2:])
        return found | {"problem": f"vidtrain train ended with {done.returncode}: {words}"}
    return found | {
        key: median(row[key] for row in rows[1:]) for key in ("wait_share", "clips_per_second")
    }
