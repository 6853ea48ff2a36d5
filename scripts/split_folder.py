"""Writes train.txt, val.txt and classes.txt for videos that lie in one folder per class.

    python scripts/split_folder.py DIR --val-share 0.2 --seed 0
    vidtrain train data=list_file data.root=DIR data.classes=classes.txt

Each class is split by the same share. Clips cut from one source video should not be on both sides:
give the part of the file name that names the source with --group (a regular expression with one
group), for example --group '(.+)_\\d+' for game7_001.mp4, game7_002.mp4.
"""

import argparse
import re
import sys
from pathlib import Path

import numpy as np

from vidtrain.data.sources.folder import folder
from vidtrain.errors import InputError


def main() -> None:
    """Reads the arguments and writes the three files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("root", help="folder with one sub-folder per class")
    parser.add_argument("--val-share", type=float, default=0.2, help="share for validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--group", default="(.+)", help="regular expression for the source video")
    options = parser.parse_args()
    if not 0 < options.val_share < 1:
        parser.error(f"--val-share {options.val_share} must lie between 0 and 1")
    try:
        counts = split(Path(options.root), options.val_share, options.seed, options.group)
    except InputError as error:
        sys.exit(f"split_folder: {error}")
    print(f"{options.root}: {counts['train']} train and {counts['val']} val videos")


def split(root: Path, val_share: float, seed: int, group: str) -> dict[str, int]:
    """Writes the lists and returns the number of videos in each."""
    listed = folder(str(root), split=".")
    rng = np.random.default_rng(seed)
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for label in range(len(listed.class_names)):
        sources: dict[str, list[str]] = {}
        for video in listed.videos:
            if video.label == label:
                found = re.match(group, Path(video.id).stem)
                sources.setdefault(found[1] if found else video.id, []).append(video.id)
        names = rng.permutation(sorted(sources)).tolist()
        wanted = val_share * sum(map(len, sources.values()))
        chosen: list[str] = []
        while names and len(chosen) < wanted:
            chosen += sources[names.pop()]
        lines["val"] += [f"{name} {label}" for name in sorted(chosen)]
        lines["train"] += [f"{n} {label}" for source in sorted(names) for n in sources[source]]
    for name, rows in lines.items():
        (root / f"{name}.txt").write_text("\n".join(rows) + "\n", "utf-8")
    (root / "classes.txt").write_text("\n".join(listed.class_names) + "\n", "utf-8")
    return {name: len(rows) for name, rows in lines.items()}


if __name__ == "__main__":
    main()
