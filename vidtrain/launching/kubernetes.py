"""Kubernetes: a Job for one machine, a TrainJob of Kubeflow Trainer v2 for several."""

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import yaml

from vidtrain.errors import InputError, UsageError
from vidtrain.launching.torchrun import TEMPORARY, WRONG_CONFIG

PORT = 29400
LONGEST_NAME = 40  # 63 less what Kubernetes and JobSet append for pods and hosts
# A machine that does not reach the meeting place for so long is started again.
PROBE_SECONDS, PROBES = 30, 10
PROBE = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)"


class _Plain(yaml.SafeDumper):
    """Writes what occurs twice twice, not as a reference."""

    def ignore_aliases(self, data: Any) -> bool:
        """Returns that there are no references."""
        del data
        return True


@dataclass(frozen=True)
class Job:
    """A job for Kubernetes.

    Attributes:
        name: Of the job; becomes a name that Kubernetes takes.
        image: Container image, whose `vidtrain` and `python` are on the path.
        namespace: None: the present one.
        nodes: Machines.
        processes: Of each machine.
        gpus: Of each machine; 0: none are asked for.
        gpu_resource: What Kubernetes calls a GPU.
        cpus: Cores of each machine.
        memory_gb: Of each machine; None: no limit.
        shm_gb: Size of /dev/shm.
        volumes: CLAIM:PATH or CLAIM:PATH:ro.
        env: Variables to set.
        grace_seconds: Time to save after a signal.
        join_seconds: Longest time that machines wait for one another.
        max_restarts: Of torchrun, within a machine's life.
        max_failures: Times that a failed job is started again.
    """

    name: str
    image: str
    namespace: str | None
    nodes: int
    processes: int
    gpus: int
    gpu_resource: str
    cpus: int
    memory_gb: int | None
    shm_gb: int
    volumes: list[str]
    env: dict[str, str]
    grace_seconds: int
    join_seconds: int
    max_restarts: int
    max_failures: int


def manifests(job: Job, command: list[str]) -> list[dict[str, Any]]:
    """Returns the objects to create: a Job, or a TrainingRuntime and the TrainJob that uses it.

    Args:
        job: What to ask Kubernetes for.
        command: The stage and its overrides.

    Raises:
        UsageError: A volume is not CLAIM:PATH.
    """
    name = valid_name(job.name)
    metadata = {"name": name} | ({"namespace": job.namespace} if job.namespace else {})
    if job.nodes == 1:
        words = _words(job, command, endpoint=f"localhost:{PORT}", node_rank="0")
        container = _container(job, "localhost", str(PORT)) | {"args": words}
        spec = _job_spec(job, container) | {"backoffLimit": job.max_failures}
        return [{"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}]
    meeting = ("$(PET_MASTER_ADDR)", "$(PET_MASTER_PORT)")  # which Trainer sets
    words = _words(job, command, endpoint=":".join(meeting), node_rank="$(PET_NODE_RANK)")
    container = _container(job, "$PET_MASTER_ADDR", "$PET_MASTER_PORT")
    label = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    # The first pod that fails ends the Job, and JobSet starts all pods again.
    spec = _job_spec(job, container) | {"backoffLimit": 0}
    replicated = {"name": "node", "template": {"metadata": {"labels": label}, "spec": spec}}
    never = {"name": "wrongConfig", "action": "FailJobSet",
             "onJobFailureReasons": ["PodFailurePolicy"]}  # fmt: skip
    policy = {"maxRestarts": job.max_failures, "rules": [never]}
    jobs = {"failurePolicy": policy, "replicatedJobs": [replicated]}
    runtime = {"mlPolicy": {"numNodes": job.nodes, "torch": {}}, "template": {"spec": jobs}}
    trainer = {
        "image": job.image, "command": ["vidtrain"], "args": words, "numNodes": job.nodes,
        "numProcPerNode": job.processes, "resourcesPerNode": container["resources"],
    }  # fmt: skip
    reference = {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": name}
    api = {"apiVersion": "trainer.kubeflow.org/v1alpha1"}
    return [
        {**api, "kind": "TrainingRuntime", "metadata": metadata, "spec": runtime},
        {**api, "kind": "TrainJob", "metadata": metadata,
         "spec": {"runtimeRef": reference, "trainer": trainer}},
    ]  # fmt: skip


def valid_name(name: str) -> str:
    """Returns the nearest name that Kubernetes takes: lower-case letters, digits and dashes."""
    found = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:LONGEST_NAME].strip("-")
    return found if found[:1].isalpha() else f"vidtrain-{found}".strip("-")


def as_yaml(objects: list[dict[str, Any]]) -> str:
    """Returns the objects as a YAML file."""
    return yaml.dump_all(objects, Dumper=_Plain, sort_keys=False, width=100)


def create(text: str) -> str:
    """Hands a YAML file to Kubernetes and returns what kubectl says.

    Raises:
        InputError: There is no kubectl, or the cluster refuses.
    """
    if shutil.which("kubectl") is None:
        raise InputError(
            "no kubectl is here; add --dry-run, and give what is printed to kubectl create -f -"
        )
    done = subprocess.run(
        ["kubectl", "create", "-f", "-"], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(f"Kubernetes refuses the job: {done.stderr.strip()}")
    return done.stdout.strip()


def is_mounted(job: Job, path: str) -> bool:
    """Returns whether a path, relative ones from the root, lies in a volume.

    Raises:
        UsageError: A volume is not CLAIM:PATH.
    """
    return any(PurePosixPath("/", path).is_relative_to(_volume(text)[1]) for text in job.volumes)


def _words(job: Job, command: list[str], *, endpoint: str, node_rank: str) -> list[str]:
    """Returns the container's arguments; $(...) in the user's own is not for Kubernetes."""
    settings = {
        "nodes": job.nodes, "processes_per_node": job.processes, "endpoint": endpoint,
        "node_rank": node_rank, "job_id": valid_name(job.name), "max_restarts": job.max_restarts,
        "grace_seconds": job.grace_seconds, "join_seconds": job.join_seconds,
    }  # fmt: skip
    own = [f"{key}={value}" for key, value in settings.items()]
    inner = [word.replace("$(", "$$(") for word in command]
    return ["launch", "torchrun", *own, "--", *inner]


def _job_spec(job: Job, container: dict[str, Any]) -> dict[str, Any]:
    """Returns the spec of a Job: what counts as a failure, and the pod."""
    codes = {"containerName": container["name"], "operator": "In"}
    rules: list[dict[str, Any]] = [
        {"action": "FailJob", "onExitCodes": {**codes, "values": [WRONG_CONFIG]}},
    ]
    if job.nodes == 1:  # a machine taken away is not the training's failure, and is not counted
        rules += [
            {"action": "Ignore", "onExitCodes": {**codes, "values": [TEMPORARY]}},
            {
                "action": "Ignore",
                "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
            },
        ]
    memory = {"medium": "Memory", "sizeLimit": f"{job.shm_gb}Gi"}
    volumes: list[dict[str, Any]] = [{"name": "shm", "emptyDir": memory}]
    for claim, name in _volume_names(job).items():
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim}})
    pod = {
        "restartPolicy": "Never",  # the Job starts a new pod instead, by the rules above
        "terminationGracePeriodSeconds": job.grace_seconds + 30,
        "containers": [container],
        "volumes": volumes,
    }
    return {"podFailurePolicy": {"rules": rules}, "template": {"spec": pod}}


def _container(job: Job, host: str, port: str) -> dict[str, Any]:
    """Returns the container without its arguments.

    Args:
        job: What to ask Kubernetes for.
        host: Where the machines meet, for a shell.
        port: Likewise.
    """
    resources: dict[str, Any] = {"cpu": str(job.cpus)}
    if job.memory_gb:
        resources["memory"] = f"{job.memory_gb}Gi"
    if job.gpus:
        resources[job.gpu_resource] = str(job.gpus)
    probe = f"exec python -c {shlex.quote(PROBE)} {host} {port}"
    reach = {"exec": {"command": ["sh", "-c", probe]}, "periodSeconds": PROBE_SECONDS,
             "timeoutSeconds": 15}  # fmt: skip
    variables = [{"name": key, "value": value.replace("$(", "$$(")}
                 for key, value in job.env.items()]  # fmt: skip
    start = job.join_seconds // PROBE_SECONDS + PROBES
    names = _volume_names(job)
    mounts: list[dict[str, Any]] = [{"name": "shm", "mountPath": "/dev/shm"}]
    for claim, path, read_only in map(_volume, job.volumes):
        mounts.append({"name": names[claim], "mountPath": path}
                      | ({"readOnly": True} if read_only else {}))  # fmt: skip
    return {
        "name": "node",
        "image": job.image,
        "command": ["vidtrain"],
        **({"env": variables} if variables else {}),
        "resources": {"requests": resources, "limits": resources},
        "startupProbe": {**reach, "failureThreshold": start},
        "livenessProbe": {**reach, "failureThreshold": PROBES},
        "volumeMounts": mounts,
    }


def _volume(text: str) -> tuple[str, str, bool]:
    claim, _, rest = text.partition(":")
    path, colon, mode = rest.partition(":")
    if not claim or not path.startswith("/") or (colon and mode not in ("ro", "rw")):
        raise UsageError(f"volumes: {text} must be CLAIM:PATH or CLAIM:PATH:ro, PATH from the root")
    return claim, path, mode == "ro"


def _volume_names(job: Job) -> dict[str, str]:
    """Returns a name for each claim, whose own may be longer than Kubernetes lets a volume's be."""
    claims = dict.fromkeys(_volume(text)[0] for text in job.volumes)
    return {claim: f"claim-{number}" for number, claim in enumerate(claims)}
