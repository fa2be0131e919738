"""Names of things in other packages: what source files show before anything of theirs runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcvideo import named


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose modules must not be run."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise AssertionError('was run')\n")
    (tmp_path / name / "rewards.py").write_text(
        "raise AssertionError('was run')\nfrom math import sin as sine\ndef colour():\n    inside = 1\n"
        "if True:\n    class Judge: ...\nSHAPE: int = 1\n"
    )
    (tmp_path / name / "all.py").write_text("from math import *\n")
    (tmp_path / name / "broken.py").write_text("def (\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize("attribute", ["rewards:colour", "rewards:sine", "rewards:Judge", "rewards:SHAPE", "all:sin"])
def test_what_is_there_is_found_without_running_it(package: str, attribute: str) -> None:
    assert named.problem(f"{package}.{attribute}", kind="rewards", key="grpo.rewards") == ""


@pytest.mark.parametrize(
    ("attribute", "told"),
    [
        ("rewards:color", "did you mean 'colour'"),
        ("rewards:inside", "has no 'inside'"),
        ("nothing:f", "no module named"),
        ("broken:f", "cannot be imported"),
    ],
)
def test_what_is_not_there_is_told_with_the_key(package: str, attribute: str, told: str) -> None:
    said = named.problem(f"{package}.{attribute}", kind="rewards", key="grpo.rewards")
    assert said.startswith("grpo.rewards: ")
    assert told in said
    assert len(said.splitlines()) == 1


def test_a_bare_name_that_no_package_brings_is_told() -> None:
    assert "is no package.module:name" in named.problem("nobodys", kind="samplers", key="grpo.sampler")
