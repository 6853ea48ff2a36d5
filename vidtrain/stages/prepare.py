"""Encode the videos of a data set once for training; see `vidtrain.data.preparing`."""

import fcntl
import io
import json
import os
import re
import shutil
import time
from contextlib import closing
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import IO

import av
import numpy as np
from rich.console import Console

import vidtrain
from vidtrain import survey
from vidtrain.config import PrepareConfig
from vidtrain.data import preparing
from vidtrain.data.killable import in_processes
from vidtrain.data.packets import packet_table
from vidtrain.data.preparing import Job, Manifest
from vidtrain.data.reencode import Settings, new_size
from vidtrain.errors import InputError, Interrupted, UsageError, did_you_mean
from vidtrain.interrupt import Stop, deferred
from vidtrain.records import provenance, runlog

PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower",
           "veryslow", "placebo")  # fmt: skip
MAX_NAMED = 20
BITS_PER_PIXEL = 0.25  # at crf 20; most of 30 real clips took 0.06 to 0.25, the worst 0.76
SPARE_BYTES = 100 * 2**20
SAMPLE = 32  # videos whose sizes are looked at to estimate the room needed


def prepare(config: PrepareConfig) -> None:
    """Encodes every video of the splits into the output folder and tells what came of it.

    Raises:
        InputError: Some videos could not be encoded, said after all others are done; or the folder
            holds something else, or is too small.
        UsageError: A setting is out of range.
    """
    settings = _settings(config)
    root = os.path.abspath(os.path.expanduser(config.data.root))
    folder = os.path.abspath(os.path.expanduser(config.output))
    _refuse_overlap(root, folder)
    paths = _paths(config)
    start = time.perf_counter()
    with _opened(folder, settings) as file:
        manifest = preparing.read_manifest(folder)
        todo = _todo(paths, root, folder, manifest, settings)
        _refuse_full_disk(todo, folder, settings)
        runlog.console.print(
            f"{len(paths) - len(todo)} of {len(paths)} videos are prepared already", markup=False
        )
        failures: dict[str, str] = {}
        with deferred() as stop:
            _encode(todo, config, file, stop, failures)
        shutil.rmtree(os.path.join(folder, preparing.UNFINISHED), ignore_errors=True)
        lines = [json.dumps({"source": name, "reason": why}) for name, why in failures.items()]
        runlog.write_text(Path(folder) / "failures.jsonl", "".join(f"{line}\n" for line in lines))
        done = preparing.read_manifest(folder).rows
    rows = [done[name] for name, _ in (preparing.place(path, root) for path in paths)
            if name in done and name not in failures]  # fmt: skip
    if stop.signum:
        raise Interrupted(
            stop.signum, f"stopped: {len(rows)} of {len(paths)} videos are prepared in {folder}; "
            "the same command goes on from there",
        )  # fmt: skip
    frames, seconds = sum(row["frames"] for row in rows), sum(row["seconds"] for row in rows)
    after = sum(row["target_size"] for row in rows)
    Console(highlight=False, soft_wrap=True).print(
        f"{folder}: {len(rows)} videos, {frames} frames, {seconds / 3600:.2f} h, "
        f"{after / 2**20:.1f} MiB; {len(todo) - len(failures)} encoded now in "
        f"{time.perf_counter() - start:.0f} s\nuse it with data.prepared={folder}", markup=False,
    )  # fmt: skip
    if failures:
        named = "".join(f"\n  {name}: {why}" for name, why in list(failures.items())[:MAX_NAMED])
        raise InputError(
            f"{len(failures)} of {len(paths)} videos could not be encoded, listed in {folder}/"
            f"failures.jsonl; mend or replace them, and run the same command again:{named}"
        )


def _settings(config: PrepareConfig) -> Settings:
    ranges: dict[str, tuple[float, float]] = {
        "short_side": (16, 8192), "gop": (1, 1000), "crf": (0, 51), "timeout_seconds": (1, 1e9),
        "workers": (1, 4096),
    }  # fmt: skip
    for name, (low, high) in ranges.items():
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise UsageError(f"{name}={value} must be from {low:g} to {high:g}")
    if config.short_side % 2:
        raise UsageError(f"short_side={config.short_side} must be even")
    if config.preset not in PRESETS:
        hint = did_you_mean(config.preset, PRESETS) or f"there are {', '.join(PRESETS)}"
        raise UsageError(f"preset={config.preset} is not one of x264's; {hint}")
    if config.data.prepared is not None:
        raise UsageError("prepare reads the originals: leave data.prepared out")
    return Settings(
        short_side=config.short_side, gop=config.gop, crf=config.crf, preset=config.preset,
        frame_folder_fps=config.data.frame_folder_fps,
    )  # fmt: skip


def _refuse_overlap(root: str, folder: str) -> None:
    """Originals are never written to: neither folder may lie in the other."""
    real = [os.path.join(os.path.realpath(place), "") for place in (root, folder)]
    if real[0].startswith(real[1]) or real[1].startswith(real[0]):
        raise InputError(
            f"output={folder} and data.root={root} lie in one another; give an output folder "
            "beside the data"
        )


def _paths(config: PrepareConfig) -> list[str]:
    """The videos of the splits, each file once."""
    paths = survey.paths_of(survey.videos_of(config))
    folders = [path for path in paths if os.path.isdir(path)]
    if folders and config.data.frame_folder_fps is None:
        raise UsageError(
            f"{len(folders)} of {len(paths)} videos are folders of images, such as {folders[0]}: "
            "set data.frame_folder_fps to their frames per second"
        )
    return list(paths)


def _opened(folder: str, settings: Settings) -> IO[bytes]:
    """Opens the manifest to append to it, for this process alone.

    Raises:
        InputError: Something else is in the folder, or it was made with other settings.
    """
    path, versions = Path(folder) / preparing.MANIFEST, _versions()
    if not path.exists() and os.path.isdir(folder) and os.listdir(folder):
        raise InputError(f"output={folder} is not empty and was not made by prepare; give another")
    with runlog.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "ab", buffering=0)  # noqa: SIM115
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another `vidtrain prepare` is writing to {folder}") from None
        except OSError:
            pass  # a file system without locks
        manifest = preparing.read_manifest(folder)
        if manifest.settings not in (None, asdict(settings)):
            raise InputError(
                f"{folder} was prepared with other settings: {_difference(manifest, settings)}; "
                "take those, or give a new output folder"
            )
        with runlog.writing(path):
            file.truncate(manifest.whole_bytes)
            if manifest.settings is None or manifest.versions != versions:
                preparing.append(file, preparing.header(settings, versions))
    except BaseException:
        file.close()
        raise
    return file


def _difference(manifest: Manifest, settings: Settings) -> str:
    before, now = manifest.settings or {}, asdict(settings)
    names = [name for name in before | now if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)}, now {now.get(name)}" for name in names)


def _versions() -> dict[str, str]:
    """Of everything that new files depend on."""
    memory = io.BytesIO()
    with av.open(memory, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width = stream.height = 64
        frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    x264 = re.search(rb"x264 - core (\d+(?: r\d+)?)", memory.getvalue())
    there = provenance.ffmpeg_of_pyav()
    libraries = {name: there[name] for name in ("libavcodec", "libavformat", "libswscale")}
    return {"vidtrain": vidtrain.__version__, "av": av.__version__, **libraries,
            "x264": x264[1].decode() if x264 else "unknown"}  # fmt: skip


def _todo(
    paths: list[str], root: str, folder: str, manifest: Manifest, settings: Settings
) -> list[Job]:
    """What is not done: unknown or changed videos, and those whose new file is lost."""
    unfinished = os.path.join(folder, preparing.UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    with runlog.writing(Path(unfinished)):
        os.makedirs(unfinished)
    jobs = []
    for path in paths:
        source, target = preparing.place(path, root)
        row, file = manifest.rows.get(source), os.path.join(folder, target)
        try:
            whole = row is not None and os.path.getsize(file) == row["target_size"]
            if whole and row and (row["size"], row["mtime_ns"]) == preparing.state(path):
                continue
        except (OSError, InputError):
            pass  # it is tried, and said if it fails
        name = sha256(source.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        new = os.path.join(unfinished, f"{name}.mp4")
        jobs.append(Job(path, source, target, new, folder, settings, row))
    return jobs


def _refuse_full_disk(jobs: list[Job], folder: str, settings: Settings) -> None:
    """Raises InputError where the new files are likely not to find room."""
    pixels = []
    for job in jobs[:: max(1, len(jobs) // SAMPLE)]:
        try:
            if os.path.isfile(job.path):
                table = packet_table(job.path)
                size = new_size(table.height, table.width, settings.short_side)
                pixels.append(len(table.pts) * size[0] * size[1])
        except InputError:
            continue  # said when it is its turn
    if not pixels:
        return
    bits = BITS_PER_PIXEL * 2 ** ((20 - settings.crf) / 6)
    needed = sum(pixels) / len(pixels) * len(jobs) * bits / 8
    free = shutil.disk_usage(folder).free
    if free < needed + SPARE_BYTES:
        raise InputError(
            f"output={folder} has {free / 2**30:.1f} GiB free, the new files need about "
            f"{needed / 2**30:.1f} GiB; free some space, or give another output folder"
        )


def _encode(
    jobs: list[Job], config: PrepareConfig, file: IO[bytes], stop: Stop, failures: dict[str, str]
) -> None:
    """Does the jobs, notes each in the manifest or in `failures`, and shows how far it is."""
    encoded = in_processes(
        preparing.prepare_one, jobs, workers=survey.num_processes(config.workers),
        timeout_seconds=config.timeout_seconds, stop=stop,
    )  # fmt: skip
    with closing(encoded) as results, survey.counting("prepare", len(jobs), "videos") as advance:
        for job, result in results:
            if isinstance(result, dict):
                result = preparing.keep(job, result, file)
            if isinstance(result, OSError):
                raise InputError(
                    f"cannot write to output={job.folder}: {result.strerror}; free some space: the "
                    "same command goes on from there"
                )
            if result is not None:
                failures[job.source] = result
            advance(1)
