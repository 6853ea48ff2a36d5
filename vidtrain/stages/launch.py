"""Start a training on a cluster."""

import dataclasses
import re
from pathlib import Path

import torch
from rich.console import Console

from vidtrain.checkpoints.checkpoint import all_steps
from vidtrain.config import RANKED
from vidtrain.config.launch import LaunchConfig
from vidtrain.config.train import TrainConfig
from vidtrain.errors import Interrupted, NotHere, UsageError, did_you_mean
from vidtrain.interrupt import RESUMED
from vidtrain.launching import kubernetes, slurm, torchrun
from vidtrain.records import runlog
from vidtrain.running.launched import HINT, Command, check_command, check_training

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


def launch(config: LaunchConfig) -> None:
    """Looks through the command, writes what the engine takes, and hands it over.

    Raises:
        UsageError: A setting or the command is wrong.
        InputError: The engine is not here or refuses; with torchrun, a process failed.
        Interrupted: With torchrun: a signal came.
    """
    check(config)
    command = Command(config.command[0], config.command[1:])
    compose(command, config)
    if config.engine == "torchrun":
        on_this_machine(processes(config), config, command)
    elif config.engine == "slurm":
        to_slurm(config, command)
    else:
        to_kubernetes(config, command)


def compose(command: Command, config: LaunchConfig) -> None:
    """Composes the command that is launched.

    Raises:
        UsageError: It would not run, or a training would be refused by all its processes.
        NotHere: It goes by a folder that is not here, as it must be but for Kubernetes' volumes.
    """
    try:
        command.compose()
    except NotHere as error:
        if config.engine != "kubernetes":
            raise
        tell(f"vidtrain {command.stage} is not looked through here: {error}")
    # Machines that meet by themselves may have different numbers of processes.
    alike = config.engine != "torchrun" or config.endpoint is None
    if isinstance(command.composed, TrainConfig) and command.stage == "train" and alike:
        gpus = torch.cuda.device_count() if config.engine == "torchrun" else config.gpus_per_node
        check_training(command.composed, nodes=torchrun.num_nodes(config.nodes),
                       processes=per_node(config, gpus))  # fmt: skip


def on_this_machine(job: torchrun.Processes, config: LaunchConfig, command: Command) -> None:
    """Runs torchrun, or prints how."""
    if config.dry_run:
        print(torchrun.shown(job, config.command))
        tell(
            "What vidtrain launch does beside: a signal leaves the processes time to save, a wrong "
            "config is not tried again, and machines end when the one at endpoint= falls silent."
        )
        return
    try:
        torchrun.run(job, config.command)
    except Interrupted as error:
        raise stopped(error.signum, command) from error


def stopped(signum: int, command: Command) -> Interrupted:
    """Returns what is said of a command that a signal has stopped, and where it would go on."""
    if command.stage != "train":
        return Interrupted(signum, f"vidtrain {command.stage} was stopped by a signal",
                           saved=command.stage in RESUMED)  # fmt: skip
    kept = all_steps(command.folder / "checkpoints")
    return Interrupted(
        signum, "stopped by a signal; "
        + (f"the same command goes on from {runlog.shown_path(str(kept[-1]))}" if kept else
           "nothing is saved yet, so the same command begins anew"),
        saved=True,
    )  # fmt: skip


def to_slurm(config: LaunchConfig, command: Command) -> None:
    """Submits a batch script, or prints it."""
    # Slurm makes no folder for its log, and one that prints a script makes none either.
    folder = Path.cwd() if config.dry_run else command.folder.absolute()
    file = f"{command.name}-%j.log" if config.dry_run else "slurm-%j.log"
    job = slurm_job(config, config.name or command.name, folder / file)
    slurm.check(job)
    text = slurm.script(job, config.command)
    if config.dry_run:
        print(text, end="")
        return
    with runlog.writing(job.log.parent):
        job.log.parent.mkdir(parents=True, exist_ok=True)
    number = slurm.submit(text)
    tell(
        f"job {number}: {config.nodes} node(s) of {job.processes} process(es)\n"
        f"  its state  squeue --job {number}\n"
        f"  its words  tail -F {str(job.log).replace('%j', number)}\n"
        f"  stop it    scancel {number}"
    )


def to_kubernetes(config: LaunchConfig, command: Command) -> None:
    """Creates the objects of a YAML file, or prints it."""
    job = kubernetes_job(config, config.name or command.name)
    text = kubernetes.as_yaml(kubernetes.manifests(job, config.command))
    read = getattr(getattr(command.composed, "data", None), "root", None)
    for path, what in ((command.folder, "is written to"), (read, "is read from")):
        own = str(path or ".") == "." or str(path).startswith("~")  # the container's own home
        if not own and not kubernetes.is_mounted(job, str(path)):
            tell(
                f"no volume holds {Path('/', str(path))}, which {what}: it is the container's own, "
                "and goes with it; add volumes=[CLAIM:PATH] if it matters"
            )
    if config.dry_run:
        print(text, end="")
    else:
        tell(kubernetes.create(text))


def tell(text: str) -> None:
    """Prints beside what belongs to the output."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(text, markup=False)


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
    for word in config.options:
        if not word.startswith("-"):
            raise UsageError(f"options: {word!r} is no option of sbatch; write it as --{word}")
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
    if config.node_rank is not None and config.node_rank >= most:
        raise UsageError(f"node_rank={config.node_rank}: nodes={config.nodes} have numbers from 0 "
                         f"to {most - 1}")  # fmt: skip
    for key, low in (("processes_per_node", 1), ("max_restarts", 0), ("grace_seconds", 1),
                     ("join_seconds", 1), ("gpus_per_node", 0), ("cpus_per_process", 1),
                     ("memory_gb", 1), ("max_requeues", 0), ("max_failures", 0), ("shm_gb", 1),
                     ("node_rank", 0)):  # fmt: skip
        value = getattr(config, key)
        if value is not None and value < low:
            raise UsageError(f"{key}={value} must be at least {low}")


def variables(words: list[str]) -> dict[str, str]:
    """Returns names and values of NAME=VALUE words.

    Raises:
        UsageError: A word is none.
    """
    found = dict(word.partition("=")[::2] for word in words)
    for word in words:
        if not re.match(r"[A-Za-z_]\w*=", word) or re.search(r",[A-Za-z_]\w*=", word):
            raise UsageError(
                f"env: {word!r} must be NAME=VALUE, and several are env=[NAME=VALUE,NAME=VALUE]"
            )
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
        name=name, folder=Path.cwd(), log=log, nodes=config.nodes, processes=per,
        gpus=config.gpus_per_node,
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
