"""A batch script for Slurm: sbatch, srun, torchrun."""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vidtrain.errors import InputError, UsageError
from vidtrain.launching.torchrun import num_nodes

# From Slurm's signal to its end a job needs the time to save, and some to pass the signal on.
MARGIN_SECONDS = 30
LEAST_SECONDS = 60  # to start and to come on a little
# Expanded by the shell of each node.
SHELL_WORDS = ('endpoint="$ENDPOINT"', 'node_rank="$SLURM_NODEID"',
               'local_addr="$(address "$SLURMD_NODENAME")"', 'job_id="slurm-$SLURM_JOB_ID"',
               'nodes="$SLURM_JOB_NUM_NODES"')  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A job for Slurm.

    Attributes:
        name: Of the job.
        folder: Where it runs: relative paths count from there.
        log: File that all output goes to; %j stands for the job's number.
        nodes: N or MIN:MAX.
        processes: Of each node.
        gpus: Of each node; 0: none are asked for.
        cpus: Cores of each node.
        memory_gb: Of each node; None: what the partition gives.
        partition: None: the default one.
        account: None: the default one.
        time: Time limit; None: the partition's.
        grace_seconds: Time to save after a signal.
        join_seconds: Longest time that nodes wait for one another.
        max_restarts: Of torchrun, within the job.
        max_requeues: Times that a stopped job is queued again.
        interface: Network interface for gloo and NCCL.
        options: More words for sbatch.
        setup: Shell lines that come first, on each node.
        env: Variables to set.
    """

    name: str
    folder: Path
    log: Path
    nodes: str
    processes: int
    gpus: int
    cpus: int
    memory_gb: int | None
    partition: str | None
    account: str | None
    time: str | None
    grace_seconds: int
    join_seconds: int
    max_restarts: int
    max_requeues: int
    interface: str | None
    options: list[str]
    setup: list[str]
    env: dict[str, str]


def limit_seconds(time: str) -> float:
    """Returns the seconds of a time limit as Slurm writes it.

    Args:
        time: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S or UNLIMITED; see sbatch(1), --time.

    Raises:
        UsageError: It is none of these.
    """
    if time.upper() in ("UNLIMITED", "INFINITE"):
        return float("inf")
    days, dash, rest = time.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in [*parts, days or "0"]) or len(parts) > 3:
        raise UsageError(
            f"time={time} must be a time limit of Slurm, such as 24:00:00, 2-12:00 (days) or 90 "
            "(minutes)"
        )
    units = (3600, 60, 1) if dash or len(parts) == 3 else (60, 1)
    seconds = sum(int(part) * unit for part, unit in zip(parts, units, strict=False))
    return seconds + 86400 * int(days or 0)


def check(job: Job) -> None:
    """Looks whether a job comes on within its time limit.

    Raises:
        UsageError: It would be stopped before it has trained.
    """
    least = job.grace_seconds + MARGIN_SECONDS + LEAST_SECONDS
    if job.time is not None and limit_seconds(job.time) < least:
        raise UsageError(
            f"time={job.time} is too short: a job is told to save {least - LEAST_SECONDS} s before "
            f"its limit (grace_seconds={job.grace_seconds} + {MARGIN_SECONDS}); give {least} s or "
            "more, or less grace_seconds"
        )


def template() -> Path:
    """Returns the batch script's template: inside the wheel, or in the checkout."""
    inside = Path(__file__).resolve().parent / "train.sbatch"
    checkout = inside.parents[2] / "scripts" / "launch" / "slurm" / "train.sbatch"
    return inside if inside.is_file() else checkout


def script(job: Job, command: list[str]) -> str:
    """Returns the batch script.

    Args:
        job: What to ask Slurm for.
        command: The stage and its overrides.
    """
    inner = [sys.executable, "-m", "vidtrain", "launch", "torchrun",
             f"processes_per_node={job.processes}", f"max_restarts={job.max_restarts}",
             f"grace_seconds={job.grace_seconds}", f"join_seconds={job.join_seconds}"]  # fmt: skip
    inner += [f"interface={job.interface}"] * bool(job.interface)
    line = " ".join([shlex.join(inner), *SHELL_WORDS, "--", shlex.join(command)])
    # Not `set -e`, which would hold inside the functions of `module` too.
    setup = [word for given in job.setup for word in (given, f"[ $? = 0 ] || {_failed(given)}")]
    exports = [f"export {key}={shlex.quote(value)}" for key, value in job.env.items()]
    values = {
        "directives": "\n".join(f"#SBATCH {word}" for word in directives(job)),
        "setup": "\n".join(exports),
        "wait_seconds": str(job.grace_seconds + MARGIN_SECONDS),
        "max_requeues": str(job.max_requeues),
        "on_each_node": shlex.quote("\n".join([*setup, f"exec {line}"])),
    }
    text = template().read_text("utf-8")
    return re.sub(r"@(\w+)@", lambda found: values[found[1]], text)


def _failed(line: str) -> str:
    return f"{{ echo {shlex.quote(f'vidtrain: setup: {line} failed')} >&2; exit 1; }}"


def directives(job: Job) -> list[str]:
    """Returns the options of sbatch that stand at the head of the script."""
    least, most = num_nodes(job.nodes)
    found = {
        "--job-name": job.name,
        "--chdir": str(job.folder),
        "--nodes": str(least) if least == most else f"{least}-{most}",
        "--ntasks-per-node": "1",
        "--cpus-per-task": str(job.cpus),
        "--gpus-per-node": str(job.gpus) if job.gpus else None,
        "--mem": f"{job.memory_gb}G" if job.memory_gb else None,
        "--partition": job.partition,
        "--account": job.account,
        "--time": job.time,
        "--signal": f"B:USR1@{job.grace_seconds + MARGIN_SECONDS}",
        "--output": str(job.log),
        "--open-mode": "append",
    }
    words = [f"{key}={shlex.quote(value)}" for key, value in found.items() if value is not None]
    return [*words, "--requeue", *map(shlex.quote, job.options)]


def submit(text: str) -> str:
    """Hands a batch script to Slurm and returns the number of the job.

    Raises:
        InputError: There is no sbatch, or it refuses the script.
    """
    if shutil.which("sbatch") is None:
        raise InputError(
            "there is no sbatch here; run this on a login node of the cluster, or add --dry-run "
            "and take the script there"
        )
    done = subprocess.run(
        ["sbatch", "--parsable"], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"sbatch does not take the job: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]
