"""The first steps of a recorded training, once more, in a process of its own."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml

from vidtrain.config.train import TrainConfig
from vidtrain.errors import InputError
from vidtrain.records.runlog import read_rows, write_yaml
from vidtrain.running.comparing import Run

MAX_PROCESSES = 64  # on one machine's CPU; with CUDA, its graphics cards
GRACE_SECONDS = 60.0
MAX_LINES = 15  # of what a failed training said
# What torchrun and Slurm tell a process of its place; the new one has a place of its own.
PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR",
         "MASTER_PORT")  # fmt: skip
_COMPOSED = {
    "defaults": ["train_schema", "_self_", {"override hydra/job_logging": "disabled"},
                 {"override hydra/hydra_logging": "disabled"}],
}  # fmt: skip


def steps_to_compare(run: Run, wanted: int | None) -> int:
    """Returns the step at which a comparison ends: one with a digest of the weights if possible.

    Those that come before any row of the training itself are passed over.

    Args:
        run: The run.
        wanted: The last digest at or before this step, else the first one; None: the first one.

    Raises:
        InputError: The run has no row of its training to compare with.
    """
    for kind in ("weights", "train"):  # runs of older versions have no digests
        trained = min((row["step"] for row in run.rows if row["kind"] == "train"), default=0)
        steps = [row["step"] for row in run.rows if row["kind"] == kind]
        steps = [step for step in steps if step >= trained] or steps
        if steps:
            return max((step for step in steps if step <= (wanted or 0)), default=min(steps))
    raise InputError(f"{run.folder / 'metrics.jsonl'} has no row to compare with: train longer")


def again(run: Run, folder: Path, *, steps: int) -> None:
    """Trains as a run was trained, up to a step, in a fresh process; torchrun starts several.

    Args:
        run: The run; its config is data, and calls what vidtrain's allow-list allows.
        folder: Empty folder. The run folder becomes `folder / "run"`, and what the training says is
            in `folder / "said.txt"`.
        steps: Ends after the row of this step is written.

    Raises:
        InputError: The recorded config is not one of a training, this machine lacks what the run
            ran on, or the training failed.
    """
    processes = _processes(run)
    settings = _settings(run, folder / "run", steps=steps)
    hydra = {"output_subdir": None, "run": {"dir": str(folder / "run")},
             "job": {"name": "train", "chdir": False}}  # fmt: skip
    write_yaml(folder / "again.yaml", _COMPOSED | settings | {"hydra": hydra})
    call = [sys.executable, "-m", "vidtrain"]
    if processes > 1:
        call = [sys.executable, "-m", "torch.distributed.run", "--standalone",
                f"--nproc-per-node={processes}", "-m", "vidtrain"]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k not in PLACE}
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    said = folder / "said.txt"
    with open(said, "w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [*call, "train", "--config-dir", str(folder), "--config-name", "again"],
            env=environment, cwd=_started_in(run), stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            while process.poll() is None and not _reached(folder / "run", steps, run):
                time.sleep(0.2)
        finally:
            _end(process)
    if not _reached(folder / "run", steps, run):
        last = said.read_text("utf-8", errors="replace").splitlines()[-MAX_LINES:]
        raise InputError(
            f"{run.folder} could not be trained again up to step {steps}: the new process ended "
            f"with code {process.returncode} and said\n" + "\n".join(last)
        )


def _started_in(run: Run) -> Path | None:
    """Returns the folder that a run was started in, which paths in its config are relative to.

    None: it is not known, since the run was given a folder elsewhere, or was moved.
    """
    named = Path(str(run.config.get("runs")), str(run.config.get("name")))
    if not named.is_absolute():
        whole = run.folder.resolve()
        for folder in (whole, whole.parent):  # a run of its own, or of a sweep
            if folder.parts[-len(named.parts) :] == named.parts:
                return folder.parents[len(named.parts) - 1]
    return None


def _settings(run: Run, folder: Path, *, steps: int) -> dict[str, Any]:
    """The recorded config, for a training that leaves no traces elsewhere."""
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    settings = {key: value for key, value in run.config.items() if key in known}
    parts: dict[str, dict[str, Any]] = {}
    for key in ("data", "train", "log"):
        if not isinstance(settings.get(key), dict) or "${" in yaml.safe_dump(settings):
            raise InputError(
                f"{run.folder / 'config.yaml'} is not the config of a training of this version"
            )
        parts[key] = dict(settings[key])
    # One step more than needed: the last step of a training is followed by a validation.
    last = steps if parts["train"].get("max_steps") == steps else steps + 1
    parts["train"] |= {"max_steps": last, "dry_run": False}
    parts["data"]["index"] = None  # the one setting that names a file to write to
    parts["log"] |= {"to": [], "worst": 0}
    threads = run.record.get("threads")
    if settings.get("num_threads") is None and isinstance(threads, int) and 0 < threads < 4096:
        settings["num_threads"] = threads
    on_cpu = run.record.get("device") == "cpu"
    settings |= {"run_dir": str(folder), "runs": str(folder.parent), "resume": True,
                 "profile": False, "device": "cpu" if on_cpu else "auto"}  # fmt: skip
    return settings | parts


def _processes(run: Run) -> int:
    size, device = run.record.get("world_size", 1), str(run.record.get("device", "cpu"))
    there = MAX_PROCESSES if device == "cpu" else torch.cuda.device_count()
    if not isinstance(size, int) or not 1 <= size <= there:
        raise InputError(
            f"{run.folder} ran on {size} processes on {device}, and this machine has room for "
            f"{there}; run it again where it ran"
        )
    return size


def _reached(folder: Path, steps: int, run: Run) -> bool:
    kinds = {row["kind"] for row in run.rows if row["step"] == steps} & {"train", "weights"}
    rows = read_rows(folder / "metrics.jsonl")
    return kinds <= {row["kind"] for row in rows if row["step"] == steps}


def _end(process: subprocess.Popen) -> None:
    """Ends the process and those it started; it need not finish what follows the last row."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
