"""Who may import whom, read from the source files.

The table below is the architecture. A new top-level module or room needs a line in it.
"""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

GROUND = {"errors", "randomness", "distributed", "interrupt", "words"}
# Plain values only; each may import the ones before it.
PLAIN = {"data", "models", "training"}
PLAIN_ABOVE = {"tasks", "export", "report", "launching", "health", "parallel"}
# From config to objects, and what becomes of a run.
BUILD = {"config", "targets", "build_data", "build"}
RUNS = {"checkpoints", "records", "command", "sizes", "survey"}
BELOW_RUNNING = GROUND | PLAIN | PLAIN_ABOVE | BUILD | RUNS

# Part of the package -> the other parts it may import. Every part may import itself and the
# package's __init__.py, which holds the version and imports nothing.
ALLOWED: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "words": set(),
    **{name: {"errors"} for name in ("randomness", "distributed", "interrupt")},
    **dict.fromkeys(PLAIN, GROUND),
    **dict.fromkeys(PLAIN_ABOVE, GROUND | PLAIN),
    "export": GROUND | PLAIN | {"checkpoints"},
    "config": {"errors"},
    "targets": {"errors"},
    "build_data": {"errors", "config", "targets", "data"},
    "build": GROUND | PLAIN | {"parallel", "config", "targets", "build_data"},
    "checkpoints": GROUND | {"parallel"},
    "records": GROUND | PLAIN | PLAIN_ABOVE | {"config", "targets", "checkpoints"},
    "command": GROUND | {"config", "targets"},
    "sizes": {"models"},
    "survey": GROUND | {"config", "data", "build_data", "records"},
    "running": BELOW_RUNNING,
    "benchmarking": BELOW_RUNNING | {"running"},
    "stages": BELOW_RUNNING | {"running", "benchmarking"},
    "cli": {"errors", "words", "interrupt", "config", "command"},  # a stage it imports by name
    "__main__": {"cli"},
}
# Below these, everything takes plain values: neither Hydra nor OmegaConf gets there.
MAY_USE_CONFIG_LIBRARIES = BUILD | {"command", "records", "running", "benchmarking", "stages"}


def module_name(path: Path, root: Path) -> str:
    """Dotted name of a file below root: `vidtrain.data.video`."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, root: Path) -> set[str]:
    """Dotted names that a file imports anywhere, in functions too; `from a import b` is `a.b`."""
    name = module_name(path, root)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1]
            start = ".".join(base) if node.level else ""
            target = ".".join(part for part in (start, node.module) if part)
            found |= {f"{target}.{alias.name}" for alias in node.names}
    return found


def import_graph(root: Path) -> dict[str, set[str]]:
    """Module of the package -> every dotted name it imports; ours are cut to module names."""
    paths = sorted((root / "vidtrain").rglob("*.py"))
    modules = {module_name(path, root) for path in paths}

    def to_module(name: str) -> str:
        if name.split(".")[0] != "vidtrain":
            return name
        while name not in modules:  # a name inside a module, or one that does not exist
            name = name.rpartition(".")[0] or "vidtrain"
        return name

    return {
        module_name(path, root): {to_module(name) for name in imports_of(path, root)}
        for path in paths
    }


def part_of(module: str) -> str:
    """The line of the table that a module of ours belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


def violations(graph: dict[str, set[str]]) -> list[str]:
    """One sentence for every import that the table does not allow."""
    found = []
    for module, names in graph.items():
        part = part_of(module)
        if part not in ALLOWED:
            found.append(f"{module}: no line in the table of tests/test_layers.py")
            continue
        allowed = ALLOWED[part] | {part, "__init__"}
        for name in sorted(names):
            library = name.split(".")[0]
            if library == "vidtrain" and part_of(name) not in allowed:
                found.append(f"{module} imports {name}")
            if library in {"hydra", "omegaconf"} and part not in MAY_USE_CONFIG_LIBRARIES:
                found.append(f"{module} imports {name}: below build there are plain values only")
            if name.startswith("hydra.utils"):
                found.append(f"{module} imports {name}: build.component alone calls a _target_")
    return found


def test_layers() -> None:
    found = violations(import_graph(ROOT))
    assert not found, "\n".join(found)


def test_no_import_cycles() -> None:
    ours = {
        module: {name for name in names if name.split(".")[0] == "vidtrain" and name != module}
        for module, names in import_graph(ROOT).items()
    }
    TopologicalSorter(ours).prepare()  # raises CycleError, which names the cycle
    rooms: dict[str, set[str]] = {}
    for module, names in ours.items():
        others = {part_of(name) for name in names} - {part_of(module)}
        rooms.setdefault(part_of(module), set()).update(others)
    TopologicalSorter(rooms).prepare()


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("data/a.py", "from vidtrain.models import slowfast", "vidtrain.data.a imports"),
        ("data/a.py", "from ..config import DataConfig", "vidtrain.data.a imports vidtrain.config"),
        ("models/a.py", "def f():\n    import omegaconf", "plain values only"),
        ("tasks/a.py", "import vidtrain.build", "vidtrain.tasks.a imports vidtrain.build"),
        ("stages/a.py", "from hydra.utils import instantiate", "build.component alone"),
        ("misc.py", "", "no line in the table"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, file: str, line: str, expected: str) -> None:
    package = tmp_path / "vidtrain"
    for name in ("__init__", "build", "config", "models/__init__", "models/slowfast"):
        (package / name).with_suffix(".py").parent.mkdir(parents=True, exist_ok=True)
        (package / name).with_suffix(".py").touch()
    (package / file).parent.mkdir(exist_ok=True)
    (package / file).write_text(line)
    (found,) = violations(import_graph(tmp_path))
    assert expected in found


@pytest.mark.parametrize("module", ["vidtrain.cli", "vidtrain.config", "vidtrain.errors"])
def test_import_without_torch(module: str) -> None:
    heavy = "{'torch', 'torchvision', 'timm', 'pytorchvideo', 'av', 'onnx', 'matplotlib'}"
    code = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "", f"importing {module} imports {done.stdout.strip()}"
