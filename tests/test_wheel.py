"""The wheel holds all that the program needs and works from an empty folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*arguments: str, cwd: Path, python_path: Path | None = None) -> str:
    """Runs python with these arguments and returns what it printed; fails if python does."""
    env = {**os.environ, "COLUMNS": "100"}
    env.pop("PYTHONPATH", None)
    if python_path:
        env["PYTHONPATH"] = str(python_path)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), cwd=ROOT)
    (path,) = folder.glob("vidtrain-*.whl")
    return path


def test_wheel_holds_code_and_conf_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    code = {
        str(path.relative_to(ROOT))
        for folder in ("vidtrain", "hydra_plugins")
        for path in (ROOT / folder).rglob("*.py")
    }
    conf = {f"vidtrain/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert conf, "the checkout has no conf/*.yaml"
    assert {name for name in names if name.endswith((".py", ".yaml"))} == code | conf
    assert all(name.startswith(("vidtrain/", "hydra_plugins/")) for name in names)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    install = ("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(target))
    run(*install, str(wheel), cwd=target)
    return target


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], ["models"], ["train", "--help"], ["train", "--cfg", "job"]],
    ids=lambda arguments: " ".join(arguments) or "alone",
)
def test_installed_wheel_says_what_the_checkout_says(
    installed: Path, tmp_path: Path, arguments: list[str]
) -> None:
    where = "import vidtrain; print(vidtrain.__file__)"
    imported = Path(run("-c", where, cwd=tmp_path, python_path=installed).strip())
    assert imported.is_relative_to(installed)
    from_wheel = run("-m", "vidtrain", *arguments, cwd=tmp_path, python_path=installed)
    assert from_wheel.strip()
    assert from_wheel == run("-m", "vidtrain", *arguments, cwd=tmp_path, python_path=ROOT)
    assert list(tmp_path.iterdir()) == [], "a command that only shows something wrote files"
