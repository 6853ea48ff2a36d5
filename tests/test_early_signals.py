"""A signal while the command starts ends it at once, whatever it is importing."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75)]
)
@pytest.mark.parametrize("library", ["_multiarray_umath", "libtorch_cpu"])
def test_a_signal_within_an_import(
    tmp_path: Path, number: signal.Signals, code: int, library: str
) -> None:
    command = [sys.executable, "-m", "vidtrain", "train", "train.epochs=1"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        maps = Path(f"/proc/{process.pid}/maps")
        while library not in maps.read_text() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(0.02)
        process.send_signal(number)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == code, said
    assert said == "vidtrain: interrupted as it started; nothing was begun\n"
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
