"""`vidtrain doctor` on one machine."""

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

from vidtrain.health import machine, network, software
from vidtrain.health.findings import Member

Cli = Callable[..., int]


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


@pytest.mark.parametrize("stage", ["doctor", "benchmark"])
def test_it_composes_what_train_composes(stage: str) -> None:
    ours, theirs = (
        [entry for entry in yaml.safe_load((REPO / "conf" / f"{name}.yaml").read_text())["defaults"]
         if entry != f"{name}_schema"] for name in (stage, "train")
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
