"""A real Slurm of two nodes on one machine, for tests of what it does to a training."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import psutil
from conftest import REPO, vidtrain

TOOLS = REPO.parent / "shared" / "tools"


def why_not() -> str | None:
    """Returns why there can be no Slurm here, or None."""
    missing = [name for name in ("slurmctld", "slurmd", "munged") if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "starting Slurm's daemons needs root"
    if not (TOOLS / "fake_slurm_up.sh").exists():
        return f"needs {TOOLS.name}/fake_slurm_up.sh beside the project"
    return None


class Cluster:
    """A running Slurm with partitions `low`, which gives way, and `high`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def run(self, *words: str, check: bool = True) -> str:
        """Runs a command of Slurm and returns what it prints."""
        done = subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout.strip()

    def submit(self, *words: str, cwd: Path) -> str:
        """Runs `vidtrain launch slurm` and returns the number of the job."""
        os.environ["SLURM_CONF"] = self.environment["SLURM_CONF"]
        done = vidtrain("launch", "slurm", *words, cwd=cwd)
        assert done.returncode == 0, done.stderr
        return done.stderr.partition("job ")[2].partition(":")[0]

    def fact(self, job: str, name: str) -> str:
        """Returns a field of a job as scontrol shows it."""
        shown = self.run("scontrol", "--oneliner", "show", "job", job)
        return shown.partition(f" {name}=")[2].partition(" ")[0]

    def start_soon(self, job: str) -> None:
        """Takes away most of the two minutes that Slurm lets a job wait that was queued again.

        It does so since a node refuses to start a job in the second in which it was ended there.
        """
        begin = self.fact(job, "StartTime")
        if self.fact(job, "Reason") == "BeginTime" and begin != "Unknown":
            if datetime.fromisoformat(begin) > datetime.now() + timedelta(seconds=10):
                self.run("scontrol", "update", f"jobid={job}", "StartTime=now+5", check=False)

    def wait(self, what: Callable[[], object], seconds: float = 300) -> None:
        """Waits until something holds."""
        end = time.monotonic() + seconds
        while not what():
            assert time.monotonic() < end, self.run("squeue", "--all", check=False)
            time.sleep(0.5)

    def start_node(self, name: str) -> None:
        """Starts the daemon of a node."""
        self.run("slurmd", "-f", self.environment["SLURM_CONF"], "-N", name)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Starts Slurm, and ends it with all that it has started."""
    subprocess.run(
        ["bash", str(TOOLS / "fake_slurm_up.sh"), str(folder)],
        capture_output=True, timeout=60, check=True,
    )  # fmt: skip
    slurm = Cluster(folder)
    try:
        yield slurm
    finally:
        slurm.run("scancel", "--full", "--signal=KILL", "--state=RUNNING", check=False)
        slurm.run("scancel", "--user=root", check=False)
        files = [*folder.glob("run/slurm*.pid"), *folder.glob("munge/munged.pid")]
        daemons = [psutil.Process(int(pid)) for file in files
                   if psutil.pid_exists(int(pid := file.read_text()))]  # fmt: skip
        subprocess.run(["bash", str(TOOLS / "fake_slurm_down.sh"), str(folder)], check=False)
        for daemon in psutil.wait_procs(daemons, timeout=10)[1]:  # one waits for its job
            daemon.kill()
        os.environ.pop("SLURM_CONF", None)
