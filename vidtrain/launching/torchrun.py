"""torchrun with what it needs to survive: all engines start their processes through here."""

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from vidtrain.errors import InputError, Interrupted, UsageError
from vidtrain.launching import meeting_place

LAST_CALL_SECONDS = 30  # for machines above the least number; more than starts differ by
KILLED_AFTER_SECONDS = 30  # by a torchrun that cannot be told otherwise
TEMPORARY, WRONG_CONFIG = 75, 2
STOPS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True)
class Processes:
    """What one machine starts.

    Attributes:
        nodes: Machines, N or MIN:MAX.
        processes: Of this machine.
        max_restarts: Times that all processes are started again after one has failed.
        grace_seconds: Time to save after a signal.
        join_seconds: Longest time that machines wait for one another.
        endpoint: Where the machines meet, HOST:PORT; None: there is one machine.
        node_rank: Of this machine, 0 holds the meeting place; None: found by its address.
        job_id: Tells jobs apart that meet at one place.
        local_addr: Address at which the others reach this machine; None: its host name.
        interface: Network interface for gloo and NCCL; None: their choice.
    """

    nodes: str
    processes: int
    max_restarts: int
    grace_seconds: int
    join_seconds: int
    endpoint: str | None = None
    node_rank: int | None = None
    job_id: str = "vidtrain"
    local_addr: str | None = None
    interface: str | None = None


def num_nodes(nodes: str) -> tuple[int, int]:
    """Returns the least and the largest number of machines of N or MIN:MAX.

    Raises:
        UsageError: It is neither.
    """
    least, colon, most = nodes.partition(":")
    try:
        found = int(least), int(most if colon else least)
    except ValueError:
        found = 0, 0
    if not 1 <= found[0] <= found[1]:
        raise UsageError(
            f"nodes={nodes} must be a number of machines, or MIN:MAX such as 1:4, the least first"
        )
    return found


def arguments(job: Processes, command: list[str], *, is_host: bool) -> list[str]:
    """Returns the command line of torchrun.

    Args:
        job: What to start.
        command: The stage and its overrides.
        is_host: Whether this machine holds the meeting place.
    """
    words = [f"--nnodes={job.nodes}", f"--nproc-per-node={job.processes}",
             f"--max-restarts={job.max_restarts}"]  # fmt: skip
    if job.endpoint is None:
        words.append("--standalone")
    else:
        conf = {"is_host": int(is_host), "join_timeout": job.join_seconds,
                "last_call_timeout": LAST_CALL_SECONDS}  # fmt: skip
        told = ",".join(f"{key}={value}" for key, value in conf.items())
        words += ["--rdzv-backend=c10d", f"--rdzv-endpoint={job.endpoint}",
                  f"--rdzv-id={job.job_id}", f"--rdzv-conf={told}"]  # fmt: skip
    if job.local_addr is not None:
        words.append(f"--local-addr={job.local_addr}")
    return [*words, "-m", "vidtrain", *command]


def environment(job: Processes) -> dict[str, str]:
    """Returns the variables that torchrun and its processes need beside those that are set."""
    found = {
        # With a store that torchrun and the processes share, nobody can come back after a failure
        # on another machine: pytorch/pytorch#135712.
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(job.grace_seconds),
        # Before it ends its processes torchrun takes only these; see `_stop_once` for the others.
        "TORCHELASTIC_SIGNALS_TO_HANDLE": "SIGINT,SIGHUP,SIGQUIT",
    }
    if job.processes > 1:
        found["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")
    if job.interface is not None:
        found |= {"GLOO_SOCKET_IFNAME": job.interface, "NCCL_SOCKET_IFNAME": job.interface}
    return found


def shown(job: Processes, command: list[str]) -> str:
    """Returns what would be run, as a shell command."""
    is_host = _is_host(job)
    variables = [f"{key}={shlex.quote(value)}" for key, value in environment(job).items()]
    words = [sys.executable, "-m", "torch.distributed.run",
             *arguments(job, command, is_host=is_host)]  # fmt: skip
    return " ".join([*variables, shlex.join(words)])


def run(job: Processes, command: list[str]) -> None:
    """Starts the processes and waits for them.

    Raises:
        UsageError: `endpoint` is missing or no address; or the processes ended with a wrong config.
        InputError: A process failed; the report of torchrun, with rank and reason, is printed.
        Interrupted: A signal came; the processes were given time to save, which they may have used.
    """
    is_host = _is_host(job)
    os.environ.update(environment(job))
    with _stopping():
        if job.endpoint is None or is_host:
            _run(job, command, is_host=is_host)
        else:
            with meeting_place.watched(job.endpoint, job.join_seconds):
                _run(job, command, is_host=False)


def _run(job: Processes, command: list[str], *, is_host: bool) -> None:
    # torch comes late, since the way to the meeting place is tried first
    from torch.distributed import run as launcher
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousConnectionError

    for name, logger in logging.root.manager.loggerDict.items():
        if name.startswith("torch.distributed.") and isinstance(logger, logging.Logger):
            logger.disabled = False  # Hydra has switched off all that were there
    parser = launcher.get_args_parser()
    words = arguments(job, command, is_host=is_host)
    if "--shutdown-timeout" in parser.format_usage():
        words = [f"--shutdown-timeout={job.grace_seconds}", *words]
    elif job.grace_seconds > KILLED_AFTER_SECONDS:
        print(
            f"vidtrain: this torch kills processes {KILLED_AFTER_SECONDS} s after a signal, "
            "whatever grace_seconds says; a newer one does not", file=sys.stderr,
        )  # fmt: skip
    if "--signals-to-handle" in parser.format_usage():
        words = [f"--signals-to-handle={environment(job)['TORCHELASTIC_SIGNALS_TO_HANDLE']}",
                 *words]  # fmt: skip
    try:
        with _wrong_configs_tried_once():
            launcher.run(parser.parse_args(words))
    except RendezvousConnectionError as error:
        raise InputError(
            f"this machine cannot listen at endpoint={job.endpoint}: another program, or a job of "
            "the same machine, has the port" if is_host else
            f"the machine at endpoint={job.endpoint}, where all meet, is gone; start all of them "
            "again with the same command"
        ) from error  # fmt: skip
    except AttributeError as error:  # torchrun's own, where it has no result to look at
        if "is_failed" not in str(error):
            raise
        raise InputError(
            f"the others at endpoint={job.endpoint} have ended already; there is nobody to join"
        ) from error
    except SignalException as error:
        raise _interrupted(error.sigval) from error
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        print(error, file=sys.stderr)
        if first.exitcode == TEMPORARY:
            raise _interrupted(signal.SIGTERM) from error
        kind = UsageError if first.exitcode == WRONG_CONFIG else InputError
        said = f"exit code {first.exitcode}" if first.exitcode >= 0 else first.signal_name()
        raise kind(f"a process failed ({said}); see above for which, and why") from error


@contextmanager
def _wrong_configs_tried_once() -> Iterator[None]:
    """Lets torchrun start nothing again where a process refused its config, as it would again."""
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    look = LocalElasticAgent._monitor_workers

    def look_and_decide(agent: Any, group: Any) -> Any:
        result = look(agent, group)
        if any(failure.exitcode == WRONG_CONFIG for failure in result.failures.values()):
            agent._remaining_restarts = 0
        return result

    LocalElasticAgent._monitor_workers = look_and_decide  # type: ignore[method-assign]
    try:
        yield
    finally:
        LocalElasticAgent._monitor_workers = look  # type: ignore[method-assign]


def _is_host(job: Processes) -> bool:
    return job.endpoint is not None and meeting_place.is_here(job.endpoint, job.node_rank)


@contextmanager
def _stopping() -> Iterator[None]:
    """Lets the first signal stop torchrun; after it none counts, to the end of this process."""
    before = {number: signal.signal(number, _stop_once) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is _stop_once:
                signal.signal(number, handler)


def _stop_once(signum: int, frame: FrameType | None) -> None:
    """Stops torchrun; what comes after the first signal is ignored, since it saves already.

    A scheduler may send several signals, to this process and to the processes that it has started.
    A second one would end torchrun before its processes have saved.
    """
    del frame
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    api = sys.modules.get("torch.distributed.elastic.multiprocessing.api")
    if api is None:
        raise _interrupted(signum)
    raise api.SignalException(f"got signal {signum}", sigval=signal.SIGTERM)


def _interrupted(signum: int) -> Interrupted:
    return Interrupted(
        signum, "stopped by a signal; the same command goes on from the last checkpoint", saved=True
    )
