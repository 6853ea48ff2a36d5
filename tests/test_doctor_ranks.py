"""`vidtrain doctor` with real processes: who differs, who is stopped, who is cut off is named."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from conftest import REPO, TINY

pytestmark = pytest.mark.dist
Start = Callable[..., subprocess.Popen[str]]
QUICK = ("device=cpu", "json=true", "sizes_mb=[1]", "data.num_workers=0")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts one rank as srun would, and ends what is left of all at the end."""
    began: list[subprocess.Popen[str]] = []

    def one(
        rank: int, size: int, port: int, *args: str, wrap: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None, master: str = "127.0.0.1",
    ) -> subprocess.Popen[str]:  # fmt: skip
        contract = {
            "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(size), "GROUP_RANK": "0", "MASTER_ADDR": master,
            "MASTER_PORT": str(port),
        }  # fmt: skip
        process = subprocess.Popen(
            [*wrap, sys.executable, "-m", "vidtrain", "doctor", *QUICK, *args],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **contract, **(environment or {})},
        )  # fmt: skip
        began.append(process)
        return process

    yield one
    for process in began:
        process.kill()
        process.communicate()


def ends(processes: list[subprocess.Popen[str]]) -> tuple[Any, list[str], list[int]]:
    """What rank 0 printed, what all wrote to stderr, and the exit codes."""
    told = [process.communicate(timeout=280) for process in processes]
    errors = [err for _, err in told]
    assert told[0][0].strip(), errors
    return json.loads(told[0][0]), errors, [process.returncode for process in processes]


def rows(found: Any, subject: str, verdict: str = "") -> list[dict[str, Any]]:
    return [row for row in found["findings"]
            if row["subject"] == subject and verdict in ("", row["verdict"])]  # fmt: skip


def wait_for(port: int, key: str, value: str = "") -> None:
    """Returns when a rank has said this to the others."""
    end = time.monotonic() + 200
    while time.monotonic() < end:
        try:  # a store's client that is refused tries again after seconds only
            socket.create_connection(("127.0.0.1", port)).close()
            break
        except OSError:
            time.sleep(0.02)
    client = dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False,
                           timeout=timedelta(seconds=60))  # fmt: skip
    store = dist.PrefixStore("vidtrain_doctor", client)
    while time.monotonic() < end:
        if store.check([key]) and value in store.get(key).decode():
            return
        time.sleep(0.02)
    raise AssertionError(f"{key} was never {value}")


def test_torchrun_two_ranks(class_folders: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2",
         "-m", "vidtrain", "doctor", *QUICK, *TINY, "data=folder", f"data.root={class_folders}",
         "train.batch_size=4"],
        cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["world_size"] == 2 and found["ok"]
    for subject in ("vidtrain", "package torch", "shared run folder", "same data", "dry step"):
        (row,) = rows(found, subject)
        assert row["verdict"] == "ok" and row["ranks"] == [0, 1], "the same on all is one line"
    (row,) = found["measured"]["all_reduce"]
    assert row["mb"] == 1 and row["bus"] == row["algorithm"] > 0  # 2 (n - 1) / n is 1 for two
    assert rows(found, "exchange") and rows(found, "matrix products")
    assert not list(tmp_path.iterdir()), "the file for the others to see is gone"


@pytest.mark.slow
def test_what_differs_on_one_rank_of_four_is_named(start: Start, tmp_path: Path) -> None:
    port = free_port()
    other = tmp_path / "other"
    for name in ("vidtrain", "conf"):
        shutil.copytree(REPO / name, other / name)
    with (other / "vidtrain" / "errors.py").open("a") as file:
        file.write("# another version\n")
    limited = ("prlimit", "--nofile=600", "--")
    runs = f"runs={tmp_path / 'runs'}"
    (tmp_path / "runs").mkdir()
    hidden = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs none {tmp_path}/runs && exec "$@"', "-")
    if subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode:
        pytest.skip("no mount name space of its own here")
    found, errors, codes = ends([
        start(0, 4, port, runs),
        start(1, 4, port, runs, wrap=limited),
        start(2, 4, port, runs, environment={"PYTHONPATH": str(other), "NCCL_ALGO": "Tree"}),
        start(3, 4, port, runs, wrap=hidden, environment={"NCCL_ALGO": "Ring"}),
    ])  # fmt: skip
    assert codes == [1, 1, 1, 1], errors
    (row,) = rows(found, "open files", "warn")
    assert row["ranks"] == [1] and "limit 600" in row["found"]
    (row,) = rows(found, "vidtrain", "fail")
    assert row["ranks"] == [2] and "where rank 0 has" in row["found"]
    (row,) = rows(found, "shared run folder", "fail")
    assert row["ranks"] == [3]
    (row,) = rows(found, "variable NCCL_ALGO", "warn")
    assert row["ranks"] == [2, 3] and "Tree, where rank 0 has nothing" in row["found"]
    assert "Ring, where" in row["found"]
    assert rows(found, "all-reduce"), "the rest is measured nevertheless"
    assert "vidtrain, shared run folder" in errors[0]
    assert "see the table" not in "".join(errors[1:]), "rank 0 alone speaks"


@pytest.mark.slow
def test_a_rank_that_is_stopped_before_it_answers_is_named(start: Start) -> None:
    port = free_port()
    ranks = [start(rank, 3, port, "limit_seconds=25") for rank in range(3)]
    wait_for(port, "hello/2")
    os.kill(ranks[2].pid, signal.SIGSTOP)
    found, errors, codes = ends(ranks[:2])
    assert codes == [1, 1], errors
    (row,) = rows(found, "answer", "fail")
    assert row["ranks"] == [2] and "rank 2 (" in row["found"]
    assert "is stopped or cut off" in row["found"]
    assert not rows(found, "all-reduce")


@pytest.mark.slow
def test_a_rank_that_is_stopped_in_a_sum_is_named(start: Start) -> None:
    port = free_port()
    many = f"sizes_mb={[8] * 400}".replace(" ", "")
    ranks = [start(rank, 2, port, "limit_seconds=20", many) for rank in range(2)]
    wait_for(port, "at/1", "all-reduce")
    os.kill(ranks[1].pid, signal.SIGSTOP)
    found, errors, codes = ends(ranks[:1])
    assert codes == [1], errors
    (row,) = rows(found, "answer", "fail")
    assert row["ranks"] == [1] and "is stopped or cut off, at: all-reduce" in row["found"]
    assert rows(found, "vidtrain"), "what was found before is said"


@pytest.mark.slow
def test_a_rank_that_never_comes_is_named(start: Start) -> None:
    port = free_port()
    found, errors, codes = ends([start(rank, 3, port, "limit_seconds=20") for rank in (0, 1)])
    assert codes == [1, 1], errors
    assert "rank 2" in rows(found, "answer", "fail")[0]["found"]
    assert "never joined" in rows(found, "answer", "fail")[0]["found"]


@pytest.mark.slow
def test_the_others_name_rank_0(start: Start) -> None:
    port = free_port()
    ranks = [start(rank, 2, port, "limit_seconds=8") for rank in range(2)]
    wait_for(port, "hello/1")
    os.kill(ranks[0].pid, signal.SIGSTOP)  # the store is its, too
    _, error = ranks[1].communicate(timeout=280)
    assert ranks[1].returncode == 1
    assert "gave up" in error and "rank 0 (" in error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("master", "reason"),
    [("127.0.0.1", "nobody listens there"), ("nowhere.invalid", "cannot be resolved")],
)
def test_a_first_node_that_is_not_reached(start: Start, master: str, reason: str) -> None:
    rank = start(1, 2, free_port(), "limit_seconds=3", master=master)
    _, error = rank.communicate(timeout=120)
    assert rank.returncode == 1
    assert f"MASTER_ADDR={master}" in error and reason in error, error
