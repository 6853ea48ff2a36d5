"""What the stages that go through a data set share."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stats", "index", "check"])
@pytest.mark.parametrize("seconds", [2.5, 3.5, 5.0])
def test_ctrl_c_is_answered_in_a_line_at_any_moment(
    class_folders: Path, tmp_path: Path, stage: str, seconds: float
) -> None:
    """Also while processes start: the terminal sends the signal to all of them."""
    arguments = ["data=folder", f"data.root={class_folders}", "workers=2"]
    if stage != "index":
        arguments.append(f"output={tmp_path / 'out'}")
    process = subprocess.Popen(
        [sys.executable, "-m", "vidtrain", stage, *arguments],
        cwd=tmp_path, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    time.sleep(seconds)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    # While Python itself starts or ends, the signal ends the process: 130 to a shell as well.
    assert process.returncode in (0, 130, -signal.SIGINT), said
    assert "Traceback" not in said
