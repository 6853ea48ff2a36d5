"""`vidtrain benchmark step`: a training step of ours against a plain PyTorch loop."""

import copy
import dataclasses
import inspect
import os
from collections.abc import Callable
from functools import partial
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any

import hydra
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from rich.console import Console
from rich.table import Table

from vidtrain import distributed, randomness
from vidtrain.benchmarking import step, step_peers
from vidtrain.benchmarking.measuring import Ratio
from vidtrain.command import composing
from vidtrain.config.benchmark import BenchmarkConfig
from vidtrain.config.train import TrainConfig
from vidtrain.data.generated import noise_batches
from vidtrain.distributed import World
from vidtrain.errors import UsageError, did_you_mean
from vidtrain.records import provenance, runlog
from vidtrain.records.runlog import Meter
from vidtrain.running.dry_run import gmacs
from vidtrain.running.parts import Parts, build_parts
from vidtrain.running.stepping import optimizer_step
from vidtrain.running.trials import without_data
from vidtrain.training.precision import DTYPES

CLASSES = 400
# What is set beside ours with everything off.
OPTIONS: dict[str, dict[str, str]] = {
    "channels_last": {"model.channels_last": "true"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "compile": {"model.compile": "true"},
    "all": {"model.channels_last": "true", "precision": "bf16", "model.compile": "true"},
}
# Plain loops, and whether their optimizers use the kernels that ours does.
PLAIN = {"plain": False, "plain_same_kernels": True}
TURN_SECONDS, MOST_STEPS = 1.0, 50
OFF = {"augment": "none", "mix": "none", "average": "none", "multigrid": "none",
       "schedule.warmup": "0", "data.horizontal_flip": "false"}  # fmt: skip


def benchmark_step(config: BenchmarkConfig) -> None:
    """Measures each model, prints a table, and writes step.json and step.txt.

    Raises:
        UsageError: A setting is wrong.
        InputError: The folder cannot be written.
    """
    _check(config)
    folder = Path(config.output).expanduser()
    with runlog.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    conf = next(s.path for s in HydraConfig.get().runtime.config_sources if s.provider == "main")
    with distributed.session(config.device, num_threads=config.num_threads) as world:
        facts = {
            **provenance.machine(world.device), "device": str(world.device),
            "threads": torch.get_num_threads(), "rounds": config.rounds, "seed": config.seed,
            "load_before": os.getloadavg(), "models": {},
        }  # fmt: skip
        for name in config.models:
            facts["models"][name] = measure(name, config, conf, world)
            facts["load_after"] = os.getloadavg()
            runlog.write_json(folder / "step.json", facts)
    notes = (
        f"{config.rounds} rounds in turns, {facts['threads']} threads, load "
        f"{facts['load_before'][0]:.1f} before, {facts['load_after'][0]:.1f} after"
    )
    with runlog.writing(folder), open(folder / "step.txt", "w", encoding="utf-8") as file:
        for console in (Console(highlight=False, width=150), Console(file=file, width=150)):
            console.print(table(facts["models"]), notes, sep="\n")
    print(f"written to {runlog.shown_path(str(folder))}: step.json, step.txt")


def measure(name: str, config: BenchmarkConfig, conf: str, world: World) -> dict[str, Any]:
    """Returns what was measured of one model, as plain values."""
    base = compose(name, config, conf, {})
    parts = build_parts(base, world)
    raw = next(noise_batches(parts.clips, parts.plan, rank=0, start_step=0))
    if world.device.type == "cuda":  # as both a loader of ours and one of PyTorch's would have it
        raw = dataclasses.replace(raw, clips=raw.clips.pin_memory())
    ours = step.warmed("ours", lambda: our_step(base, parts, raw, world), world.device)
    contenders = [ours]
    for way, fused in PLAIN.items():
        contenders.append(step.warmed(
            way, lambda fused=fused: plain(  # type: ignore[misc]
                name, base, parts, raw, world, fused=fused), world.device))  # fmt: skip
    for option in config.options:
        runlog.warn(f"{name}: preparing {option}")
        other = compose(name, config, conf, OPTIONS[option])
        contenders.append(step.warmed(
            option, lambda other=other: our_step(  # type: ignore[misc]
                other, build_parts(other, world), raw, world), world.device))  # fmt: skip
    outside = None
    if world.device.type == "cpu":
        outside = shares_outside(base, world, raw, steps=config.rounds)
    seconds = step.interleaved(
        contenders, rounds=config.rounds, repeat=_repeat(contenders[1], world), device=world.device,
        rng=randomness.generator(config.seed, randomness.ORDER),
        advance=lambda turn: runlog.warn(f"{name}: {turn}"),
    )  # fmt: skip
    inputs, cost = base.model.input, gmacs(base, CLASSES)
    card = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else ""
    return {
        "clip": [inputs.num_frames, inputs.crop_size, inputs.crop_size],
        "batch": config.batch_size, "dtype": config.dtype,
        "peer": "pytorchvideo" if name in step_peers.NAMES else "the same network",
        "seconds": seconds, "outside": outside, "gmacs": cost,
        "memory": {c.name: c.memory for c in contenders},
        "share_of_peak": {
            key: step.share_of_peak(cost, config.batch_size, taken, card)
            for key, taken in seconds.items()
        } if cost is not None else {},
    }  # fmt: skip


def compose(name: str, config: BenchmarkConfig, conf: str, more: dict[str, str]) -> TrainConfig:
    """Returns the config of a training of a model with everything off but what `more` sets."""
    set_ = {"model": name, **OFF, "train.batch_size": config.batch_size, "run_dir": "none",
            "seed": config.seed, "precision": config.dtype, **more}  # fmt: skip
    if config.num_frames is not None:
        set_["model.input.num_frames"] = config.num_frames
    if config.crop_size is not None:
        set_["model.input.crop_size"] = config.crop_size
        set_["model.input.eval_crop_size"] = set_["model.input.eval_short_side"] = config.crop_size
        set_["model.input.short_side"] = f"[{config.crop_size},{config.crop_size}]"
    GlobalHydra.instance().clear()
    composing.register_schemas()
    with hydra.initialize_config_dir(conf, version_base="1.3"):
        words = [f"{key}={value}" for key, value in set_.items()]
        composed = composing.to_objects(hydra.compose("train", words))
    videos = 100 * config.batch_size
    return without_data(composed, (CLASSES, videos, videos))


def our_step(config: TrainConfig, parts: Parts, raw: Any, world: World) -> Callable[[], Any]:
    """Returns the training loop's own step on one batch."""
    meter = Meter(total=1, start=0, main=False)
    parts.model.train()
    return partial(optimizer_step, parts, config, world, 1, repeat(raw), meter)


def plain(
    name: str, config: TrainConfig, parts: Parts, raw: Any, world: World, *, fused: bool
) -> Callable[[], None]:
    """Returns the plain loop's step on the same batch.

    Args:
        name: Of the model.
        config: Of ours.
        parts: Of ours.
        raw: The batch.
        world: This process.
        fused: Let the optimizer choose its kernels as ours does; false: as PyTorch does by itself.
    """
    inputs = config.model.input
    theirs = step_peers.peer(
        name, parts.model, num_classes=CLASSES, num_frames=inputs.num_frames,
        crop_size=inputs.crop_size, drop_path=config.model.build.get("drop_path", 0.0),
    )  # fmt: skip
    network, pack = theirs or (copy.deepcopy(parts.model), lambda clips: clips)
    network.train()
    ours = parts.optimizer
    known = inspect.signature(type(ours)).parameters
    settings = {key: value for key, value in ours.defaults.items()
                if key in known and (fused or key not in ("fused", "foreach"))}  # fmt: skip
    optimizer = type(ours)(network.parameters(), **settings)
    labels = raw.labels.to(world.device)
    scaler = torch.amp.GradScaler(world.device.type, enabled=parts.precision.scaler.is_enabled())

    def prepare(clips: torch.Tensor) -> Any:
        there = clips.to(world.device, non_blocking=True)
        return pack(step.plain_input(there, inputs.mean, inputs.std))

    return step.plain_step(
        network, optimizer, raw.clips, labels, autocast=parts.precision.autocast, prepare=prepare,
        scaler=scaler,
    )  # fmt: skip


def shares_outside(config: TrainConfig, world: World, raw: Any, *, steps: int) -> list[float]:
    """Returns for each of some steps of ours the share of time spent outside the model."""
    parts = build_parts(config, world)
    parts.task = outside = step.Outside(parts.task)
    outside.watch(parts.optimizer)
    one = our_step(config, parts, raw, world)
    one()
    return step.overhead(one, outside, steps=steps)


def table(models: dict[str, Any]) -> Table:
    """Returns the figures of all models."""
    shown = Table(
        "model", "clip, batch", "way", "s", "GiB", "of peak", "ratio [range]", "",
        title="One training step: CPU seconds, on CUDA seconds; ratios round by round",
    )  # fmt: skip
    for name, found in models.items():
        seconds = found["seconds"]
        shape = f"{'x'.join(map(str, found['clip']))}, {found['batch']}, {found['dtype']}"
        for way, taken in seconds.items():
            first, second = (way, "ours") if way in PLAIN else ("ours", way)
            ratio = step.ratios(seconds, first, second) if way != "ours" else None
            peak = found["share_of_peak"].get(way)
            memory = found["memory"][way] / 2**30
            shown.add_row(
                name, shape, f"{way} ({found['peer']})" if way in PLAIN else way,
                f"{median(taken):.3g}", f"{memory:.2f}" if memory else "-",
                "-" if peak is None else f"{peak:.0%}",
                str(ratio) if ratio else "-",
                f"{first} / {second}" if ratio else "",
            )  # fmt: skip
        if found["outside"]:
            spread = Ratio(tuple(100 * share for share in found["outside"]))
            shown.add_row(name, shape, "ours, outside the model", "", "", "", f"{spread} %", "")
    return shown


def _check(config: BenchmarkConfig) -> None:
    for option in config.options:
        if option not in OPTIONS:
            hint = did_you_mean(option, OPTIONS) or f"choose from {', '.join(OPTIONS)}"
            raise UsageError(f"options has {option!r}, which is not known; {hint}")
    if config.dtype not in DTYPES:
        raise UsageError(f"dtype={config.dtype} must be one of {', '.join(DTYPES)}")
    if not config.models:
        raise UsageError("models is empty; name some, for example models=[x3d_xs,slow_r50]")
    for key in ("rounds", "batch_size"):
        if getattr(config, key) < 1:
            raise UsageError(f"{key}={getattr(config, key)} must be at least 1")


def _repeat(contender: step.Contender, world: World) -> int:
    """Returns the steps of a turn that make it long enough to be timed."""
    taken = step.interleaved(
        [contender], rounds=1, repeat=1, device=world.device,
        rng=randomness.generator(0, randomness.ORDER),
    )[contender.name][0]  # fmt: skip
    return max(1, min(MOST_STEPS, round(TURN_SECONDS / taken)))
