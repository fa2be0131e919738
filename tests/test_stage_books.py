"""What a stage's manifest says about clips that could not be read, and about how it was measured."""

from __future__ import annotations

import json
import shutil
import statistics
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from arcvideo.lineage.manifest import read_manifest
from arcvideo.shards.expand import expand_shards
from arcvideo.shards.index import ensure_indexes
from arcvideo.stage import measure_stage
from tests.compose import settings
from tests.conftest import SmallWorld
from tests.test_stage import Finished, items_of, run


def sizes(folder: Path) -> list[int]:
    """Bytes of every training video."""
    found = []
    for shard in folder.glob("train-*.tar"):
        with tarfile.open(shard) as tar:
            found += [member.size for member in tar if member.name.endswith(".mp4")]
    return found


@pytest.fixture(scope="module")
def damaged(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A stage for which half of the clips are too large to read; the index, made before, knows of nothing."""
    ensure_indexes(expand_shards(f"{small_world.data}/*.tar"), progress=False)
    limit = int(statistics.median(sizes(small_world.data)))
    words = [f"data.limits.max_bytes={limit}", "data.quarantine.max_rate=1", "data.quarantine.max_count=1000"]
    words += ["runner.liveness=false", "evaluation.shards=''", f"run_dir={tmp_path_factory.mktemp('runs')}"]
    return run(settings("stage=sft", *small_world.overrides, *words))


def test_samples_seen_are_those_that_were_trained_on_and_not_those_that_were_planned(damaged: Finished) -> None:
    manifest = read_manifest(damaged.folder)
    books = {name: row["books"] for name, row in manifest.mixture.items()}
    assert manifest.seen == {name: row["seen"] for name, row in books.items()}
    assert sum(manifest.seen.values()) == items_of(damaged)
    lost = sum(row["quarantined"] for row in books.values())
    assert lost > 0
    assert sum(row["planned"] for row in books.values()) == items_of(damaged) + lost
    rows = [json.loads(line) for line in (damaged.folder / "quarantine.jsonl").read_text().splitlines()]
    assert sum(manifest.quarantined.values()) == len(rows) > 0
    assert {row["reason"] for row in rows} == {"too_large"}


def test_a_stage_is_measured_in_the_style_that_the_evaluation_asks_for(damaged: Finished, tmp_path: Path) -> None:
    shutil.copytree(damaged.folder, tmp_path / "sft")
    small = [f"run_dir={tmp_path}", f"data_dir={Path(damaged.config.data_dir)}", f"base={damaged.config.base}"]
    plain = settings("stage=sft", *small, f"parent={damaged.config.parent}", "evaluation.items=2", "threads=1",
                     "evaluation.max_new_tokens=2", "evaluation.bootstrap=20")  # fmt: skip
    for style, instructed in (("plain", False), ("think", True)):
        config = replace(plain, evaluation=replace(plain.evaluation, style=style))
        measure_stage(config, parent=damaged.parent)
        measured = json.loads((tmp_path / "sft" / "evaluation.json").read_text())
        assert ("format_valid" in measured) is instructed
        assert ("eval/format_valid" in read_manifest(tmp_path / "sft").metrics) is instructed
