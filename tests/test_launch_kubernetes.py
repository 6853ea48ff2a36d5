"""`vidtrain launch kubernetes`: manifests that keep to the schema, and what they do."""

import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import REPO
from kubeflow_trainer_api import models
from test_launch import pod

Cli = Callable[..., int]
EXAMPLES = REPO / "scripts/launch/kubernetes"
KUBERNETES = ("image=REGISTRY/vidtrain:1", "memory_gb=400", "volumes=[videos:/data:ro,runs:/runs]")
TRAIN = ("--dry-run", "--", "train", "model=slowfast_r50", "data=folder", "data.root=/data",
         "name=slowfast")  # fmt: skip


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ("job.yaml", ("gpus_per_node=1",)),
        ("trainjob.yaml", ("nodes=2", "gpus_per_node=8")),
    ],
)
def test_manifests_keep_to_the_published_schema(
    cli: Cli, example: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli("launch", "kubernetes", *KUBERNETES, *words, *TRAIN) == 0
    text = capsys.readouterr().out
    assert (EXAMPLES / example).read_text() == text, "the example is what the command prints"
    objects = list(yaml.safe_load_all(text))
    kinds = {"Job": models.IoK8sApiBatchV1Job, "TrainJob": models.TrainerV1alpha1TrainJob,
             "TrainingRuntime": models.TrainerV1alpha1TrainingRuntime}  # fmt: skip
    for found in objects:
        read = kinds[found["kind"]].from_dict(found).to_dict()
        assert missing(found, read) == [], "fields that the schema does not know"


def missing(given: Any, kept: Any, where: str = "") -> list[str]:
    """Fields that are not in what a schema has made of them, or have another value there."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [
            line for key in given for line in missing(given[key], kept.get(key), f"{where}.{key}")
        ]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = enumerate(zip(given, kept, strict=True))
        return [line for n, (a, b) in pairs for line in missing(a, b, f"{where}[{n}]")]
    return [] if given == kept else [where]


def test_a_pod_has_what_a_training_needs(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (("gpus_per_node=1",), ("nodes=2", "gpus_per_node=8")):
        assert cli("launch", "kubernetes", *KUBERNETES, *words, *TRAIN) == 0
        found = pod(list(yaml.safe_load_all(capsys.readouterr().out)))
        assert found["restartPolicy"] == "Never", "which a podFailurePolicy needs"
        assert found["terminationGracePeriodSeconds"] > 120, "grace_seconds, and some"
        (container,) = found["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in found["volumes"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert volumes[mounts["/data"]]["persistentVolumeClaim"]["claimName"] == "videos"
        assert set(mounts.values()) == set(volumes)


def test_the_probe_tells_whether_the_meeting_place_answers(
    cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("launch", "kubernetes", *KUBERNETES, "nodes=2", *TRAIN) == 0
    (container,) = pod(list(yaml.safe_load_all(capsys.readouterr().out)))["containers"]
    command = container["livenessProbe"]["exec"]["command"]
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/bin:/usr/bin")
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
        monkeypatch.setenv("PET_MASTER_ADDR", "127.0.0.1")
        monkeypatch.setenv("PET_MASTER_PORT", str(port))
        assert subprocess.run(command, check=False, capture_output=True).returncode == 0
    assert subprocess.run(command, check=False, capture_output=True).returncode != 0


@pytest.mark.parametrize("name", ["My run_1.b", "3d", "---", "x" * 90, "a-" * 30])
def test_any_name_becomes_one_that_kubernetes_takes(name: str) -> None:
    from vidtrain.launching.kubernetes import valid_name

    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", valid_name(name))


def test_volumes_and_variables_are_such_as_kubernetes_takes(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    volumes = f"volumes=[my.claim:/x:ro,{'a' * 90}:/y,my.claim:/z]"
    assert cli("launch", "kubernetes", *KUBERNETES, volumes, "env=['A=$(B)']", *TRAIN) == 0
    (job,) = yaml.safe_load_all(capsys.readouterr().out)
    pod = job["spec"]["template"]["spec"]
    assert {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"][1:]
    } == {"claim-0": "my.claim", "claim-1": "a" * 90}
    (container,) = pod["containers"]
    assert [mount["name"] for mount in container["volumeMounts"][1:]] == [
        "claim-0", "claim-1", "claim-0"]  # fmt: skip
    assert {"name": "A", "value": "$$(B)"} in container["env"]
