"""What CONTRIBUTING says about the layout of the code."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pytest

from comining.config import CONFIG_FOLDER

ROOT = CONFIG_FOLDER.parent
PACKAGE = ROOT / "comining"
MODULES = sorted(PACKAGE.rglob("*.py"))

# From top to bottom; what stands in one row may not import another of its row.
LAYERS = (
    ("training",),
    ("methods", "reports", "completion"),
    ("runs",),
    ("evaluation",),
    ("data",),
    ("detectors", "tracking"),
    ("structures", "ops", "errors", "config", "option_types", "program_options"),
)
# What each command may import beside errors.
COMMANDS = {
    "report": "reports",
    "select": "reports",
    "study": "reports",
    "dashboard": "reports",
    "complete": "completion",
}


def folder_of(parts: tuple[str, ...]) -> str:
    """The folder below the package, or the module at its top."""
    return parts[1]


def imported(file: Path) -> set[str]:
    """Folders and top modules of the package that a module imports, wherever in its text."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = tuple(name.split("."))
            if parts[0] == "comining" and len(parts) > 1:
                found.add(folder_of(parts))
    return found


def layer(folder: str) -> int:
    return next(number for number, row in enumerate(LAYERS) if folder in row)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_down(file: Path) -> None:
    mine = folder_of(file.relative_to(ROOT).with_suffix("").parts)
    if mine == "__init__" or mine in COMMANDS:
        assert imported(file) <= {COMMANDS.get(mine, "errors"), "errors"}
        return
    bottom = len(LAYERS) - 1
    for other in imported(file) - {mine}:
        allowed = layer(other) > layer(mine) or layer(mine) == layer(other) == bottom
        assert allowed, f"{file} imports comining.{other}"


def test_there_are_no_circles_at_the_bottom() -> None:
    order = ["structures", "ops", "errors", "option_types", "config", "program_options"]
    for position, name in enumerate(order):
        assert imported(PACKAGE / f"{name}.py") <= set(order[:position]), name


def test_no_two_modules_share_a_name() -> None:
    names = Counter(file.stem for file in MODULES if file.stem != "__init__")
    assert [name for name, count in names.items() if count > 1] == []
    assert not names.keys() & {"utils", "helpers", "misc", "common"}


def test_every_folder_is_in_contributing() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for entry in PACKAGE.iterdir():
        if entry.is_dir() and entry.name != "__pycache__":
            assert f"  {entry.name}/ " in text, entry
        elif entry.suffix == ".py" and entry.stem != "__init__":
            assert entry.name in text, entry
