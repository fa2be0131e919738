"""What is new, gone or missing on one side counts as a difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcvideo.lineage.identity import config_diff
from arcvideo.lineage.manifest import finished, write_manifest
from tests.lineage.test_lineage import manifest


def test_a_setting_that_only_one_side_has_is_a_difference() -> None:
    assert config_diff({"a": 1}, {"a": 1, "b": {"c": 2}}) == {"b.c": [None, 2]}
    assert config_diff({"a": 1, "b": {"c": 2}}, {"a": 1}) == {"b.c": [2, None]}


@pytest.mark.parametrize("side", ["frozen_before", "frozen_after"])
def test_a_frozen_module_without_its_second_hash_is_not_proven(tmp_path: Path, side: str) -> None:
    with pytest.raises(ValueError, match="changed whisper, which its settings freeze"):
        write_manifest(manifest(**{side: {"vit": "1", "whisper": "1"}}), folder=tmp_path)
    assert finished(tmp_path) is None


def test_a_metric_is_found_by_its_short_name_and_a_training_metric_by_its_whole_one() -> None:
    made = manifest(metrics={"train/loss": 1.5, "eval/mcq_accuracy": 0.5})
    assert [made.value(name) for name in ("train/loss", "mcq_accuracy", "loss")] == [1.5, 0.5, None]
