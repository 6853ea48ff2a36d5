"""One of the processes that `vidtrain benchmark scaling` measures; `scaling` gives it orders."""

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat
from typing import Any

import torch

from vidtrain import build, distributed
from vidtrain.benchmarking import scaling_group, scaling_measure
from vidtrain.config.train import TrainConfig
from vidtrain.data.generated import noise_batches
from vidtrain.distributed import World
from vidtrain.records.runlog import Meter
from vidtrain.running import batch_finder, strict
from vidtrain.running.parts import Parts, build_parts
from vidtrain.running.stepping import optimizer_step

WARMING = 3


@dataclass(frozen=True)
class Order:
    """What a process is asked for.

    Attributes:
        build: The training to build; None: it is there.
        look: Steps to look at closely, with one process.
        steps: Steps to time.
        apart_first: Begin with the steps that exchange nothing.
    """

    build: TrainConfig | None = None
    look: int = 0
    steps: int = 0
    apart_first: bool = False


class Trainer:
    """A training on generated clips, of which one process is this one."""

    def __init__(self, config: TrainConfig, stack: ExitStack) -> None:
        """Joins the others and builds the training.

        Args:
            config: Settings.
            stack: Leaves the others at its end.
        """
        cuda = config.device != "cpu" and torch.cuda.is_available()
        threads = config.num_threads or (None if cuda else 1)
        size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"])
        self.pinned = not cuda and scaling_group.pin(rank, size, threads or 1)
        stack.enter_context(strict.mode(config))
        self.world: World = stack.enter_context(distributed.session(
            config.device, num_threads=threads, timeout_seconds=config.parallel.timeout_seconds,
        ))  # fmt: skip
        self.config = batch_finder.settled(config, self.world)
        self.parts: Parts = build_parts(self.config, self.world)
        self.parts.network = build.replicated(self.config, self.parts.model, self.world)
        self.parts.schedule = lambda step: 0.0  # weights stay what they are, however many steps
        self.parts.model.train()
        parts, world = self.parts, self.world
        self.raw = next(noise_batches(parts.clips, parts.plan, rank=world.rank, start_step=0))
        self.meter = Meter(total=1, start=0, main=False)

    def step(self) -> None:
        """Takes the training loop's own step."""
        optimizer_step(self.parts, self.config, self.world, 0, repeat(self.raw), self.meter)

    def step_apart(self) -> None:
        """Takes a step without exchange of gradients."""
        with self.parts.network.no_sync():  # type: ignore[operator]
            self.step()

    def facts(self) -> dict[str, Any]:
        """Warms up, and returns what this process is and how long a step takes."""
        for _ in range(WARMING):
            taken = scaling_measure.steps(self.step, 1, self.world)
        cuda = self.world.device.type == "cuda"
        return {
            "device": self.world.device.type, "pinned": self.pinned,
            "name": torch.cuda.get_device_name() if cuda else "",
            "threads": torch.get_num_threads(), "seconds": taken.seconds[0],
            "buckets": self.buckets(),
        }  # fmt: skip

    def buckets(self) -> list[int]:
        """Returns the bytes of gradients that travel together; nothing travels with one process."""
        return scaling_measure.bucket_sizes(self.parts.network) if self.world.size > 1 else []

    def look(self, number: int) -> dict[str, Any]:
        """Returns when in a step each gradient is there."""
        plain, watched = (
            self.parts.task,
            scaling_measure.Watched(self.parts.task, self.world.device),
        )
        self.parts.task = watched
        try:
            return scaling_measure.anatomy(self.step, watched, self.parts.model, number=number)
        finally:
            self.parts.task = plain

    def turn(self, order: Order) -> dict[str, Any]:
        """Returns what steps take with and without exchange, and the exchange alone."""
        world = self.world
        if world.size == 1:
            taken = scaling_measure.steps(self.step, order.steps, world)
            return {"together": taken, "apart": taken, "sums": 0.0, "latency": 0.0}
        ways = [("together", self.step), ("apart", self.step_apart)]
        found: dict[str, Any] = {
            name: scaling_measure.steps(step, order.steps, world)
            for name, step in (reversed(ways) if order.apart_first else ways)
        }
        dtype = torch.bfloat16 if self.config.parallel.compress == "bf16" else torch.float32
        lengths = [size // 4 for size in self.buckets()]
        return found | {
            "sums": scaling_measure.sums(lengths, dtype, world),
            "latency": scaling_measure.sums([1], torch.float32, world),
        }


def main() -> None:
    """Answers orders until there are no more."""
    trainer: Trainer | None = None

    def answer(order: Order) -> Any:
        nonlocal trainer
        if order.build is not None:
            trainer = Trainer(order.build, stack)
            return trainer.facts()
        assert trainer is not None
        return trainer.look(order.look) if order.look else trainer.turn(order)

    with ExitStack() as stack:
        scaling_group.serve(sys.argv[1], answer)


if __name__ == "__main__":
    main()
