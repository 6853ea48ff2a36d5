"""The scripts, run as a user runs them."""

import subprocess
import sys
from pathlib import Path

from conftest import REPO, noise, write_video

from vidtrain.data.sources.list_file import list_file


def test_split_folder_keeps_the_clips_of_a_source_together(tmp_path: Path) -> None:
    for kind in ("run", "walk"):
        for source in range(5):
            for part in range(2):
                write_video(tmp_path / kind / f"game{source}_{part}.mp4", noise(part, 90, 3))
    command = [sys.executable, str(REPO / "scripts/split_folder.py"), str(tmp_path)]
    done = subprocess.run(
        [*command, "--group", r"(.+)_\d+", "--val-share", "0.4"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "12 train and 8 val videos" in done.stdout
    train, val = (list_file(str(tmp_path), split=f"{s}.txt") for s in ("train", "val"))
    sources = [{v.id.rpartition("_")[0] for v in listed.videos} for listed in (train, val)]
    assert len(sources[0]) == 6 and len(sources[1]) == 4 and not sources[0] & sources[1]
    wrong = subprocess.run([*command[:2], "/nowhere"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1 and "/nowhere" in wrong.stderr
