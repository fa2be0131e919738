"""docs/design.md is true: its rooms and functions exist, its walks go somewhere."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "arcvideo"
PAGE = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
WALKS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
STEP = re.compile(r"`([\w/]+\.py):([\w.]+)`")


def defined(path: Path) -> set[str]:
    """Functions, classes and `Class.method` of a file."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
    return names


@pytest.mark.parametrize("title", WALKS)
def test_a_walk_goes_through_functions_that_exist(title: str) -> None:
    steps = STEP.findall(WALKS[title])
    assert len(steps) >= 5
    missing = [f"{file}:{name}" for file, name in steps if not (PACKAGE / file).is_file()]
    assert missing + [f"{file}:{name}" for file, name in steps if name not in defined(PACKAGE / file)] == []


def test_there_are_four_walks() -> None:
    assert len(WALKS) == 4


def test_every_room_is_told_and_none_that_is_gone() -> None:
    told = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(told) == sorted(rooms)
    files = re.findall(r"`(\w+\.py)`", PAGE.partition("\n## ")[0])
    assert [name for name in files if not (PACKAGE / name).is_file() and not (ROOT / "tests" / name).is_file()] == []


def test_every_room_says_at_its_door_what_it_is_for() -> None:
    silent = [
        path.parent.name
        for path in PACKAGE.rglob("__init__.py")
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) and path.parent != PACKAGE
    ]
    assert silent == []


def test_nothing_refers_to_documents_that_are_not_here() -> None:
    pages = [*PACKAGE.rglob("*.py"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests").rglob("*.py")]
    pattern = re.compile("(spec|design sec" + r"tion) \d")
    assert [path.name for path in pages if pattern.search(path.read_text(encoding="utf-8"))] == []
