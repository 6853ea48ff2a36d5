"""Checkpoints of weights that processes share: each writes its part, rank 0 gives the name."""

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vidtrain import distributed
from vidtrain.checkpoints import checkpoint, checkpoint_writing
from vidtrain.checkpoints.saving import arrange, copied
from vidtrain.distributed import World
from vidtrain.parallel import shard_files
from vidtrain.parallel.shards import place_like
from vidtrain.running.parts import Parts

KERNELS = ("fused", "foreach")


@dataclass
class ShardedSaver:
    """Writes checkpoints of all processes together; see `Saver`, whose methods it has.

    Attributes:
        folder: Where checkpoints are kept; all processes see it.
        world: This process among all.
        group: Processes, for this alone.
        keep_last: Newest ones that are kept.
        background: Whether training goes on while one is written.
        shards: Waits for the parts that are being written.
        naming: Rank 0's last touch on them.
    """

    folder: Path
    world: World
    group: Any
    keep_last: int = 2
    background: bool = True
    shards: Callable[[], None] = lambda: None
    naming: Future | None = None
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

    def save(self, step: int, best: list[int], content: dict[str, Any]) -> None:
        """Writes a checkpoint; waits for the one before; to be called by all processes.

        Args:
            step: Optimizer steps taken.
            best: Steps of the best checkpoints, the best first, which are kept and pointed to.
            content: {"tensors", "state", "about"}; see `checkpoint_writing.finish`.

        Raises:
            InputError: This one (without `background`) or the one before could not be written.
        """
        self.settle(self.world)
        # Sharded tensors give their size on all processes: the room for all is looked for.
        temporary = distributed.together(
            lambda: checkpoint_writing.begin(self.folder, step, needed=[content["tensors"]]),
            self.world,
        )
        self.shards = shard_files.write(
            content["tensors"], temporary / checkpoint.SHARDS, self.group,
            background=self.background,
        )  # fmt: skip
        if self.world.is_main:
            self.naming = self.pool.submit(
                self._name, temporary, step, best, self.shards, content["state"], content["about"]
            )
        if not self.background:
            self.settle(self.world)

    def settle(self, world: World) -> None:
        """Waits until the checkpoint under way is on the disk, on all processes.

        Raises:
            InputError: It could not be written; on all processes alike.
        """
        self.shards()
        self.shards = lambda: None
        done, self.naming = self.naming, None
        distributed.together(lambda: done.result() if done is not None else None, world)

    def close(self) -> None:
        """Ends the thread of rank 0; what went wrong has been or is being raised elsewhere."""
        with contextlib.suppress(Exception):
            self.shards()
        self.pool.shutdown()

    def _name(
        self, temporary: Path, step: int, best: list[int], shards: Callable[[], None],
        state: dict[str, Any], about: dict[str, Any],
    ) -> None:  # fmt: skip
        shards()  # rank 0 learns of all
        done = checkpoint_writing.finish(temporary, self.folder, step, state=state, about=about)
        arrange(self.folder, done, best, keep_last=self.keep_last)


def content_of(parts: Parts, state: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """Returns what `ShardedSaver.save` takes: tensors as they are, the rest copied.

    Args:
        parts: What is trained.
        state: What training needs besides the weights, the optimizer's state_dict in it.
        about: Plain JSON values for the manifest.
    """
    tensors = weights_of(parts)
    states: dict[int, dict[str, Any]] = {}
    for index, kept in state["optimizer"]["state"].items():
        plain = states.setdefault(index, {})
        for name, value in kept.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                plain[name] = value
    optimizer = {"param_groups": state["optimizer"]["param_groups"], "state": states}
    return {"tensors": tensors, "state": copied({**state, "optimizer": optimizer}), "about": about}


def restore_tensors(parts: Parts, path: Path, state: dict[str, Any]) -> None:
    """Fills weights and optimizer from a checkpoint that was written by any number of processes.

    Args:
        parts: What is trained: sharded over the present processes, or not.
        path: The checkpoint's folder, with shards or whole.
        state: Its state, as `checkpoint.state` returned it.

    Raises:
        InputError: Something is missing or damaged.
    """
    if checkpoint.is_sharded(path):
        folder = path / checkpoint.SHARDS
        wanted = weights_of(parts, averaged=checkpoint.has_average(path))
        optimizer = _optimizer_room(parts, folder)
        shard_files.read({**wanted, **optimizer}, folder)
        for name, value in optimizer.items():
            _, index, key = name.split(".", 2)
            state["optimizer"]["state"].setdefault(int(index), {})[key] = value
        _load(parts.optimizer, state["optimizer"])
        return
    for prefix, averaged in (("model.", False), ("average.", True)):
        if averaged and (parts.average is None or not checkpoint.has_average(path)):
            continue
        found = checkpoint.weights(path, averaged=averaged)
        for name, value in weights_of(parts, averaged=averaged).items():
            if name.startswith(prefix):
                with torch.no_grad():
                    value.copy_(place_like(found[name.removeprefix(prefix)], value))
    parameters = _parameters(parts)
    for index, kept in state["optimizer"]["state"].items():
        for key, value in kept.items():
            if isinstance(value, torch.Tensor) and value.shape == parameters[index].shape:
                kept[key] = place_like(value, parameters[index])
    _load(parts.optimizer, state["optimizer"])


def _load(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Loads a state; which kernels do the sums stays as it was built for these parameters."""
    built = [{key: group[key] for key in KERNELS if key in group}
             for group in optimizer.param_groups]  # fmt: skip
    optimizer.load_state_dict(state)
    for group, kernels in zip(optimizer.param_groups, built, strict=True):
        group.update(kernels)


def weights_of(parts: Parts, *, averaged: bool = True) -> dict[str, torch.Tensor]:
    """Returns the tensors of the network and of the average, by their names in a checkpoint."""
    found = {f"model.{name}": value for name, value in parts.model.state_dict().items()}
    average = parts.average
    if averaged and average is not None and average.ready:
        found |= {f"average.{name}": value for name, value in average.module.state_dict().items()}
    return found


def _parameters(parts: Parts) -> list[torch.Tensor]:
    """Returns the optimizer's parameters by their numbers in its state_dict."""
    return [parameter for group in parts.optimizer.param_groups for parameter in group["params"]]


def _optimizer_room(parts: Parts, folder: Path) -> dict[str, torch.Tensor]:
    """Returns tensors for an optimizer's state, placed as its parameters are."""
    parameters, room = _parameters(parts), {}
    for name, (size, dtype) in shard_files.contents(folder).items():
        if name.startswith("optimizer."):
            like = parameters[int(name.split(".")[1])]
            if size == like.shape:
                room[name] = torch.empty_like(like, dtype=dtype)
            else:
                room[name] = torch.empty(size, dtype=dtype)
    return room
