"""Checkpoints written behind the back of the training: one at a time, on a copy of the state."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vidtrain import distributed
from vidtrain.checkpoints import checkpoint, checkpoint_writing
from vidtrain.distributed import World


@dataclass
class Saver:
    """Writes checkpoints of rank 0 and removes those that need not be kept.

    Attributes:
        folder: Where checkpoints are kept.
        keep_last: Newest ones that are kept.
        background: Whether training goes on while one is written.
        under_way: The writing that is not finished.
    """

    folder: Path
    keep_last: int = 2
    background: bool = True
    under_way: Future | None = None
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def save(self, step: int, best: list[int], content: dict[str, Any]) -> None:
        """Writes a checkpoint; waits for the one before.

        Args:
            step: Optimizer steps taken.
            best: Steps of the best checkpoints, the best first, which are kept and pointed to.
            content: Keyword arguments of `checkpoint_writing.write`: a copy that nobody writes to.

        Raises:
            InputError: This one (without `background`) or the one before could not be written.
        """
        self.wait()
        self.under_way = self.pool.submit(self._write, step, best, content)
        if not self.background:
            self.wait()

    def wait(self) -> None:
        """Waits until the checkpoint under way is on the disk.

        Raises:
            InputError: It could not be written.
        """
        done, self.under_way = self.under_way, None
        if done is not None:
            done.result()

    def settle(self, world: World) -> None:
        """Waits as `wait` does, and on all processes until rank 0's is on the disk.

        Raises:
            InputError: It could not be written; on all processes alike.
        """
        distributed.together(self.wait, world)

    def close(self) -> None:
        """Waits, and ends the thread; what went wrong has been or is being raised elsewhere."""
        with contextlib.suppress(Exception):
            self.wait()
        self.pool.shutdown()

    def _write(self, step: int, best: list[int], content: dict[str, Any]) -> None:
        written = checkpoint_writing.write(self.folder, step, **content)
        arrange(self.folder, written, best, keep_last=self.keep_last)


def arrange(folder: Path, newest: Path, best: list[int], *, keep_last: int) -> None:
    """Points `last` and `best` to the right checkpoints and removes those of no use.

    Args:
        folder: Where checkpoints are kept.
        newest: The checkpoint that `last` leads to; later ones stem from a run that was set back.
        best: Steps of the best ones, the best first.
        keep_last: Newest ones that are kept.
    """
    checkpoint_writing.point(folder / "last", newest)
    ranked = [folder / f"step_{step:08d}" for step in best]
    if ranked and ranked[0].is_dir():
        checkpoint_writing.point(folder / "best", ranked[0])
    there = [path for path in checkpoint.all_steps(folder) if path <= newest]
    for path in there[:-keep_last]:
        if path not in ranked:
            checkpoint_writing.remove(path)


def newest_intact(folder: Path, say: Callable[[str], None]) -> Path | None:
    """Returns the newest checkpoint that is whole, or None where there is none at all.

    Args:
        folder: Where checkpoints are kept.
        say: Told of each damaged one that is passed by.

    Raises:
        InputError: There are checkpoints and all are damaged.
    """
    failure: Exception | None = None
    for path in reversed(checkpoint.all_steps(folder)):
        try:
            checkpoint.verify(path)
            return path
        except checkpoint.InputError as error:
            say(f"{error}: going back to the one before")
            failure = failure or error
    if failure is not None:
        raise failure
    return None


def copied(value: Any) -> Any:
    """Returns nested plain values with every tensor copied to contiguous memory of the CPU."""
    if isinstance(value, torch.Tensor):
        there = value.detach()
        if there.device.type != "cpu":
            return there.to("cpu").contiguous()
        return there.clone(memory_format=torch.contiguous_format)
    if isinstance(value, dict):
        return {key: copied(item) for key, item in value.items()}
    return [copied(item) for item in value] if isinstance(value, list | tuple) else value
