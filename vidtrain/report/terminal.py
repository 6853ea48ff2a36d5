"""What a person at the terminal sees: lines, and how far a training is."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vidtrain.distributed import World
from vidtrain.training.host_memory import rss

console = Console(stderr=True, highlight=False, soft_wrap=True)


@contextmanager
def doing(text: str, *, main: bool = True) -> Iterator[None]:
    """Says what takes a while: a spinner on a terminal until it is done, a line elsewhere."""
    if not main:
        yield
    elif console.is_terminal:
        with console.status(escape(text)):
            yield
    else:
        console.print(f"{text} ...", markup=False)
        yield


def duration(seconds: float) -> str:
    """Returns a time in the unit that fits it: seconds, minutes, hours or days."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def counted(count: int, one: str, many: str = "") -> str:
    """Returns a number with its noun: 1 clip, 2 clips."""
    return f"{count} {one if count == 1 else many or one + 's'}"


class Meter:
    """Progress of a training: a bar on a terminal, a line per report elsewhere."""

    def __init__(self, *, total: int, start: int, main: bool) -> None:
        """Starts at a step; nothing is shown on other ranks than 0."""
        self.total, self.step, self.main = total, start, main
        self.first, self.began = start, time.perf_counter()
        self.mark, self.clips, self.waited = self.began, 0, 0.0
        self.latest: dict[str, float] = {}
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[text]}  ETA"), TimeRemainingColumn(), console=console,
            disable=not (main and sys.stderr.isatty()), transient=True,
        )  # fmt: skip
        self.task = self.bar.add_task("train", total=total, completed=start, text="")
        self.bar.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def stepped(self, clips: int) -> None:
        """Counts one optimizer step of so many clips."""
        self.step, self.clips = self.step + 1, self.clips + clips
        self.bar.update(self.task, completed=self.step)

    def speed(self, world: World) -> dict[str, float]:
        """Returns figures of the time since the last call, by name.

        clips_per_second over all processes, clips_per_second_per_device, wait_share (of wall time,
        waiting for data), host_memory_gib (of this process) and memory_gib (most that was
        allocated, on CUDA).
        """
        now = time.perf_counter()
        seconds = max(now - self.mark, 1e-9)
        figures = {
            "clips_per_second": round(self.clips / seconds, 2),
            "clips_per_second_per_device": round(self.clips / seconds / world.size, 2),
            "wait_share": round(min(self.waited / seconds, 1.0), 4),
            "host_memory_gib": round(rss() / 2**30, 3),
        }
        if world.device.type == "cuda":
            figures["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        self.mark, self.clips, self.waited = now, 0, 0.0
        self.latest = figures
        return figures

    def restart_clock(self) -> None:
        """Leaves out of the speed what just happened, for example a validation."""
        self.mark, self.clips, self.waited = time.perf_counter(), 0, 0.0

    def show(self, row: dict[str, Any]) -> None:
        """Shows a train row: in the bar, or as a line where there is no terminal."""
        loss = "not finite" if row["loss"] is None else f"{row['loss']:.4f}"
        text = (
            f"loss {loss}  lr {row['lr']:.2e}  "
            f"{self.latest['clips_per_second']:.1f} clips/s  "
            f"data wait {self.latest['wait_share']:.0%}"
        )
        self.bar.update(self.task, text=text)
        if self.main and self.bar.disable:
            console.print(f"step {self.step}/{self.total}  {text}  ETA {self._eta()}", markup=False)

    def _eta(self) -> str:
        taken = (time.perf_counter() - self.began) / max(1, self.step - self.first)
        seconds = int(taken * (self.total - self.step))
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"

    def close(self) -> None:
        """Takes the bar off the terminal."""
        self.bar.stop()
