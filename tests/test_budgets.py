"""Files, functions and the training loop stay small enough to be read in one go.

A failure means: split or delete. It never means: raise the number.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path
    for folder in ("vidtrain", "hydra_plugins", "tests", "scripts")
    for path in (ROOT / folder).rglob("*.py")
)
MAX_FILE_LINES = 300
MAX_FUNCTION_LINES = 60
MAX_LOOP_LINES = 60


def num_lines(node: ast.stmt) -> int:
    """Lines of a statement, its docstring and body included, its decorators not."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Every function and method of a module, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_and_its_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    lines = len(text.splitlines())
    assert lines <= MAX_FILE_LINES, f"{path} has {lines} lines, {MAX_FILE_LINES} are allowed"
    too_long = {
        f"{path}:{node.lineno} {node.name}": num_lines(node)
        for node in functions(ast.parse(text))
        if num_lines(node) > MAX_FUNCTION_LINES
    }
    assert not too_long, f"functions of more than {MAX_FUNCTION_LINES} lines: {too_long}"


def test_training_loop_is_short_and_in_sight() -> None:
    path = ROOT / "vidtrain" / "stages" / "train.py"
    loops = [
        num_lines(node)
        for function in functions(ast.parse(path.read_text(encoding="utf-8")))
        for node in ast.walk(function)
        if isinstance(node, ast.For | ast.While)
        and any(getattr(call, "id", "") == "optimizer_step" for call in ast.walk(node))
    ]
    assert loops, f"{path} holds no loop of optimizer steps: it belongs there"
    assert max(loops) <= MAX_LOOP_LINES
