"""Check this machine: what would stop or slow a training, and what to do about it."""

import importlib
import importlib.metadata
import os
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from vidtrain.config import DoctorConfig
from vidtrain.data.reading import DECODERS, open_video
from vidtrain.data.video import Video
from vidtrain.errors import InputError
from vidtrain.provenance import PACKAGES

# (subject, ok | warn | fail, what was found and what to do)
Finding = tuple[str, str, str]


def doctor(config: DoctorConfig) -> None:
    """Prints a table of findings.

    Raises:
        InputError: Something was found that would stop a training; the message names it.
    """
    checks: list[Callable[[], Iterator[Finding]]] = [
        versions, devices, decoders, limits, lambda: disk(Path(config.runs)),
    ]  # fmt: skip
    findings = [finding for check in checks for finding in check()]
    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table("check", "", "found")
    for subject, verdict, found in findings:
        table.add_row(subject, f"[{colours[verdict]}]{verdict}", found)
    Console(highlight=False).print(table)
    failed = [subject for subject, verdict, _ in findings if verdict == "fail"]
    if failed:
        raise InputError(f"{len(failed)} checks failed: {', '.join(failed)}; see the table")


def versions() -> Iterator[Finding]:
    """Python and the packages that a run depends on."""
    yield "python", "ok", f"{platform.python_version()} on {platform.platform()}"
    for name in PACKAGES:
        try:
            yield name, "ok", importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            optional = name in ("decord", "torchcodec", "onnx", "onnxruntime")
            yield name, "warn" if optional else "fail", f"missing: pip install {name}"


def devices() -> Iterator[Finding]:
    """GPUs, CPU cores and threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cpu", "ok", f"{cores} cores, {torch.get_num_threads()} torch threads"
    if not torch.cuda.is_available():
        built = (
            f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "CPU torch"
        )
        yield "gpu", "warn", f"none visible ({built}): training runs on the CPU"
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield f"gpu {index}", "ok", f"{found.name}, {found.total_memory / 2**30:.0f} GiB"


def decoders() -> Iterator[Finding]:
    """Each decoder reads one frame of a small H.264 file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
            for value in range(0, 250, 25):
                pixels = np.full((64, 64, 3), value, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
            container.mux(stream.encode())
        for name in DECODERS:
            try:
                with open_video(Video(str(path), 0, "probe"), name) as reader:
                    grey = float(reader.read([4]).mean())
                right = abs(grey - 100) < 4
                yield (
                    f"decoder {name}",
                    "ok" if right else "fail",
                    f"frame 4 reads {grey:.0f} of 100",
                )
            except (InputError, ImportError, OSError) as error:
                yield f"decoder {name}", "fail" if name == "pyav" else "warn", str(error)


def limits() -> Iterator[Finding]:
    """Shared memory that loader workers pass batches through, and open files."""
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free / 2**20
        few = free < 512
        remedy = (
            "; start the container with --shm-size=8g, or use data.num_workers=0" if few else ""
        )
        yield "shared memory", "warn" if few else "ok", f"{free:.0f} MiB free in {shared}{remedy}"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft < 1024
    remedy = f"; raise it with ulimit -n {min(hard, 65536)}" if few else ""
    yield "open files", "warn" if few else "ok", f"limit {soft} (hard {hard}){remedy}"


def disk(runs: Path) -> Iterator[Finding]:
    """The folder that runs go to: room, and speed of a synced write."""
    folder = runs
    while not folder.exists():
        folder = folder.parent
    try:
        free = shutil.disk_usage(folder).free / 2**30
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            start = time.perf_counter()
            file.write(bytes(64 * 2**20))
            file.flush()
            os.fsync(file.fileno())
            speed = 64 / (time.perf_counter() - start)
    except OSError as error:
        yield "run folder", "fail", f"{folder.resolve()}: {error.strerror}; give another with runs="
        return
    verdict = "warn" if free < 5 else "ok"
    yield (
        "run folder",
        verdict,
        f"{folder.resolve()}: {free:.0f} GiB free, writes {speed:.0f} MiB/s",
    )
