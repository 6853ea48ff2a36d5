"""One machine: GPUs, memory, limits."""

import csv
import io
import resource
import shutil
import subprocess
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import torch

from vidtrain.health.findings import Finding, Member
from vidtrain.training.host_memory import available_memory

GIB, MIB = 2**30, 2**20
# Why a GPU may run slower than it could. Source: nvml.h, nvmlClocksEventReasons.
THROTTLED = {
    0x08: "hardware slowdown", 0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown",
    0x80: "power brake",
}  # fmt: skip


def device(name: str, me: Member) -> Iterator[Finding]:
    """The device that this process computes on.

    Args:
        name: auto, cpu, cuda or cuda:N.
        me: This process.
    """
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind = ("cuda" if there else "cpu") if name == "auto" else name.split(":")[0]
    if kind == "cuda" and me.local_rank >= there:
        yield Finding(
            "device", "fail", f"{there} GPUs are visible, none for local rank {me.local_rank}",
            "start as many processes per node as it has GPUs, look at CUDA_VISIBLE_DEVICES and "
            "nvidia-smi, or use device=cpu",
        )  # fmt: skip
    else:
        yield Finding("device", "ok", kind, alike="fail")
    built = torch.version.cuda
    if not there:
        text = f"torch is built for CUDA {built}" if built else "CPU torch"
        yield Finding("gpu", "warn" if name == "auto" else "ok",
                      f"none visible ({text}): training runs on the CPU")  # fmt: skip
        return
    nccl = ".".join(map(str, torch.cuda.nccl.version()))
    yield Finding("nccl", "ok", f"{nccl}, CUDA {built}", alike="fail")


def all_gpus() -> Iterator[Finding]:
    """The GPUs of this node: what they are, whether they reach each other, how they are."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for index in range(count):
        found = torch.cuda.get_device_properties(index)
        text = f"{found.name}, {found.total_memory / GIB:.0f} GiB"
        yield Finding(f"gpu {index}", "ok", text, alike="warn")
    if count:
        yield from peers(count)
        yield from driver()


def peers(count: int) -> Iterator[Finding]:
    """Whether GPUs of this node read each other's memory."""
    if count < 2:
        return
    apart = [
        f"{a}-{b}" for a, b in combinations(range(count), 2)
        if not torch.cuda.can_device_access_peer(a, b)
    ]  # fmt: skip
    topology = _smi("topo", "-m")
    how = links_between(topology) if topology else ""
    if apart:
        yield Finding(
            "gpu peers", "warn", f"no peer access between GPUs {', '.join(apart[:8])}{how}",
            "sums go through host memory; look at nvidia-smi topo -p2p r, ACS and IOMMU settings",
        )  # fmt: skip
    else:
        yield Finding("gpu peers", "ok", f"peer access between all {count}{how}", alike="warn")


def links_between(topology: str) -> str:
    """Returns the kinds of connection in the table that `nvidia-smi topo -m` prints, as text."""
    rows = [line.split() for line in topology.splitlines() if line.startswith("GPU")]
    kinds: dict[str, None] = {}
    for row in rows:
        for kind in row[1 : 1 + len(rows)]:
            if kind != "X":
                kinds[kind] = None
    return f", connected by {', '.join(kinds)}" if kinds else ""


def driver() -> Iterator[Finding]:
    """Driver, memory errors and throttling, as nvidia-smi tells."""
    fields = ("index", "driver_version", "temperature.gpu", "clocks_throttle_reasons.active",
              "ecc.errors.uncorrected.volatile.total", "pcie.link.width.current",
              "pcie.link.width.max")  # fmt: skip
    text = _smi(f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits")
    if text is None:
        yield Finding("driver", "ok", "nvidia-smi is not there or does not answer")
        return
    yield from driver_findings(text)


def driver_findings(text: str) -> Iterator[Finding]:
    """Findings from the rows of `driver`'s query."""
    for row in csv.reader(io.StringIO(text), skipinitialspace=True):
        index, version, degrees, reasons, errors, width, widest = (cell.strip() for cell in row)
        if index == "0":
            yield Finding("driver", "ok", version, alike="warn")
        if errors.isdecimal() and int(errors) > 0:
            yield Finding(
                f"gpu {index} memory", "fail", f"{errors} uncorrected memory errors",
                "reset the GPU or take the node out; nvidia-smi -q -d ECC says more",
            )  # fmt: skip
        bits = int(reasons, 16) if reasons.startswith("0x") else 0
        why = [name for bit, name in THROTTLED.items() if bits & bit]
        if why:
            yield Finding(
                f"gpu {index} clock", "warn", f"slowed down by {', '.join(why)}, {degrees} °C",
                "cooling or power of the node; nvidia-smi -q -d PERFORMANCE says more",
            )  # fmt: skip
        if width.isdecimal() and widest.isdecimal() and int(width) < int(widest):
            yield Finding(f"gpu {index} pcie", "warn", f"{width} of {widest} PCIe lanes in use",
                          "reseat the card, or let it be idle no more and look again")  # fmt: skip


def _smi(*words: str) -> str | None:
    try:
        done = subprocess.run(
            ["nvidia-smi", *words], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def open_files() -> Iterator[Finding]:
    """How many files this process may have open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else 65536
    verdict = "fail" if soft <= 256 else "warn" if soft < 1024 else "ok"
    remedy = f"raise it with ulimit -n {min(most, 65536)}" if verdict != "ok" else ""
    yield Finding("open files", verdict, f"limit {soft} (hard {hard})", remedy, number=soft)


def memory(me: Member) -> Iterator[Finding]:
    """Memory of this node, and the shared memory that loader processes pass batches through."""
    shared, wanted = Path("/dev/shm"), 512 * me.local_size
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / MIB
        few = free < wanted
        yield Finding(
            "shared memory", "warn" if few else "ok", f"{free:.0f} MiB free in {shared}",
            "start the container with --shm-size=8g, or use data.num_workers=0" if few else "",
            number=free,
        )  # fmt: skip
    if Path("/proc/meminfo").exists():
        free = available_memory() / GIB
        few = free < 2 * me.local_size
        yield Finding(
            "memory", "warn" if few else "ok", f"{free:.1f} GiB available",
            f"{me.local_size} processes want about 2 GiB each: end others, or ask for more"
            if few else "", number=free,
        )  # fmt: skip
