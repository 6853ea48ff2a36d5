"""`vidtrain benchmark scaling`: a step of 1 to N processes, and a forecast for many GPUs."""

import dataclasses
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from vidtrain import randomness
from vidtrain.benchmarking import scaling_figures as figures
from vidtrain.benchmarking import scaling_group as group
from vidtrain.benchmarking import scaling_model as model
from vidtrain.benchmarking import scaling_report as report
from vidtrain.benchmarking.scaling_worker import Order
from vidtrain.config.benchmark import BenchmarkConfig
from vidtrain.config.train import TrainConfig
from vidtrain.distributed import World
from vidtrain.errors import UsageError
from vidtrain.records import provenance, runlog
from vidtrain.running import trials

TURN_SECONDS, FEWEST_STEPS, MOST_STEPS = 1.0, 2, 20
LOOKS = 5
# Settings of other benchmarks, or of a training, that mean something else here.
INSTEAD = {
    "models": "model", "crop_size": "model.input.crop_size", "dtype": "precision",
    "num_frames": "model.input.num_frames", "train.batch_size": "batch_size",
}  # fmt: skip


def benchmark_scaling(
    config: BenchmarkConfig, progress: Callable[[int], AbstractContextManager[Any]]
) -> None:
    """Measures, predicts, prints tables and writes scaling.json, scaling.txt and scaling.png.

    Args:
        config: Settings.
        progress: Shows how many of so many turns are done; yields what is told the next one's name.

    Raises:
        UsageError: A setting is wrong, or this process is one of several already.
        InputError: A process failed, or the folder cannot be written.
    """
    numbers = check(config)
    folder = Path(config.output).expanduser()
    with runlog.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    training = of_training(config)
    load = os.getloadavg()
    with ExitStack() as stack, progress(len(numbers) * (config.rounds + 1)) as advance:
        groups = {}
        for number in numbers:
            advance(f"starting {_processes_of(number)}")
            groups[number] = stack.enter_context(
                group.started(number, "vidtrain.benchmarking.scaling_worker")
            )
        built = {n: one.order(Order(build=of_size(training, n, config)))[0]
                 for n, one in groups.items()}  # fmt: skip
        looked = groups[1].order(Order(look=LOOKS))[0]
        measured = rounds(groups, built, config, advance)
    device = torch.device(built[1]["device"])
    machine = provenance.machine(device)
    place = figures.Place(
        device=device.type, name=machine["cpu"] if device.type == "cpu" else built[1]["name"],
        cores=len(group.cores()), threads=built[1]["threads"],
    )  # fmt: skip
    found = forecast(config, measured, looked, place)
    facts = {
        **machine, "place": dataclasses.asdict(place),
        "given": config.given, "rounds": config.rounds, "seed": config.seed,
        "load_before": load, "load_after": os.getloadavg(),
        "ddp_buckets": {n: facts["buckets"] for n, facts in built.items()},
        "pinned": {n: facts["pinned"] for n, facts in built.items()},
    }  # fmt: skip
    runlog.write_json(folder / "scaling.json", facts | report.results(found))
    with runlog.writing(folder):
        report.draw(found, folder / "scaling.png")
        report.show(found, facts, folder / "scaling.txt")
    shown = runlog.shown_path(str(folder))
    print(f"written to {shown}: scaling.json, scaling.txt, scaling.png")


def check(config: BenchmarkConfig) -> list[int]:
    """Returns the numbers of processes to measure, ascending.

    Raises:
        UsageError: A setting is wrong, or this process is one of several already.
    """
    if "RANK" in os.environ:
        raise UsageError(
            "vidtrain benchmark scaling starts its processes itself, as many as processes= says: "
            "run it without torchrun"
        )
    for key in (word.lstrip("+").partition("=")[0] for word in config.given):
        if key in INSTEAD:
            raise UsageError(f"{key} has no meaning for what=scaling; use {INSTEAD[key]}=")
    for key in ("processes", "gpus"):
        wrong = [n for n in getattr(config, key) if n < 1]
        if wrong or not getattr(config, key):
            raise UsageError(f"{key}={getattr(config, key)} must be numbers of at least 1")
    for key in ("rounds", "batch_size", "gpus_per_node"):
        if getattr(config, key) < 1:
            raise UsageError(f"{key}={getattr(config, key)} must be at least 1")
    for key in ("bandwidth_gbps", "node_bandwidth_gbps", "step_seconds"):
        value = getattr(config, key)
        if value is not None and value <= 0:
            raise UsageError(f"{key}={value:g} must be above 0")
    for key in ("latency_us", "jitter"):
        value = getattr(config, key)
        if value is not None and value < 0:
            raise UsageError(f"{key}={value:g} must not be below 0")
    per_node = config.gpus_per_node
    uneven = [n for n in config.gpus if n > per_node and n % per_node]
    if uneven:
        raise UsageError(f"gpus={uneven[0]} is not a multiple of gpus_per_node={per_node}")
    return _processes(config)


def _processes(config: BenchmarkConfig) -> list[int]:
    numbers = sorted({1, *config.processes})
    if config.parallel.kind != "ddp":
        raise UsageError(
            f"parallel={config.parallel.kind}: only parallel=ddp can be measured; FSDP exchanges "
            "weights too, which the model of this report does not know"
        )
    for n in (*numbers, *config.gpus) if config.strong else ():
        if config.batch_size % n:
            raise UsageError(f"strong=true splits batch_size={config.batch_size}, which is no "
                             f"multiple of {n}")  # fmt: skip
    if config.device != "cpu" and torch.cuda.is_available():
        there = torch.cuda.device_count()
        if numbers[-1] > there:
            raise UsageError(f"processes={numbers[-1]} need a GPU each, and {there} are visible; "
                             "use fewer, or device=cpu")  # fmt: skip
    return numbers


def of_training(config: BenchmarkConfig) -> TrainConfig:
    """Returns the settings of the training whose videos need not be there."""
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    training = TrainConfig(**{name: getattr(config, name) for name in names})
    training = dataclasses.replace(training, multigrid=None)
    here = World(rank=0, size=1, device=torch.device("cpu"))
    return trials.without_data(training, trials.counts(training, here))


def of_size(training: TrainConfig, processes: int, config: BenchmarkConfig) -> TrainConfig:
    """Returns the training with the batch of so many processes."""
    batch = config.batch_size * (1 if config.strong else processes)
    loop = dataclasses.replace(training.train, batch_size=batch)
    videos = max(training.data.source["num_train"], 10 * batch)
    source = {**training.data.source, "num_train": videos}
    return dataclasses.replace(
        training, train=loop, data=dataclasses.replace(training.data, source=source)
    )


def rounds(
    groups: dict[int, group.Group], built: dict[int, dict[str, Any]], config: BenchmarkConfig,
    advance: Callable[[str], None],
) -> list[figures.Measured]:  # fmt: skip
    """Lets the groups take turns, in a new random order each round."""
    numbers = list(groups)
    rng = randomness.generator(config.seed, randomness.ORDER)
    turns: dict[int, list[list[dict[str, Any]]]] = {number: [] for number in numbers}
    for turn in range(config.rounds):
        for place in rng.permutation(len(numbers)):
            number = numbers[place]
            advance(f"round {turn + 1}: {_processes_of(number)}")
            order = Order(steps=_repeat(built[number]["seconds"]), apart_first=bool(turn % 2))
            turns[number].append(groups[number].order(order))
    return [_measured(number, turns[number]) for number in numbers]


def _measured(number: int, turns: list[list[dict[str, Any]]]) -> figures.Measured:
    """The slowest process tells the time: it waits for none of the others."""

    def slowest(key: str) -> list[float]:
        return [max(mean(rank[key].seconds) for rank in ranks) for ranks in turns]

    return figures.Measured(
        processes=number, seconds=slowest("together"), apart=slowest("apart"),
        sums=[max(rank["sums"] for rank in ranks) for ranks in turns],
        latency=[max(rank["latency"] for rank in ranks) for ranks in turns],
        cpu=[mean(mean(rank["together"].cpu) for rank in ranks) for ranks in turns],
        steps=[s for ranks in turns for s in ranks[0]["together"].seconds],
        steps_cpu=[s for ranks in turns for s in ranks[0]["together"].cpu],
    )  # fmt: skip


def _processes_of(number: int) -> str:
    return f"{number} processes" if number > 1 else "one process"


def _repeat(seconds: float) -> int:
    """Returns the steps of a turn that make it long enough to be timed."""
    return max(FEWEST_STEPS, min(MOST_STEPS, round(TURN_SECONDS / seconds)))


def forecast(
    config: BenchmarkConfig, measured: list[figures.Measured], looked: dict[str, Any],
    place: figures.Place,
) -> report.Found:  # fmt: skip
    """Returns what was measured, the model held against it, and the model's forecast."""
    scale = 0.5 if config.parallel.compress == "bf16" else 1.0
    buckets = model.filled(looked["gradients"], config.parallel.bucket_mb * 2**20)
    buckets = tuple(dataclasses.replace(b, size=scale * b.size) for b in buckets)
    one = measured[0]
    here = model.Step(median(one.seconds), looked["backward"], buckets,
                      model.spread(one.steps), config.strong)  # fmt: skip
    # What else a CPU has to do is a matter of this machine, and not of those to come.
    own = model.spread(one.steps_cpu if place.device == "cpu" else one.steps)
    there = dataclasses.replace(
        here, seconds=config.step_seconds or here.seconds,
        jitter=own if config.jitter is None else config.jitter,
    )  # fmt: skip
    network = model.Network(
        bandwidth=config.bandwidth_gbps * 1e9 / 8,
        node_bandwidth=config.node_bandwidth_gbps * 1e9 / 8,
        latency=config.latency_us * 1e-6, gpus_per_node=config.gpus_per_node,
    )  # fmt: skip
    link = figures.link(measured, sum(b.size for b in buckets), len(buckets))
    return report.Found(
        title=f"{config.model.name}, {config.precision.dtype}, {config.batch_size} clips of "
              f"{config.model.input.num_frames}x{config.model.input.crop_size}x"
              f"{config.model.input.crop_size}",
        strong=config.strong, batch=config.batch_size, place=place, measured=measured,
        checks=figures.checks(measured, here, link, place), link=link, step=there,
        predictions=[model.predict(there, network, n) for n in config.gpus],
        network=network, given=config.step_seconds is not None,
    )  # fmt: skip
