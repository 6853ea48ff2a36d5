"""`profile=true`: where the time of a training step goes, from a trace of a few steps."""

import gzip
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from vidtrain.distributed import World
from vidtrain.records import runlog
from vidtrain.report.plots import cut_middle
from vidtrain.report.step_trace import COMMUNICATION, lines, summary
from vidtrain.report.terminal import counted
from vidtrain.training.host_memory import peak_rss

# Steps that are left alone, that the profiler starts up in, and that are recorded.
SKIPPED, WARMED, RECORDED = 4, 2, 6
TOP = 8  # operations that are named
MAX_OPERATION = 60  # characters of their names


@dataclass
class Watch:
    """Told of each step; see `watching`.

    Attributes:
        recorder: What records, while it does.
        steps: Steps so far.
        marks: Times of the ends of steps that nothing was recorded in, seconds.
    """

    recorder: profile | None = None
    steps: int = 0
    marks: list[float] = field(default_factory=list)

    def step(self) -> None:
        """Says that an optimizer step has ended."""
        if self.recorder is None:
            return
        self.steps += 1
        if self.steps <= SKIPPED:
            self.marks.append(time.perf_counter())
        self.recorder.step()
        if self.steps == SKIPPED + WARMED + RECORDED:
            self.stop()

    def stop(self) -> None:
        """Ends the recording, and with it all costs."""
        if self.recorder is not None:
            self.recorder.stop()
            self.recorder = None


@contextmanager
def watching(
    wanted: bool, folder: Path, *, say: Callable[[str], None], world: World,
    clips: int | None = None,
) -> Iterator[Watch]:  # fmt: skip
    """Records some steps of the training inside, and writes and says what they were spent on.

    Rank 0 records. Nothing that is computed changes. Without the wish nothing happens.

    Args:
        wanted: Whether to record.
        folder: The run folder; profile/ in it gets trace.json.gz (for Perfetto or
            chrome://tracing), summary.json and summary.txt.
        say: Prints lines for a person.
        world: This process among all.
        clips: Clips per step over all processes, for the speed.
    """
    watch = Watch()
    if not wanted or not world.is_main:
        yield watch
        return
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # no word on the terminal about absent GPUs
    activities = [ProfilerActivity.CPU]
    if world.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)

    def ready(recorded: profile) -> None:
        found = _write(recorded, folder / "profile", watch, world, clips)
        say("\n".join(lines(found)) + f"\n{folder / 'profile'}: trace.json.gz (ui.perfetto.dev)")

    watch.recorder = profile(
        activities=activities, on_trace_ready=ready,
        schedule=schedule(skip_first=SKIPPED, wait=0, warmup=WARMED, active=RECORDED, repeat=1),
    )  # fmt: skip
    watch.recorder.start()
    try:
        yield watch
        if watch.recorder is not None and watch.steps <= SKIPPED + WARMED:
            watch.recorder.on_trace_ready = None
            say(f"profile=true: nothing was recorded in {counted(watch.steps, 'step')}; the first "
                f"{SKIPPED + WARMED} are left out, while caches fill")  # fmt: skip
    except BaseException:
        if watch.recorder is not None:
            watch.recorder.on_trace_ready = None  # what is under way has to end at once
        raise
    finally:
        watch.stop()


def _write(
    recorded: profile, folder: Path, watch: Watch, world: World, clips: int | None
) -> dict[str, Any]:
    """Writes the trace and both summaries; returns the figures."""
    with runlog.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / ".trace.part.json.gz"
        recorded.export_chrome_trace(str(part))
        os.replace(part, folder / "trace.json.gz")
    with gzip.open(folder / "trace.json.gz", "rt", encoding="utf-8") as file:
        whole = watch.steps - SKIPPED - WARMED  # one more may have begun
        found = summary(json.load(file)["traceEvents"], max_steps=whole)
    marks = watch.marks
    before = (marks[-1] - marks[0]) / (len(marks) - 1) if len(marks) > 1 else None
    cuda = world.device.type == "cuda"
    found |= {
        "seconds_per_step_unrecorded": before,
        "clips_per_second": clips / before if clips and before else None,
        "peak_memory_gib": (torch.cuda.max_memory_allocated() if cuda else peak_rss()) / 2**30,
        "steps_wanted": RECORDED,
        "memory": "allocated on the GPU" if cuda else "resident",
        "processes": world.size,
        "top": _top(recorded, cuda),
    }
    runlog.write_json(folder / "summary.json", found)
    runlog.write_text(folder / "summary.txt", "\n".join(lines(found)) + "\n")
    return found


def _top(recorded: profile, cuda: bool) -> list[dict[str, Any]]:
    """Returns the operations that took longest by themselves, with their share of all of them."""
    own = "self_device_time_total" if cuda else "self_cpu_time_total"
    rows = [row for row in recorded.key_averages()
            if not row.key.startswith(("vidtrain.", "ProfilerStep", *COMMUNICATION))]  # fmt: skip
    total = sum(getattr(row, own) for row in rows) or 1.0
    rows.sort(key=lambda row: getattr(row, own), reverse=True)
    return [{"name": cut_middle(row.key, MAX_OPERATION), "calls": row.count,
             "share": getattr(row, own) / total} for row in rows[:TOP]]  # fmt: skip
