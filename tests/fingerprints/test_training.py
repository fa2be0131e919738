"""A stage refuses to train on what it is measured on, before its first step, and trains on it when it is told to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from arcvideo.lineage.parents import resolve_parent
from arcvideo.stage import rehearse
from tests.compose import settings
from tests.conftest import SmallWorld


def train(world: SmallWorld, run_dir: Path, *words: str) -> None:
    config = settings("stage=sft", *world.overrides, f"run_dir={run_dir}", *words)
    parent = resolve_parent(
        run_dir=run_dir, stage="sft", parent=config.stage.parent, base=Path(config.base), override=world.base
    )
    rehearse(config, parent=parent, until=1)


@pytest.mark.slow
def test_a_stage_measured_on_its_own_clips_is_refused_unless_told(small_world: SmallWorld, tmp_path: Path) -> None:
    measured = f"evaluation.shards={small_world.data}/train-*.tar"
    with pytest.raises(ValueError, match=r"^data\.sources\.\w+: holds \d+ clips of evaluation\.shards, the first"):
        train(small_world, tmp_path, measured)
    assert not list(tmp_path.rglob("metrics.jsonl"))
    train(small_world, tmp_path, measured, "data.overlap=allow")
    assert list(tmp_path.rglob("metrics.jsonl"))


@pytest.mark.slow
def test_a_stage_writes_nothing_beside_shards_whose_indexes_have_a_folder(
    small_world: SmallWorld, tmp_path: Path
) -> None:
    data = tmp_path / "mounted"
    data.mkdir()
    for shard in small_world.data.glob("*.tar"):
        shutil.copy(shard, data)
    there = sorted(data.iterdir())
    train(small_world, tmp_path / "runs", f"data_dir={data}", f"data.index_dir={tmp_path}/indexes")
    assert sorted(data.iterdir()) == there
