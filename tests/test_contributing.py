"""CONTRIBUTING.md, followed to the letter in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPO

PAGE = (REPO / "CONTRIBUTING.md").read_text("utf-8")
# A file is named in backquotes, with a colon behind it, in the paragraph before its block.
FILE = re.compile(r"`([\w/]+\.(?:py|yaml))`:[^\n]*(?:\n[^\n`]+)*\n\n```\w+\n(.*?)^```", re.M | re.S)


def section(title: str) -> str:
    """The text of a section, to the next one of its level."""
    return PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]


def follow(title: str, project: Path) -> list[str]:
    """Writes the files that a section asks for, and returns their names."""
    found = FILE.findall(section(title))
    for name, text in found:
        path = project / name
        assert not path.exists(), f"{name} is there already"
        path.write_text(text, "utf-8")
    return [name for name, _ in found]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for part in ("vidtrain", "conf"):
        shutil.copytree(REPO / part, tmp_path / part)
    return tmp_path


def vidtrain(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vidtrain", *words], cwd=project, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(project)}, timeout=240, check=False,
    )  # fmt: skip


def test_adding_a_model(project: Path, class_folders: Path) -> None:
    assert follow("Add a model", project) == [
        "vidtrain/models/tiny3d.py", "conf/model/tiny3d.yaml",
    ]  # fmt: skip
    done = vidtrain(
        project, "train", "model=tiny3d", "data=folder", f"data.root={class_folders}",
        "train.max_steps=2", "train.batch_size=4", "data.num_workers=0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tiny3d: 0.0" in done.stdout + done.stderr
    listed = vidtrain(project, "models", "tiny3d", "--json")
    assert listed.returncode == 0, listed.stderr
    assert [row["name"] for row in json.loads(listed.stdout)] == ["tiny3d"]


def test_adding_a_data_set(project: Path, class_folders: Path, tmp_path: Path) -> None:
    assert follow("Add a data set", project) == [
        "vidtrain/data/sources/json_labels.py", "conf/data/json_labels.yaml",
    ]  # fmt: skip
    root = tmp_path / "mine"
    (root / "videos").mkdir(parents=True)
    for split in ("train", "val"):
        labels = {}
        for path in sorted((class_folders / split).rglob("*.mp4"))[::4]:
            shutil.copy(path, root / "videos" / f"{split}_{path.name}")
            labels[f"{split}_{path.name}"] = path.parent.name
        (root / f"{split}.json").write_text(json.dumps(labels))
    done = vidtrain(project, "stats", "data=json_labels", f"data.root={root}", "data.num_workers=0")
    assert done.returncode == 0, done.stderr
    assert "json_labels" in done.stdout
    assert "grey" in done.stdout


def test_adding_a_stage(project: Path, class_folders: Path) -> None:
    text = section("Add a stage")
    config = project / "vidtrain" / "config" / "__init__.py"
    added = re.search(r"```python\n(@dataclass.*?)^```", text, re.M | re.S)
    assert added is not None
    source = config.read_text("utf-8").replace(
        "SCHEMAS: dict[str, type] = {",
        f'{added[1]}\n\nSCHEMAS: dict[str, type] = {{\n    "count": CountConfig,',
    )
    config.write_text(source, "utf-8")
    assert follow("Add a stage", project) == ["conf/count.yaml", "vidtrain/stages/count.py"]
    done = vidtrain(project, "count", "data=folder", f"data.root={class_folders}")
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["8", "dark"], ["8", "grey"], ["8", "light"],
    ]  # fmt: skip
