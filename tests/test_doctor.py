"""`vidtrain doctor` on one machine, and what it makes of what several report."""

import errno
import json
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPO, TINY

from vidtrain.health import disks, links, machine, network, peers, software
from vidtrain.health.findings import Finding, Member, merged, place, spans

Cli = Callable[..., int]
FOUR = {rank: Member(rank, 4, rank % 2, 2, rank // 2, f"node{rank // 2}") for rank in range(4)}
NODES = {rank: Member(rank, 5, 0, 1, rank, f"node{rank}") for rank in range(5)}


def report(cli: Cli, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, Any]:
    """Exit code and JSON of an examination."""
    capsys.readouterr()
    code = cli("doctor", "json=true", *args)
    return code, json.loads(capsys.readouterr().out)


def subjects(found: Any, verdict: str = "") -> set[str]:
    rows = found["findings"]
    return {row["subject"] for row in rows if verdict in ("", row["verdict"])}


@pytest.mark.slow
def test_one_machine_with_its_data_and_a_step(
    cli: Cli, class_folders: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = report(
        cli, capsys, *TINY, "data=folder", f"data.root={class_folders}", "train.batch_size=4",
        "device=cpu", "data.num_workers=0",
    )  # fmt: skip
    assert code == 0 and found["ok"] and found["world_size"] == 1
    assert not subjects(found, "fail")
    assert {
        "data folder",
        "data folder speed",
        "same data",
        "run folder",
        "host name",
        "open files",
        "decoder pyav",
        "matrix products",
        "dry step",
        "dry step memory",
    } <= subjects(found)
    (step,) = [row for row in found["findings"] if row["subject"] == "dry step"]
    assert "tiny, 4 clips in" in step["found"]
    assert not list(tmp_path.iterdir()), "it leaves nothing behind"


def test_what_stops_a_training_is_named_and_told_by_the_exit_code(
    cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for root, words in ((tmp_path / "nowhere", "is not there"), (tmp_path / "empty", "no files")):
        code, found = report(cli, capsys, "data=folder", f"data.root={root}", "dry_step=false",
                             "runs=/proc/nowhere", "device=cpu")  # fmt: skip
        assert code == 1 and not found["ok"]
        rows = {row["subject"]: row for row in found["findings"] if row["verdict"] == "fail"}
        assert rows.keys() == {"data folder", "run folder"}
        assert words in rows["data folder"]["found"] and rows["data folder"]["remedy"]
        assert "dry step" not in subjects(found)


@pytest.mark.parametrize(
    ("word", "message"),
    [("limit_seconds=0", "limit_seconds=0 must be"), ("sizes_mb=[]", "sizes_mb=[] must be"),
     ("min_gbps=-1", "min_gbps=-1 must be"), ("train.epoch=1", "not a setting of vidtrain doctor")],
)  # fmt: skip
def test_wrong_settings(
    cli: Cli, capsys: pytest.CaptureFixture[str], word: str, message: str
) -> None:
    assert cli("doctor", word) == 2
    assert message in capsys.readouterr().err


def test_it_composes_what_train_composes() -> None:
    ours, theirs = (
        [entry for entry in yaml.safe_load((REPO / "conf" / f"{name}.yaml").read_text())["defaults"]
         if entry != f"{name}_schema"] for name in ("doctor", "train")
    )  # fmt: skip
    assert ours == theirs


@contextmanager
def lowered(limit: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_limit_of_open_files() -> None:
    verdicts = []
    for limit in (2048, 512, 250):
        with lowered(limit):
            (found,) = machine.open_files()
        verdicts.append(found.verdict)
        assert f"limit {limit} " in found.found and ("ulimit -n" in found.remedy) == (limit < 1024)
    assert verdicts == ["ok", "warn", "fail"]


def test_a_port_in_use() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        (found,) = network.ports(port)
        assert (
            found.verdict == "warn" and "in use" in found.found and "--standalone" in found.remedy
        )
    (found,) = network.ports(port)
    assert found.verdict == "ok"


def test_an_interface_that_is_not_there() -> None:
    environment = {"GLOO_SOCKET_IFNAME": "nosuch0", "NCCL_SOCKET_IFNAME": "nosuch"}
    found = list(network.naming(environment, me=Member(), num_nodes=1))
    rows = [row for row in found if row.subject == "interface"]
    assert [row.verdict for row in rows] == ["fail", "fail"]
    assert "GLOO_SOCKET_IFNAME=nosuch0" in rows[0].found and "lo" in rows[0].remedy
    assert network.own_address({"GLOO_SOCKET_IFNAME": "lo"}) == "127.0.0.1"


@pytest.mark.parametrize(("size", "verdict"), [(1, "warn"), (2, "fail")])
def test_a_host_name_that_cannot_be_resolved(size: int, verdict: str) -> None:
    code = (
        "from vidtrain.health import network; from vidtrain.health.findings import Member;"
        f"found = next(network.naming({{}}, me=Member(size={size}), num_nodes=1));"
        "print(found.verdict, found.found, found.remedy)"
    )
    done = subprocess.run(
        ["unshare", "-u", "sh", "-c", 'hostname nowhere.invalid && exec "$0" -c "$1"',
         sys.executable, code],
        capture_output=True, text=True, timeout=60, check=False, cwd=REPO,
    )  # fmt: skip
    if "unshare" in done.stderr:
        pytest.skip("no name space of its own here: " + done.stderr.strip())
    assert done.stdout.startswith(f"{verdict} nowhere.invalid cannot be resolved"), done.stderr
    assert "GLOO_SOCKET_IFNAME" in done.stdout and "is_host" in done.stdout


def test_variables_that_slow_and_a_restart_that_will_fail() -> None:
    environment = {"NCCL_P2P_DISABLE": "1", "NCCL_DEBUG": "trace", "HOME": "/root",
                   "TORCHELASTIC_RUN_ID": "7"}  # fmt: skip
    found = {f.subject: f for f in software.variables(environment, me=Member(), num_nodes=2)}
    assert found.keys() == {"variable NCCL_P2P_DISABLE", "variable NCCL_DEBUG", "restarts",
                            "slow NCCL_P2P_DISABLE", "slow NCCL_DEBUG"}  # fmt: skip
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    names = {f.subject for f in software.variables(environment, me=Member(), num_nodes=2)}
    assert "restarts" not in names


def test_what_nvidia_smi_says() -> None:
    rows = """0, 550.54.15, 41, 0x0000000000000001, 0, 16, 16
1, 550.54.15, 88, 0x0000000000000060, 0, 16, 16
2, 550.54.15, 40, 0x0000000000000000, 3, 8, 16
3, 550.54.15, 40, [N/A], [N/A], 16, 16
"""
    found = {f.subject: f for f in machine.driver_findings(rows)}
    assert found.keys() == {"driver", "gpu 1 clock", "gpu 2 memory", "gpu 2 pcie"}
    assert found["gpu 2 memory"].verdict == "fail"
    assert "software thermal slowdown, hardware thermal slowdown" in found["gpu 1 clock"].found
    topology = (
        "\tGPU0\tGPU1\tNIC0\nGPU0\t X \tNV18\tSYS\nGPU1\tNV18\t X \tPIX\nNIC0\tSYS\tPIX\t X\n"
    )
    assert machine.links_between(topology) == ", connected by NV18"


def test_the_same_is_said_once_and_a_difference_with_its_place() -> None:
    def rows(rank: int) -> list[Finding]:
        odd = rank == 3
        return [
            Finding("torch", "ok", "2.9" if odd else "2.8", alike="fail"),
            Finding("limit", "warn" if rank > 1 else "ok", "few" if rank > 1 else "many"),
            Finding("speed", "ok", f"{rank} MB/s", number=float(rank)),
            Finding("other", "ok", "1.0", quiet=True, alike="warn"),
            *([Finding("disk", "ok", "full", of_node=True)] if rank == 2 else []),
        ]

    lines = merged({rank: rows(rank) for rank in range(4)}, FOUR)
    said = [(line.subject, line.verdict, line.ranks) for line in lines]
    assert said == [
        ("torch", "ok", (0, 1, 2)), ("torch", "fail", (3,)), ("limit", "ok", (0, 1)),
        ("limit", "warn", (2, 3)), ("speed", "ok", (0, 1, 2, 3)), ("disk", "ok", (2, 3)),
    ]  # fmt: skip
    assert lines[1].found == "2.9, where rank 0 has 2.8" and lines[1].hosts == ("node1",)
    assert lines[4].found == "0 MB/s on rank 0 (node0), up to 3 MB/s on rank 3 (node1)"
    assert [place(line.ranks, FOUR) for line in lines[2:5]] == ["node0", "node1", "all"]
    assert place([0, 2, 3], FOUR) == "rank 0 (node0), node1"
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


@pytest.mark.parametrize("count", [2, 3, 4, 7, 64])
def test_pairs_are_different_in_each_round(count: int) -> None:
    found = links.rounds(count)
    assert len(found) == min(links.ROUNDS, count - 1 + count % 2)
    for pairs in found:
        ends = [unit for pair in pairs for unit in pair]
        assert len(set(ends)) == len(ends) >= count - 1
    everything = [tuple(sorted(pair)) for pairs in found for pair in pairs]
    assert len(set(everything)) == len(everything)


def exchanges(speed: Callable[[int, int], float]) -> dict[int, list[dict[str, Any]]]:
    """What five nodes would measure if pairs were that fast, MB/s."""
    found: dict[int, list[dict[str, Any]]] = {rank: [] for rank in NODES}
    for a, b in (pair for pairs in links.rounds(5) for pair in pairs):
        for own, other in ((a, b), (b, a)):
            row = {"unit": own, "other": other, "mb_s": speed(a, b), "seconds": 1e-5}
            found[own].append(row)
    return found


def test_a_slow_node_and_a_slow_connection_are_told_apart() -> None:
    slow_node = exchanges(lambda a, b: 20.0 if 2 in (a, b) else 1000.0)
    said = {line.subject: line for line in links.exchanged(slow_node, NODES)}
    assert said["slow node"].hosts == ("node2",) and said["slow node"].verdict == "warn"
    assert "slow connection" not in said
    a, b = links.rounds(5)[0][0]
    slow_pair = exchanges(lambda *pair: 20.0 if set(pair) == {a, b} else 1000.0)
    said = {line.subject: line for line in links.exchanged(slow_pair, NODES)}
    assert set(said["slow connection"].ranks) == {a, b} and "slow node" not in said
    even = exchanges(lambda a, b: 1000.0)
    assert [line.subject for line in links.exchanged(even, NODES)] == ["exchange"]
    below = list(links.exchanged(even, NODES, min_gbps=10))
    assert {line.verdict for line in below if line.subject == "slow node"} == {"fail"}


def test_a_slow_processor_is_named() -> None:
    speeds = {0: 600.0, 1: 610.0, 2: 300.0, 3: 605.0}
    slow, all_of_them = links.computed(speeds, FOUR, cuda=True)
    assert slow.ranks == (2,) and "rank 2 (node1): 300" in slow.found and "GPU 0" in slow.remedy
    assert all_of_them.found.startswith("300 to 610 TFLOP/s")


def test_a_clock_that_is_ahead_and_a_node_that_does_not_answer() -> None:
    import time

    with peers.answering("word", clock=lambda: time.time() + 90) as port:
        seen = peers.visit(1, "127.0.0.1", port, "word")
        refused = peers.visit(2, "127.0.0.1", port, "another word")
    assert not seen.error and seen.skew == pytest.approx(90, abs=0.5)
    assert refused.error
    closed = peers.visit(2, "127.0.0.1", port, "word")
    assert str(errno.ECONNREFUSED) in closed.error
    with socket.create_server(("127.0.0.1", 0)) as mute:  # takes connections and says nothing
        late = peers.visit(3, "127.0.0.1", mute.getsockname()[1], "word", seconds=0.2)
    assert "within 0.2 s" in late.error
    good = peers.Visit(0, "", 0.001, 0.0)
    lines = list(peers.reached({0: [seen, late], 1: [good], 3: [good]}, NODES))
    assert [(line.subject, line.verdict) for line in lines] == [
        ("connections", "fail"), ("clocks", "warn")]  # fmt: skip
    assert lines[0].hosts == ("node0", "node3") and "node0 does not reach node3" in lines[0].found
    assert "node1 is 90.0 s ahead of node0" in lines[1].found


def test_a_node_that_nobody_reaches_is_named_once() -> None:
    found = {
        rank: [peers.Visit(other, "no answer" if 3 in (rank, other) else "", 0.001)
               for other in NODES if other != rank]
        for rank in NODES
    }  # fmt: skip
    lines = [line for line in peers.reached(found, NODES) if line.verdict == "fail"]
    assert {line.hosts for line in lines} == {("node3",)}
    assert "is not reached by 4 of 4" in lines[0].found


def test_folders_that_differ(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for root in (one, two):
        (root / "a").mkdir(parents=True)
        (root / "a" / "x.mp4").write_bytes(b"1")
    (first,), (second,) = disks.listing(one), disks.listing(two)
    assert first.found.split("digest")[1] == second.found.split("digest")[1]
    (two / "a" / "y.mp4").write_bytes(b"1")
    (third,) = disks.listing(two)
    assert third.found.split("digest")[1] != first.found.split("digest")[1]
    token = disks.put_token(one / "runs" / "later")
    me = Member(rank=1, size=2)
    (seen,) = disks.seen(one / "runs" / "later", token, me, seconds=0)
    (lost,) = disks.seen(two / "runs" / "later", token, me, seconds=0)
    assert (seen.verdict, lost.verdict) == ("ok", "fail")
    disks.remove_token(one / "runs" / "later", token)
    assert sorted(path.name for path in one.iterdir()) == ["a"]
