"""The image is pinned, does not run as root, and docs/docker.md describes the same image."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCS = (ROOT / "docs" / "docker.md").read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of every instruction, comments gone and lines joined."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line)]


def values(name: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == name]


def base_images() -> list[tuple[str, str]]:
    """(image, tag) of every stage."""
    images = [rest.split(" ")[0] for rest in values("FROM")]
    return [(name, tag) for name, _, tag in (image.partition(":") for image in images)]


def test_base_images_are_pinned() -> None:
    images = base_images()
    assert [name for name, _ in images] == ["python", "pytorch/pytorch"]
    for name, tag in images:
        assert re.match(r"\d+\.\d+\.\d+-", tag), f"{name}:{tag} is not one exact version"


def test_base_images_satisfy_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (torch,) = (line for line in project["dependencies"] if line.startswith("torch>"))
    minima = (project["requires-python"], torch)
    for (name, tag), minimum in zip(base_images(), minima, strict=True):
        given = tuple(map(int, tag.split("-")[0].split(".")))
        at_least = tuple(map(int, minimum.split(">=")[1].split(".")))
        assert given >= at_least, f"{name}:{tag} is older than {minimum}"


def test_image_does_not_run_as_root() -> None:
    names = [instruction for instruction, _ in instructions()]
    assert names[-2:] == ["USER", "ENTRYPOINT"], "nothing may come after USER but the entry point"
    (user,) = values("USER")
    assert int(user) > 0
    assert values("ENTRYPOINT") == ['["vidtrain"]']


def test_docs_mount_the_folders_of_the_image() -> None:
    made = re.search(r"mkdir ((?:/\w+ ?)+)", "\n".join(values("RUN")))
    assert made is not None
    commands = re.sub(r"\\\n\s*", "", DOCS)
    mounts = [
        word.partition(":")[2]
        for line in commands.splitlines()
        if line.startswith("docker run")
        for flag, word in zip(shlex.split(line), shlex.split(line)[1:], strict=False)
        if flag == "--volume"
    ]
    assert {mount.split(":")[0] for mount in mounts} == set(made[1].split())
    assert all(mount == "/data:ro" for mount in mounts if mount.startswith("/data"))


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    found = hadolint if hadolint.exists() else shutil.which("hadolint")
    if not found:
        pytest.skip("hadolint is not installed; it comes with the dev extra")
    done = subprocess.run(
        [str(found), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
