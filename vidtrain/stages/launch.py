"""Start a training on a cluster."""

import dataclasses
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from rich.console import Console

from vidtrain.command import composing, sweeping
from vidtrain.config import RANKED, SCHEMAS
from vidtrain.config.launch import LaunchConfig
from vidtrain.errors import Interrupted, UsageError, did_you_mean
from vidtrain.launching import kubernetes, slurm, torchrun
from vidtrain.records import runlog

SHARED = {"engine", "command", "dry_run", "nodes", "processes_per_node", "max_restarts",
          "grace_seconds", "join_seconds"}  # fmt: skip
SCHEDULED = SHARED | {"gpus_per_node", "cpus_per_process", "memory_gb", "env", "name"}
SETTINGS = {
    "slurm": SCHEDULED
    | {"partition", "account", "time", "options", "setup", "interface", "max_requeues"},
    "kubernetes": SCHEDULED
    | {"image", "namespace", "volumes", "shm_gb", "gpu_resource", "max_failures"},
    "torchrun": SHARED | {"endpoint", "node_rank", "job_id", "local_addr", "interface"},
}
RESUMED = {"train", "check", "index", "prepare"}  # whose same command goes on
ALONE = {"benchmark", "repro"}  # which start processes of their own
HINT = "vidtrain launch ENGINE key=value ... -- train key=value ..."


def launch(config: LaunchConfig) -> None:
    """Looks through the command, writes what the engine takes, and hands it over.

    Raises:
        UsageError: A setting or the command is wrong.
        InputError: The engine is not here or refuses; with torchrun, a process failed.
        Interrupted: With torchrun: a signal came.
    """
    check(config)
    command = Command(config.command[0], config.command[1:])
    command.compose()
    name = config.name or command.name
    if config.engine == "torchrun":
        on_this_machine(processes(config), config)
    elif config.engine == "slurm":
        job = slurm_job(config, name, command.folder.absolute() / "slurm-%j.log")
        slurm.check(job)
        to_slurm(job, config)
    else:
        objects = kubernetes.manifests(kubernetes_job(config, name), config.command)
        to_kubernetes(kubernetes.as_yaml(objects), config)


def on_this_machine(job: torchrun.Processes, config: LaunchConfig) -> None:
    """Runs torchrun, or prints how."""
    if config.dry_run:
        print(torchrun.shown(job, config.command))
        tell("By hand, signals end it without a save, and a silent endpoint= is not noticed.")
        return
    try:
        torchrun.run(job, config.command)
    except Interrupted as error:
        if config.command[0] in RESUMED:
            raise
        raise Interrupted(
            error.signum, f"vidtrain {config.command[0]} was stopped by a signal"
        ) from error


def to_slurm(job: slurm.Job, config: LaunchConfig) -> None:
    """Submits a batch script, or prints it."""
    text = slurm.script(job, config.command)
    if config.dry_run:
        print(text, end="")
        return
    with runlog.writing(job.log.parent):  # Slurm makes no folder for its log
        job.log.parent.mkdir(parents=True, exist_ok=True)
    number = slurm.submit(text)
    tell(
        f"job {number}: {config.nodes} node(s) of {job.processes} process(es)\n"
        f"  its state  squeue --job {number}\n"
        f"  its words  tail -F {str(job.log).replace('%j', number)}\n"
        f"  stop it    scancel {number}"
    )


def to_kubernetes(text: str, config: LaunchConfig) -> None:
    """Creates the objects of a YAML file, or prints it."""
    if config.dry_run:
        print(text, end="")
    else:
        tell(kubernetes.create(text))


def tell(text: str) -> None:
    """Prints beside what belongs to the output."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


@dataclass
class Command:
    """A vidtrain command that is composed here and run elsewhere.

    Attributes:
        stage: Name of the stage.
        words: Its overrides.
        name: Of the run, or else the stage's.
        folder: That it writes to, as far as it has one.
        sweep: Set by `composing`.
        began: Likewise.
    """

    stage: str
    words: list[str]
    name: str = ""
    folder: Path = Path()
    sweep: str | None = None
    began: float = field(default_factory=time.time)
    failures: list[Exception] = field(default_factory=list)

    def compose(self) -> None:
        """Composes it as the stage would.

        Raises:
            UsageError: It would not run.
        """
        sources = HydraConfig.get().runtime.config_sources
        conf = Path(next(source.path for source in sources if source.provider == "main"))
        GlobalHydra.instance().clear()  # of the composition of the stage `launch`
        composing.run_hydra(self.stage, self.words, self, conf=conf)
        if self.failures:
            raise self.failures[0]

    def __call__(self, cfg: Any) -> None:
        """Takes name and folder from the composed config."""
        try:
            composing.to_objects(cfg)
            own = str(cfg.get("run") or HydraConfig.get().run.dir)
            self.folder = Path(own)
            self.name = str(cfg.get("name") or f"vidtrain-{self.stage}")
        except Exception as error:  # Hydra would add its own lines to the message
            self.failures.append(error)
        finally:
            composing.leave_no_empty_folder(cfg)


def check(config: LaunchConfig) -> None:
    """Refuses settings that make no sense.

    Raises:
        UsageError: The message names them.
    """
    if not config.engine:
        raise UsageError(f"which engine, of {', '.join(SETTINGS)}? {HINT}")
    if config.engine not in SETTINGS:
        hint = did_you_mean(config.engine, SETTINGS) or f"it is one of {', '.join(SETTINGS)}"
        raise UsageError(f"engine={config.engine} is not known; {hint}")
    for key in sorted({f.name for f in dataclasses.fields(config)} - SETTINGS[config.engine]):
        if getattr(config, key) != getattr(LaunchConfig(), key):
            owners = [name for name, keys in SETTINGS.items() if key in keys]
            raise UsageError(
                f"{key}={getattr(config, key)} is a setting of {' and '.join(owners)}, and says "
                f"nothing to {config.engine}; leave it out"
            )
    check_command(config)
    least, most = torchrun.num_nodes(config.nodes)
    if config.engine == "kubernetes" and least != most:
        raise UsageError(f"nodes={config.nodes}: a TrainJob has a fixed number; give one")
    if config.engine == "kubernetes" and not config.image:
        raise UsageError("image must be given: add image=REGISTRY/NAME:TAG (see docs/docker.md)")
    if config.engine == "torchrun" and most > 1 and config.endpoint is None:
        raise UsageError(
            f"nodes={config.nodes} need a place to meet: add endpoint=HOST:29400, the same on all, "
            "with the name or address of one of them"
        )
    for key in ("node_rank", "job_id", "local_addr", "join_seconds"):
        given = getattr(config, key) != getattr(LaunchConfig(), key)
        if config.engine == "torchrun" and config.endpoint is None and given:
            raise UsageError(f"{key}={getattr(config, key)} says nothing without endpoint=")
    for key, low in (("processes_per_node", 1), ("max_restarts", 0), ("grace_seconds", 1),
                     ("join_seconds", 1), ("gpus_per_node", 0), ("cpus_per_process", 1),
                     ("memory_gb", 1), ("max_requeues", 0), ("max_failures", 0), ("shm_gb", 1),
                     ("node_rank", 0)):  # fmt: skip
        value = getattr(config, key)
        if value is not None and value < low:
            raise UsageError(f"{key}={value} must be at least {low}")


def check_command(config: LaunchConfig) -> None:
    """Refuses what cannot be started.

    Raises:
        UsageError: The message names it.
    """
    if not config.command:
        raise UsageError(f"what is to be started? {HINT}")
    stage, words = config.command[0], config.command[1:]
    known = set(SCHEMAS) - {"launch"}
    if stage not in known:
        hint = did_you_mean(stage, known, cutoff=0.5) or f"it is one of {', '.join(sorted(known))}"
        raise UsageError(f"{stage!r} after -- is not a stage; {hint}")
    if stage in ALONE:
        raise UsageError(f"vidtrain {stage} starts processes of its own; run it as it is")
    shown = sweeping.SHOWING & set(words)
    if shown:
        raise UsageError(f"{shown.pop()} shows something and runs nothing: vidtrain {stage} ...")
    if {"-m", "--multirun"} & set(words):
        raise UsageError("a sweep submits its own jobs: vidtrain train -m hydra/launcher=slurm ...")
    if stage not in RANKED:
        for key, value in (("nodes", config.nodes), ("processes_per_node",
                           config.processes_per_node or "1")):  # fmt: skip
            if str(value) != "1":
                raise UsageError(f"{key}={value}: vidtrain {stage} is one process; leave it out")


def variables(words: list[str]) -> dict[str, str]:
    """Returns names and values of NAME=VALUE words.

    Raises:
        UsageError: A word is none.
    """
    found = dict(word.partition("=")[::2] for word in words)
    for word in words:
        if not re.match(r"[A-Za-z_]\w*=", word):
            raise UsageError(f"env: {word!r} must be NAME=VALUE, such as NCCL_DEBUG=INFO")
    return found


def processes(config: LaunchConfig) -> torchrun.Processes:
    """Returns what torchrun starts on this machine."""
    return torchrun.Processes(
        nodes=config.nodes,
        processes=per_node(config, torch.cuda.device_count()),
        max_restarts=max_restarts(config),
        grace_seconds=config.grace_seconds,
        join_seconds=config.join_seconds,
        endpoint=config.endpoint,
        node_rank=config.node_rank,
        job_id=config.job_id,
        local_addr=config.local_addr,
        interface=config.interface,
    )


def per_node(config: LaunchConfig, gpus: int) -> int:
    """Returns the processes of each node, which has so many GPUs."""
    return (config.processes_per_node or gpus or 1) if config.command[0] in RANKED else 1


def max_restarts(config: LaunchConfig) -> int:
    """Returns how often torchrun starts again what has failed."""
    default = 3 if config.command[0] == "train" else 0
    return default if config.max_restarts is None else config.max_restarts


def max_requeues(config: LaunchConfig) -> int:
    """Returns how often a stopped job is queued again."""
    default = 100 if config.command[0] in RESUMED else 0
    return default if config.max_requeues is None else config.max_requeues


def slurm_job(config: LaunchConfig, name: str, log: Path) -> slurm.Job:
    """Returns what Slurm is asked for."""
    per = per_node(config, config.gpus_per_node)
    return slurm.Job(
        name=name, log=log, nodes=config.nodes, processes=per, gpus=config.gpus_per_node,
        cpus=per * config.cpus_per_process, memory_gb=config.memory_gb,
        partition=config.partition, account=config.account, time=config.time,
        grace_seconds=config.grace_seconds, join_seconds=config.join_seconds,
        max_restarts=max_restarts(config), max_requeues=max_requeues(config),
        interface=config.interface, options=config.options, setup=config.setup,
        env=variables(config.env),
    )  # fmt: skip


def kubernetes_job(config: LaunchConfig, name: str) -> kubernetes.Job:
    """Returns what Kubernetes is asked for."""
    per = per_node(config, config.gpus_per_node)
    return kubernetes.Job(
        name=name, image=str(config.image), namespace=config.namespace, nodes=int(config.nodes),
        processes=per, gpus=config.gpus_per_node, gpu_resource=config.gpu_resource,
        cpus=per * config.cpus_per_process, memory_gb=config.memory_gb, shm_gb=config.shm_gb,
        volumes=config.volumes, env=variables(config.env), grace_seconds=config.grace_seconds,
        join_seconds=config.join_seconds, max_restarts=max_restarts(config),
        max_failures=config.max_failures,
    )  # fmt: skip
