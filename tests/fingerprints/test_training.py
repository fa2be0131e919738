"""A stage refuses to train on what it is measured on, before its first step, and trains on it when it is told to."""

from __future__ import annotations

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
