"""Every reader refuses in one line what is not right: what fuzzing has found, and changes that are always the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.fuzz.readers import READERS, run

FOUND = Path(__file__).parent / "found"
ROUNDS = {"records": 20, "summaries": 40, "manifests": 60, "media": 40}


@pytest.mark.parametrize("path", sorted(FOUND.rglob("*/*")), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once_is_refused_properly(path: Path, tmp_path: Path) -> None:
    run(path.parent.name, path.read_bytes(), folder=tmp_path / "in")


@pytest.mark.parametrize("name", sorted(READERS))
def test_drawn_changes_of_good_inputs_are_read_or_refused(name: str, tmp_path: Path) -> None:
    reader = READERS[name]
    seeds = reader.seeds(tmp_path / "seeds")
    draw = random.Random(0)
    for seed in seeds:
        run(name, seed, folder=tmp_path / "in")
    for number in range(ROUNDS.get(name, 150)):
        data = reader.mutate(draw.choice(seeds), number)
        run(name, data, folder=tmp_path / "in")
