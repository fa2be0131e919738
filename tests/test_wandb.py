"""A short stage trained with `logger=offline`, and its W&B files read back record by record."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto import wandb_internal_pb2

from arcvideo.composing.config import plain_dict
from arcvideo.lineage.manifest import read_manifest
from arcvideo.lineage.parents import resolve_parent
from arcvideo.stage import run_stage
from arcvideo.tracking.metrics import read_metrics
from tests.compose import settings
from tests.conftest import SmallWorld

pytestmark = pytest.mark.slow


BLOCK, FILE_HEAD = 32768, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def messages(file: Path) -> Iterator[bytes]:
    """What a .wandb file holds: LevelDB's log format (crc, length, kind before each piece) behind a head of its own."""
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    place, whole = FILE_HEAD, b""
    while place + 7 <= len(data):
        left = BLOCK - place % BLOCK
        if left < 7:  # too little for a head: zeros up to the next block
            place += left
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        assert kind in (FULL, FIRST, MIDDLE, LAST)
        if kind in (FULL, LAST):
            yield whole
            whole = b""


def records(folder: Path) -> Iterator[Any]:
    """Every record of every offline run of a stage, in the order the runs were begun."""
    for file in sorted(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime):
        for message in messages(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(message)
            yield record


@pytest.fixture(scope="module")
def stage(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished stage of the pipeline `shorts`."""
    run_dir = tmp_path_factory.mktemp("runs") / "shorts"
    words = ["stage=sft", f"run_dir={run_dir}", "logger=offline", "logger.tags=[small]", *small_world.overrides]
    config = settings(*words)
    parent = resolve_parent(
        run_dir=run_dir,
        stage="sft",
        parent=config.stage.parent,
        base=Path(config.base),
        override=Path(str(config.parent)),
    )
    run_stage(config, parent=parent)
    return config.stage_dir


def test_group_is_the_pipeline_and_job_type_the_stage(stage: Path) -> None:
    runs = [record.run for record in records(stage) if record.HasField("run")]
    assert runs
    assert {run.run_id for run in runs} == {runs[0].run_id}  # lineage is written into the same run
    assert (runs[0].run_group, runs[0].job_type, runs[0].project) == ("shorts", "sft", "arcvideo")
    assert list(runs[0].tags) == ["small"]


def test_config_is_the_resolved_settings(stage: Path) -> None:
    run = next(record.run for record in records(stage) if record.HasField("run"))
    told = {item.key: json.loads(item.value_json) for item in run.config.update}
    wanted = json.loads(json.dumps(read_manifest(stage).config))
    assert {key: told[key] for key in wanted} == wanted


def test_every_step_is_there_with_the_numbers_of_the_file(stage: Path) -> None:
    logged = {}
    for record in records(stage):
        if record.HasField("history"):
            row = {item.nested_key[0] if item.nested_key else item.key: item.value_json for item in record.history.item}
            logged[record.history.step.num] = row
    written = read_metrics(stage / "metrics.jsonl")
    assert list(logged) == [row["step"] for row in written]
    for row in written:
        told = {key: json.loads(value) for key, value in logged[row["step"]].items() if not key.startswith("_")}
        assert told == {key: value for key, value in row.items() if key != "step" and isinstance(value, int | float)}


def test_artifacts_tell_parent_data_and_export(stage: Path) -> None:
    found = {}
    for record in records(stage):
        if record.HasField("artifact"):
            one = record.artifact
            found[one.name] = (one.type, json.loads(one.metadata)["identity"], one.use_after_commit, list(one.aliases))
        elif record.request.HasField("log_artifact"):
            one = record.request.log_artifact.artifact
            found[one.name] = (one.type, json.loads(one.metadata)["identity"], one.use_after_commit, list(one.aliases))
    manifest = read_manifest(stage)
    assert found["pretrain"][:3] == ("model", manifest.parent, True)
    assert found["data"][:3] == ("dataset", manifest.data, True)
    # Using a version does not make it the latest one.
    assert [found[name][3] for name in ("pretrain", "data")] == [[manifest.parent[:12]], [manifest.data[:12]]]
    assert found["sft"][:3] == ("model", manifest.identity, False)
    assert sorted(found["sft"][3]) == sorted(["latest", manifest.identity[:12]])  # W&B keeps them in no order


def test_by_default_nothing_is_written_for_wandb() -> None:
    assert plain_dict(settings("stage=sft"))["logger"]["wandb"] == "disabled"
