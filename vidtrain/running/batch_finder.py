"""`train.accumulate=auto`: the largest micro-batch that memory holds, found by trying.

The batch of an optimizer step and the learning rate stay what they are.
"""

import dataclasses
import gc
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml

from vidtrain import build, distributed
from vidtrain.checkpoints.checkpoint import all_steps
from vidtrain.config.train import TrainConfig
from vidtrain.data.killable import in_processes
from vidtrain.distributed import World
from vidtrain.errors import UsageError
from vidtrain.interrupt import Stop
from vidtrain.records import runlog
from vidtrain.report.terminal import counted
from vidtrain.running import parts
from vidtrain.running.parts import Parts
from vidtrain.running.trials import counts, step_on_noise, without_data
from vidtrain.training.batch_search import largest_by_halving, largest_on_line
from vidtrain.training.host_memory import available_memory, peak_rss, rss

SHARE = 0.9  # of what is free: allocators round up, and evaluation has its own peaks


@dataclass(frozen=True)
class Job:
    """What a process of its own measures.

    Attributes:
        config: The training, without data.
        smallest: Clips of the micro-batches of the first step, which makes the optimizer's state.
        clips: Clips of those of the second.
        num_threads: CPU threads.
        replicated: Whether the training is one of several processes.
    """

    config: TrainConfig
    smallest: int
    clips: int
    num_threads: int
    replicated: bool


def settled(config: TrainConfig, world: World) -> TrainConfig:
    """Returns the config with a number for train.accumulate, where auto or micro_batch stands.

    What is found goes into train.micro_batch: a run that goes on with another number of processes
    keeps its micro-batches.

    Raises:
        UsageError: Not even the smallest micro-batch fits, or it does not divide the batch.
        InputError: The data is not there.
    """
    loop, micro = config.train, config.train.micro_batch
    if loop.accumulate == "auto":
        if micro is not None:
            raise UsageError(f"train.micro_batch={micro} and train.accumulate=auto both cut the "
                             "batch; use one of them")  # fmt: skip
        micro = distributed.together(lambda: _recorded(config), world)
        if micro is None:
            micro = loop.batch_size // (find_accumulate(config, world) * world.size)
    if micro is None:
        return config
    accumulate = build.accumulation(loop, micro, world_size=world.size)
    changed = dataclasses.replace(loop, accumulate=accumulate, micro_batch=micro)
    return dataclasses.replace(config, train=changed)


def find_accumulate(config: TrainConfig, world: World, *, memory: int | None = None) -> int:
    """Returns the least number of micro-batches per step whose clips fit into memory.

    Forward, backward and update are run on noise of the shape of the clips: on CUDA in this
    process, on a CPU in processes of their own, which the system ends first where memory runs out.
    There micro-batches in between are judged by a straight line, and the chosen one is run. Global
    generators stay as they are.

    Args:
        config: The training; train.accumulate is not looked at.
        world: This process among all; all get the same answer, that of the fullest.
        memory: Bytes that may be filled; None: what is free now, for each process on a machine
            alike.

    Raises:
        UsageError: Not even the smallest micro-batch fits.
        InputError: The data is not there.
    """
    build.check_loop(config)
    sizes = micro_batches(config, world.size)
    trial = without_data(config, counts(config, world), num_train=2 * max(sizes))
    measures = world.device.type == "cuda" or os.environ.get("LOCAL_RANK", "0") == "0"
    best, tried, wrong = max(sizes), dict[int, float](), ""
    try:
        if measures and world.device.type == "cuda":
            best, tried = _on_cuda(trial, sizes, world, memory)
        elif measures:
            local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
            room = SHARE * available_memory() / local if memory is None else memory
            slots = max(1, config.data.num_workers) * config.data.prefetch_batches + 3
            best, tried = _on_cpu(trial, sizes, world, room, slots)
    except UsageError as error:  # the other processes wait for an answer
        best, wrong = 0, str(error)
    answers = distributed.gather((best, tried, wrong), world)
    fullest = min(answers, key=lambda answer: (answer[0], not answer[1])) if answers else None
    best, tried, wrong = distributed.share(fullest, world)
    if wrong:
        raise UsageError(wrong)
    if not best:
        least = min(sizes)
        raise UsageError(
            f"train.accumulate=auto: not even micro-batches of {counted(least, 'clip')} fit, "
            f"which take {_amount(tried[least])}; use model.checkpointing=true, precision=bf16, a "
            "smaller model.input.crop_size or model.input.num_frames, or a smaller train.batch_size"
        )
    accumulate = config.train.batch_size // (best * world.size)
    if world.is_main:
        shown = ", ".join(
            f"{counted(clips, 'clip')} {_amount(tried[clips])}" for clips in sorted(tried)
        )
        runlog.warn(
            f"train.accumulate=auto: {shown or 'nothing to choose'}; taken: "
            f"{counted(accumulate, 'micro-batch', 'micro-batches')} of {counted(best, 'clip')} "
            f"(train.accumulate={accumulate})"
        )
    return accumulate


def micro_batches(config: TrainConfig, world_size: int) -> list[int]:
    """Returns the sizes of micro-batches that divide the batch, in clips, the smallest first.

    Videos keep their views together, and mixing needs an even number of videos.

    Raises:
        UsageError: There is none.
    """
    batch, views = config.train.batch_size, config.data.views_per_decode
    group = views * (2 if config.mix is not None else 1)
    if batch % (world_size * group):
        raise UsageError(
            f"train.batch_size={batch} must be a multiple of {world_size * group}: "
            f"{counted(world_size, 'process', 'processes')}{f' x {views} views' * (views > 1)}"
            f"{' x 2 clips that mix pairs' * (config.mix is not None)}"
        )
    share = batch // world_size
    return [size for size in range(group, share + 1, group) if share % size == 0]


def measure(job: Job) -> dict[str, Any]:
    """Returns the bytes that memory grows by in a training with two micro-batches per step.

    Returns:
        {"bytes": number, infinite if there are not as many} or {"error": what went wrong}.
    """
    if Path("/proc/self/oom_score_adj").exists():
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")  # to be ended before others
    torch.set_num_threads(job.num_threads)
    before, world = rss(), World(rank=0, size=1, device=torch.device("cpu"))
    try:
        built = parts.build_parts(_of_size(job.config, 2 * job.smallest), world)
        for clips in (job.smallest, job.clips):
            built.plan = dataclasses.replace(built.plan, batch_size=2 * clips)
            step_on_noise(built, job.config, world, 0)
    except Exception as error:  # sent on: a process of its own cannot raise here
        if _is_full(error):
            return {"bytes": math.inf}
        return {"error": f"{type(error).__name__}: {error}"}
    buckets = _gradient_bytes(built) if job.replicated else 0
    return {"bytes": float(peak_rss() - before + buckets)}


def _on_cpu(
    config: TrainConfig, sizes: Sequence[int], world: World, memory: float, slots: int
) -> tuple[int, dict[int, float]]:
    """Returns the largest size that fits, 0 if none does, and what each that was run takes."""
    clip = config.model.input
    waiting = slots * clip.num_frames * clip.crop_size**2 * 3
    tried: dict[int, float] = {}

    def take(size: int) -> float:
        job = Job(config, min(sizes), size, torch.get_num_threads(), world.size > 1)
        (_, found), *_ = in_processes(measure, [job], workers=1, stop=Stop())
        if isinstance(found, str):  # it was killed
            found = {"bytes": math.inf}
        if "error" in found:
            raise UsageError(f"train.accumulate=auto: a step on generated clips fails with "
                             f"{found['error']}")  # fmt: skip
        return found["bytes"] + waiting * size

    return largest_on_line(sizes, take, memory, tried), tried


def _on_cuda(
    config: TrainConfig, sizes: Sequence[int], world: World, memory: int | None
) -> tuple[int, dict[int, float]]:
    """As `_on_cpu`, in this process, by halving; nothing of it stays on the GPU."""
    device, tried = world.device, dict[int, float]()
    total = torch.cuda.get_device_properties(device).total_memory
    share = SHARE if memory is None else min(memory / total, 1.0)
    with torch.random.fork_rng(devices=[device]):
        built = parts.build_parts(
            _of_size(config, 2 * min(sizes)), World(rank=0, size=1, device=device)
        )
        buckets = torch.empty(_gradient_bytes(built) * (world.size > 1), dtype=torch.uint8,
                              device=device)  # fmt: skip
        torch.cuda.set_per_process_memory_fraction(share, device)
        try:
            best = largest_by_halving(sizes, partial(_fits, built, config, tried))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    del built, buckets
    _clean()
    return best, tried


def _fits(built: Parts, config: TrainConfig, tried: dict[int, float], size: int) -> bool:
    device = built.precision.device
    built.plan = dataclasses.replace(built.plan, batch_size=2 * size)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        for _ in range(2):  # the first makes the optimizer's state
            step_on_noise(built, config, World(rank=0, size=1, device=device), 0)
        tried[size] = float(torch.cuda.max_memory_reserved(device))
    except RuntimeError as error:
        if not _is_full(error):
            raise
        tried[size] = math.inf
    built.optimizer.zero_grad(set_to_none=True)
    _clean()
    return tried[size] < math.inf


def _clean() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def _is_full(error: Exception) -> bool:
    """Whether memory ran out, as allocators and libraries say it."""
    said = ("out of memory", "allocate memory", "alloc_failed")
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in said)


def _gradient_bytes(built: Parts) -> int:
    """Bytes of the gradients, which DDP keeps a second time in its buckets."""
    return sum(p.nbytes for p in built.model.parameters() if p.requires_grad)


def _of_size(config: TrainConfig, batch: int) -> TrainConfig:
    """Two micro-batches of clips at full shape, which hold no less than others of a multigrid."""
    train = dataclasses.replace(config.train, batch_size=batch, accumulate=2, micro_batch=None)
    model = dataclasses.replace(config.model, weights=None)
    return dataclasses.replace(config, train=train, model=model, multigrid=None)


def _recorded(config: TrainConfig) -> int | None:
    """Returns the micro-batch that an earlier start of the run found; None: there was none."""
    folder = Path(config.run_dir)
    if not all_steps(folder / "checkpoints"):
        return None
    recorded = yaml.safe_load((folder / "config.yaml").read_text("utf-8"))
    return recorded["train"].get("micro_batch")


def _amount(size: float) -> str:
    return f"{size / 2**30:.2f} GiB" if size < math.inf else "more than there is"
