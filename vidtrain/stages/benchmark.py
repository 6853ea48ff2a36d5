"""Measure the input path, against bare decoding and other programs; a training step; scaling."""

import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import vidtrain
from vidtrain.benchmarking import encoding, processes, reporting, waiting
from vidtrain.benchmarking.measuring import BATCH, Section, measure, plan_sections, turns
from vidtrain.benchmarking.patterns import PATTERNS, Group, find_groups
from vidtrain.benchmarking.scaling import benchmark_scaling
from vidtrain.benchmarking.step_benchmark import benchmark_step
from vidtrain.config import BenchmarkConfig
from vidtrain.errors import InputError, UsageError, did_you_mean
from vidtrain.records import runlog

PEERS = ("pytorchvideo", "mmaction2")
ROUNDS_TO_REPORT = 5
LINE_SECONDS = 20  # from one line of progress to the next, where there is no terminal
WIDTH = 150  # columns, of tables that no terminal shows
# Height, width, GOP of the clips that are generated, and how many of each.
GENERATED_SIZES = ((256, 340, 250), (256, 340, 12), (720, 1280, 250))
GENERATED_CLIPS = 3
WORKER = Path(vidtrain.__file__).parent.parent / "scripts" / "mmaction2_worker.py"


def benchmark(config: BenchmarkConfig) -> None:
    """Measures, prints tables and writes results.json, table.txt and steps.png.

    Raises:
        UsageError: A setting is wrong.
        InputError: Files cannot be measured with, or a program failed.
    """
    if config.what == "step":
        return benchmark_step(config)
    if config.what == "scaling":
        return benchmark_scaling(config, _progress)
    _check(config)
    folder = Path(config.output).expanduser()
    with runlog.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    gpu = torch.cuda.is_available()
    groups = find_groups(config.files or str(_generated(folder)))
    sections = plan_sections(
        groups, [PATTERNS[name] for name in config.patterns], config.peers,
        clips=config.clips, seed=config.seed, gpu=gpu,
    )  # fmt: skip
    if not sections:
        raise InputError(f"patterns={config.patterns} leave nothing to measure on these files.")
    facts = _facts(config)
    finished: list[Section] = []
    total = sum(turns(section, rounds=config.rounds) for section in sections)
    with ExitStack() as stack, _progress(total) as advance:
        hosts = {
            name: stack.enter_context(processes.Host(name, _command(name, config)))
            for name in dict.fromkeys(s.program for section in sections for s in section.streams)
        }
        for section in sections:
            measure(section, hosts, rounds=config.rounds, seed=config.seed, advance=advance)
            finished.append(section)
            runlog.write_json(folder / "results.json", facts | reporting.results(finished))
    runlog.console.print("measuring how long a training waits for its clips")
    waited = waiting.wait_share(_first(groups).files, gpu=gpu, read_rows=runlog.read_rows)
    facts |= {"load_after": os.getloadavg(), "training": waited}
    runlog.write_json(folder / "results.json", facts | reporting.results(finished))
    with runlog.writing(folder):
        reporting.draw_steps(finished, folder / "steps.png")
    _show(finished, facts, folder)


def _check(config: BenchmarkConfig) -> None:
    if config.what != "input":
        raise UsageError(
            f"what={config.what}: only the input path, a training step and scaling can be "
            "measured; use what=input, what=step or what=scaling"
        )
    for key, known in (("patterns", PATTERNS), ("peers", PEERS)):
        for name in getattr(config, key):
            if name not in known:
                hint = did_you_mean(name, known) or f"choose from {', '.join(known)}"
                raise UsageError(f"{key} has {name!r}, which is not known; {hint}")
    if not config.patterns:
        raise UsageError(f"patterns is empty; choose from {', '.join(PATTERNS)}")
    if config.rounds < 1:
        raise UsageError(f"rounds={config.rounds} must be at least 1; figures to report need 5")
    if config.clips < BATCH:
        raise UsageError(f"clips={config.clips} must be at least one batch, {BATCH}")
    if "mmaction2" in config.peers:
        if config.mmaction2_python is None:
            raise UsageError(
                "peers has mmaction2, which needs an environment of its own: `sh "
                "scripts/mmaction2_env.sh DIR`, then mmaction2_python=DIR/bin/python"
            )
        if not WORKER.exists():
            raise UsageError(f"mmaction2 needs a checkout of the project: {WORKER} is missing")
    processes.check_platform()


def _command(program: str, config: BenchmarkConfig) -> list[str]:
    if program == "mmaction2":
        return [os.path.expanduser(str(config.mmaction2_python)), str(WORKER)]
    return [sys.executable, "-m", "vidtrain.benchmarking.host"]


def _generated(folder: Path) -> Path:
    """Makes the clips that are measured with where none are given; those that exist are kept."""
    clips = folder / "clips"
    scenes = [(f"scene{number}", number) for number in range(GENERATED_CLIPS)]
    total = GENERATED_CLIPS * (len(GENERATED_SIZES) + 1)
    runlog.console.print(f"generating {total} clips in {runlog.shown_path(str(clips))}")
    with runlog.writing(clips), _progress(total) as advance:
        for path in encoding.write_groups(clips, scenes, GENERATED_SIZES):
            advance(f"{path.parent.name}/{path.name}")
    return clips


def _first(groups: list[Group]) -> Group:
    """The group with the smallest frames: with it a training takes most clips."""
    return min(groups, key=lambda group: group.height * group.width)


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Yields what is called before each step, with its name."""
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
        TextColumn("ETA"), TimeRemainingColumn(), console=runlog.console, transient=True,
        disable=not runlog.console.is_terminal,
    )  # fmt: skip
    done, told = 0, 0.0

    def advance(name: str) -> None:
        nonlocal done, told
        bar.update(task, description=name, completed=done)
        if bar.disable and time.monotonic() > told + LINE_SECONDS:
            told = time.monotonic()
            runlog.console.print(f"{done}/{total} {name}", markup=False)
        done += 1

    with bar:
        task = bar.add_task("", total=total)
        yield advance


def _facts(config: BenchmarkConfig) -> dict[str, Any]:
    return {
        "vidtrain": vidtrain.__version__, "platform": platform.platform(),
        "python": platform.python_version(), "cores": os.cpu_count(), "cpu": _cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_before": os.getloadavg(), "rounds": config.rounds, "clips": config.clips,
        "seed": config.seed, "patterns": list(config.patterns), "peers": list(config.peers),
        "files": config.files,
    }  # fmt: skip


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _show(sections: list[Section], facts: dict[str, Any], folder: Path) -> None:
    shown = reporting.tables(sections)
    waited = facts["training"]
    if "problem" in waited:
        training = f"data wait in training not measured: {waited['problem']}"
    else:
        training = (
            f"training on the {waited['device']} ({waited['settings'][0]}) waited for data "
            f"{waited['wait_share']:.1%} of the time, at {waited['clips_per_second']:.1f} clips/s"
        )
    notes = [
        f"{facts['rounds']} rounds of {facts['clips']} clips after one to warm up, on "
        f"{facts['cpu']}; load {facts['load_before'][0]:.1f} before, "
        f"{facts['load_after'][0]:.1f} after",
        training,
    ]
    if facts["rounds"] < ROUNDS_TO_REPORT:
        notes.append(f"fewer than {ROUNDS_TO_REPORT} rounds: a trial, not figures to report")
    with open(folder / ".table.txt.tmp", "w", encoding="utf-8") as file:
        width = None if sys.stdout.isatty() else WIDTH
        for console in (Console(highlight=False, width=width), Console(file=file, width=WIDTH)):
            for part in (*shown, *notes):
                console.print(part)
    os.replace(folder / ".table.txt.tmp", folder / "table.txt")
    print(f"written to {runlog.shown_path(str(folder))}: results.json, table.txt, steps.png")
