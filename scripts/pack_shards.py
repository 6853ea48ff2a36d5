"""Packs a data set into tar shards that data=tar_shards reads in place.

    python scripts/pack_shards.py OUT data=folder data.root=DIR
    python scripts/pack_shards.py OUT --size-mb 1000 --seed 0 data=kinetics400 data.root=DIR
    python scripts/pack_shards.py --index OUT/train-*.tar
    vidtrain train data=tar_shards data.root=OUT

Each split becomes OUT/SPLIT-000000.tar, ... with the video files as they are, and a list of what
is in each shard beside it. Videos come in a shuffled order, with --listed in the data set's own.
The same command goes on where it was stopped. With --index, only the lists of shards that are
there already are written, also for shards of other makers.
"""

import argparse
import io
import os
import re
import sys
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from vidtrain import build_data
from vidtrain.cli import conf_dir
from vidtrain.command import composing
from vidtrain.config import IndexConfig
from vidtrain.data.sources.tar_shards import read_shard, write_index
from vidtrain.data.video import Video, VideoList, split_member
from vidtrain.errors import InputError, UsageError
from vidtrain.records import runlog

MB = 1_000_000


def main() -> None:
    """Reads the arguments, then writes shards or lists of shards."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("places", nargs="+", metavar="OUT [data=... data.root=...]")
    parser.add_argument(
        "--size-mb", type=float, default=1000.0, help="of a shard, millions of bytes"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the shuffled order")
    parser.add_argument("--listed", action="store_true", help="keep the data set's own order")
    parser.add_argument("--index", action="store_true", help="write the lists of existing shards")
    options = parser.parse_intermixed_args()
    if options.size_mb <= 0:
        parser.error(f"--size-mb {options.size_mb} must be more than 0")
    try:
        if options.index:
            for shard in options.places:
                print(f"{shard}: {write_index(str(Path(shard).absolute()))} videos")
            return
        out, *overrides = options.places
        if re.match(r"[a-z_.]+=", out):
            parser.error("the folder to write to comes first")
        seed = None if options.listed else options.seed
        call = Packing(Path(out), int(options.size_mb * MB), seed)
        composing.run_hydra("index", overrides, call, conf=conf_dir())
        if call.failures:
            raise call.failures[0]
    except InputError as error:
        print(f"pack_shards: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UsageError) else 1)


@dataclass
class Packing:
    """What Hydra calls with the composed config; see `pack`."""

    out: Path
    size: int
    seed: int | None
    failures: list[InputError] = field(default_factory=list)
    sweep: str | None = None
    began: float = field(default_factory=time.time)

    def __call__(self, config: DictConfig) -> None:
        try:
            pack(composing.to_objects(config), self.out, size=self.size, seed=self.seed)
        except InputError as error:  # past Hydra, which would add its own lines
            self.failures.append(error)


def pack(config: IndexConfig, out: Path, *, size: int, seed: int | None) -> None:
    """Writes the shards of the splits; those that are there already stay.

    Args:
        config: The data set and its splits.
        out: Folder to write to.
        size: Bytes of videos that a shard holds at most, if it holds more than one.
        seed: Of the order; None: as listed.

    Raises:
        InputError: The data set cannot be packed or read, or `out` holds other shards.
    """
    names: tuple[str, ...] | None = None
    for split in config.splits:
        listed = build_data.videos(config.data, split, class_names=names)
        names = listed.class_names
        _check(listed, split)
        plan = list(_plan(listed.videos, size, seed))
        wanted = {f"{split}-{number:06d}.tar" for number in range(len(plan))}
        others = sorted({p.name for p in out.glob(f"{split}-*.tar")} - wanted)
        if others:
            raise InputError(f"{out / others[0]} is not of this data set and size; empty {out}")
        with runlog.writing(out):
            out.mkdir(parents=True, exist_ok=True)
        runlog.write_text(out / "classes.txt", "\n".join(names) + "\n")
        for number, members in enumerate(plan):
            shard = (out / f"{split}-{number:06d}.tar").absolute()
            _write_shard(shard, members)
            print(f"{split}: shard {number + 1} of {len(plan)}, {len(members)} videos", flush=True)
    print(f"vidtrain train data=tar_shards data.root={out}")


def _check(listed: VideoList, split: str) -> None:
    """Refuses what single files with one label cannot hold."""
    if listed.multi_label:
        raise InputError(f"the videos of {split} have several labels each; a shard holds one")
    for video in listed.videos:
        whole = (video.num_frames, video.first_frame, video.start, video.end) == (None, 0, None,
                                                                                  None)  # fmt: skip
        if not whole or not os.path.isfile(video.path) or split_member(video.path):
            kind = "a part of a video" if not whole else "no single video file"
            raise InputError(f"{video.id} of {split} is {kind}; only whole video files are packed")


def _plan(
    videos: tuple[Video, ...], size: int, seed: int | None
) -> Iterator[list[tuple[str, Video]]]:
    """Yields the members of each shard: keys and videos."""
    order = np.arange(len(videos)) if seed is None else np.random.default_rng(seed).permutation(
        len(videos)
    )  # fmt: skip
    keys: set[str] = set()
    members: list[tuple[str, Video]] = []
    filled = 0
    for video in (videos[index] for index in order):
        # A key ends at its first dot.
        stem = re.sub(r"[^\w/-]", "_", os.path.splitext(video.id)[0]).strip("/")
        names = chain([stem], (f"{stem}_{number}" for number in count(2)))
        key = next(name for name in names if name not in keys)
        keys.add(key)
        weight = os.stat(video.path).st_size
        if members and filled + weight > size:
            yield members
            members, filled = [], 0
        members.append((key, video))
        filled += weight
    yield members


def _write_shard(shard: Path, members: list[tuple[str, Video]]) -> None:
    """Writes a shard and its list whole or not at all; the same videos give the same bytes."""
    if shard.exists():
        there = [(m.key, m.size, m.label) for m in read_shard(str(shard))]
        if there != [(key, os.stat(v.path).st_size, v.label) for key, v in members]:
            raise InputError(f"{shard} is not of this data set, order and size; empty its folder")
    else:
        temporary = shard.with_name(f".{shard.name}.tmp")
        with runlog.writing(shard):
            with open(temporary, "wb") as file:
                with tarfile.open(fileobj=file, mode="w") as tar:
                    for key, video in members:
                        _add(tar, key, video)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, shard)
    write_index(str(shard))


def _add(tar: tarfile.TarFile, key: str, video: Video) -> None:
    """Adds a video and its label; neither times nor owners are kept."""
    with open(video.path, "rb") as content:
        info = tarfile.TarInfo(key + os.path.splitext(video.path)[1].lower())
        info.size = os.fstat(content.fileno()).st_size
        tar.addfile(info, content)
    label = str(video.label).encode()
    info = tarfile.TarInfo(f"{key}.cls")
    info.size = len(label)
    tar.addfile(info, io.BytesIO(label))


if __name__ == "__main__":
    main()
