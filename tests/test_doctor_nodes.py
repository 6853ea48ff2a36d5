"""`vidtrain doctor` on nodes: network namespaces on a bridge, each with a host name of its own."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.dist, pytest.mark.slow]
NODES = 4


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def nodes() -> Iterator[list[str]]:
    """Names of network namespaces that reach one another: node i has 10.79.0.(i + 1) on eth0."""
    prefix = f"doc{uuid.uuid4().hex[:6]}"
    names = [f"{prefix}-{index}" for index in range(NODES)]
    switch = f"{prefix}-s"
    made: list[str] = []
    try:
        for name in (switch, *names):
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", switch, "link", "set", "bridge", "up")
        for index, name in enumerate(names):
            ip("-n", switch, "link", "add", f"port{index}", "type", "veth", "peer", "name", "eth0",
               "netns", name)  # fmt: skip
            ip("-n", switch, "link", "set", f"port{index}", "master", "bridge")
            ip("-n", switch, "link", "set", f"port{index}", "up")
            ip("-n", name, "addr", "add", f"10.79.0.{index + 1}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
        yield names
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        pytest.skip(f"no network namespaces here: {said.strip()}")
    finally:
        for name in made:
            ip("netns", "del", name)


def examine(nodes: list[str], folder: Path, *args: str) -> tuple[Any, list[int]]:
    """What rank 0 prints, one process on each node, and the exit codes."""
    ranks = []
    for index, name in enumerate(nodes):
        contract = {
            "RANK": str(index), "WORLD_SIZE": str(len(nodes)), "LOCAL_RANK": "0",
            "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": str(index), "MASTER_ADDR": "10.79.0.1",
            "MASTER_PORT": "29555", "GLOO_SOCKET_IFNAME": "eth0",
        }  # fmt: skip
        doctor = [sys.executable, "-m", "vidtrain", "doctor", "device=cpu", "json=true",
                  "sizes_mb=[1]", "data.num_workers=0", *args]  # fmt: skip
        ranks.append(subprocess.Popen(
            ["ip", "netns", "exec", name, "unshare", "-u", "sh", "-c",
             f'hostname node{index} && exec "$@"', "-", *doctor],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **contract},
        ))  # fmt: skip
    try:
        told = [process.communicate(timeout=280) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert told[0][0].strip(), [err for _, err in told]
    return json.loads(told[0][0]), [process.returncode for process in ranks]


def rows(found: Any, subject: str) -> list[dict[str, Any]]:
    return [row for row in found["findings"] if row["subject"] == subject]


def test_a_node_with_a_slow_cable_is_named(nodes: list[str], tmp_path: Path) -> None:
    slow = subprocess.run(
        ["ip", "netns", "exec", nodes[2], "tc", "qdisc", "add", "dev", "eth0", "root", "tbf",
         "rate", "20mbit", "burst", "64kb", "latency", "400ms"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if slow.returncode:
        pytest.skip(f"no slow interface here: {slow.stderr.strip()}")
    found, codes = examine(nodes, tmp_path)
    (row,) = rows(found, "slow node")
    assert row["hosts"] == ["node2"] and row["verdict"] == "warn"
    assert codes == [0] * NODES, "slow is no reason to refuse"
    (row,) = rows(found, "connections")
    assert row["verdict"] == "ok" and "12 connections between 4 nodes" in row["found"]
    (row,) = rows(found, "clocks")
    assert row["verdict"] == "ok"
    found, codes = examine(nodes, tmp_path, "min_gbps=0.1")
    assert {tuple(row["hosts"]) for row in rows(found, "slow node")} == {("node2",)}
    assert codes == [1] * NODES, "slower than was asked for"


def test_two_nodes_that_do_not_reach_each_other_are_named(nodes: list[str], tmp_path: Path) -> None:
    ip("-n", nodes[3], "route", "add", "blackhole", "10.79.0.2/32")
    found, codes = examine(nodes, tmp_path)
    assert codes == [1] * NODES
    (row,) = rows(found, "connections")
    assert row["hosts"] == ["node1", "node3"] and row["verdict"] == "fail"
    assert "firewall" in row["remedy"]
    assert not rows(found, "all-reduce"), "a process group would wait for ever"
