"""Videos that people made, in ARC's own annotation format: imported, and trained on by the tiny model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from arcvideo.data.shards import main
from arcvideo.lineage.manifest import read_manifest
from arcvideo.lineage.parents import resolve_parent
from arcvideo.stage import run_stage
from tests.compose import settings
from tests.conftest import SmallWorld

MEDIA = Path(os.environ.get("ARCVIDEO_TEST_MEDIA", Path(__file__).resolve().parents[2] / "shared")) / "data" / "shorts"
STEPS = 8


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    annotations = MEDIA / "annotations.jsonl"
    if not annotations.is_file():
        pytest.skip(f"{annotations} is not there; set ARCVIDEO_TEST_MEDIA to a folder that holds data/shorts")
    out = tmp_path_factory.mktemp("shorts")
    words = [f"--annotations={annotations}", f"--videos={MEDIA}", f"--audio={MEDIA}", f"--out={out}"]
    assert main(["import", "--format=arc", *words]) == 0
    return out


def test_all_rows_are_imported(shards: Path) -> None:
    assert [path.name for path in shards.glob("*.tar")] != []
    assert (shards / "shard.quarantine.jsonl").read_text() == ""


def test_the_tiny_model_learns_from_real_shorts(shards: Path, small_world: SmallWorld, tmp_path: Path) -> None:
    config = settings(
        "stage=sft",
        f"run_dir={tmp_path}",
        f"base={small_world.base}",
        f"parent={small_world.base}",
        *(f"~data.sources.{name}" for name in settings("stage=sft").data.sources),
        f"data.sources.arc.shards={shards}/*.tar",
        "data.wording=arc",
        "data.token_budget=4096",
        f"runner.steps={STEPS}",
        "schedule.warmup_steps=1",
        "evaluation.shards=''",
        "threads=1",
    )
    parent = resolve_parent(run_dir=tmp_path, stage="sft", parent="pretrain", override=small_world.base)
    run_stage(config, parent=parent)
    logged = [json.loads(line) for line in (config.stage_dir / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == STEPS
    losses = [row["train/loss"] for row in logged]
    assert losses[-1] < 0.8 * losses[0], losses
    manifest = read_manifest(config.stage_dir)
    assert manifest.quarantined == {"arc": 0}
    assert manifest.skipped == []
    moved = manifest.liveness["moved"]
    assert moved["video/zeroed"] > 0
    assert moved["audio/zeroed"] > 0
