"""Versions, and the variables that change how processes talk."""

import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence

import torch

from vidtrain.health.findings import Finding, Member

TALKING = ("NCCL_", "GLOO_", "TORCH_NCCL_", "TORCH_DISTRIBUTED_DEBUG", "CUDA_LAUNCH_BLOCKING",
           "TORCH_DISABLE_SHARE_RDZV_TCP_STORE")  # fmt: skip
# These name a node's own hardware.
OWN = ("_IFNAME", "_HCA", "_CPUSET")
# What slows every step: variable, value that does, what it does.
SLOW = (
    ("NCCL_P2P_DISABLE", "1", "GPUs of a node then talk through host memory"),
    ("NCCL_SHM_DISABLE", "1", "processes of a node then talk through the network"),
    ("NCCL_IB_DISABLE", "1", "nodes then talk through TCP"),
    ("NCCL_DEBUG", "TRACE", "every call is written out"),
    ("CUDA_LAUNCH_BLOCKING", "1", "the CPU then waits for every kernel"),
    ("TORCH_DISTRIBUTED_DEBUG", "DETAIL", "every collective is then checked on all ranks"),
)
OPTIONAL = ("decord", "torchcodec", "onnx", "onnxruntime")


def versions(
    named: Sequence[str], installed: Mapping[str, str], *, code: str, me: Member
) -> Iterator[Finding]:
    """Python, our own code, and packages: those that a run depends on are said, all compared.

    Args:
        named: Packages that a run depends on.
        installed: Version of every package.
        code: Digest of vidtrain's source.
        me: This process.
    """
    yield Finding("python", "ok", f"{platform.python_version()} in {sys.prefix}", alike="warn")
    yield Finding("system", "ok", platform.platform(), alike="warn")
    yield Finding("vidtrain", "ok", f"{_version('vidtrain')}, source {code[:12]}", alike="fail")
    yield Finding("package torch", "ok", torch.__version__, alike="fail")
    for name in named:
        if name == "torch":
            continue
        if name in installed:
            yield Finding(f"package {name}", "ok", installed[name], alike="warn")
        else:
            verdict = "warn" if name in OPTIONAL else "fail"
            yield Finding(f"package {name}", verdict, "missing", f"pip install {name}")
    if me.leads:
        for name in installed.keys() - set(named):
            yield Finding(f"package {name}", "ok", installed[name], alike="warn", quiet=True)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def variables(environment: Mapping[str, str], *, me: Member, num_nodes: int) -> Iterator[Finding]:
    """Variables of NCCL, gloo and torchrun, and those that slow a training down."""
    for name in sorted(environment):
        if name.startswith(TALKING):
            alike = "" if name.endswith(OWN) else "warn"
            yield Finding(f"variable {name}", "ok", environment[name], alike=alike)
    for name, value, what in SLOW:
        if environment.get(name, "").upper() == value:
            yield Finding(
                f"slow {name}", "warn", f"{name}={value}: {what}", f"unset {name} for training"
            )
    name = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
    if num_nodes > 1 and "TORCHELASTIC_RUN_ID" in environment and environment.get(name) != "1":
        yield Finding(
            "restarts", "warn", f"{name} is not 1: after the loss of a process torchrun's restart "
            "meets the addresses of before and fails",
            f"export {name}=1 on all nodes before torchrun (vidtrain launch does)",
        )  # fmt: skip


def threads(*, me: Member, num_workers: int) -> Iterator[Finding]:
    """Cores, against the processes that this node has to carry.

    Args:
        me: This process.
        num_workers: Loader processes of each process.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    wanted = me.local_size * num_workers
    few = wanted > (cores or 1)
    yield Finding(
        "cpu", "warn" if few else "ok",
        f"{cores} cores, {torch.get_num_threads()} torch threads" + (
            f"; {me.local_size} x {num_workers} loader processes" if few else ""),
        f"data.num_workers={max(1, (cores or 1) // me.local_size)} fits" if few else "",
    )  # fmt: skip
