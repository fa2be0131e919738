"""What was measured on other questions stays beside what is measured now."""

from __future__ import annotations

import json
from pathlib import Path

from arcvideo.lineage.measured import keep_measurement
from arcvideo.lineage.state import state_of
from tests.lineage.test_state import ASKED, changed, finish


def measure(folder: Path, value: float) -> None:
    (folder / "evaluation.json").write_text(json.dumps({"mcq_accuracy": {"value": value}}))
    (folder / "predictions.jsonl").write_text(f'{{"score": {value}}}\n')


def test_each_earlier_measurement_is_kept_with_its_settings(tmp_path: Path) -> None:
    finish(tmp_path)
    measure(tmp_path, 0.5)
    first = keep_measurement(tmp_path)
    assert first == tmp_path / "measured" / ASKED.evaluation[:8]
    measure(tmp_path, 0.75)
    second = keep_measurement(tmp_path)
    assert second is not None
    assert second != first
    values = [json.loads((place / "evaluation.json").read_text())["mcq_accuracy"]["value"] for place in (first, second)]
    assert values == [0.5, 0.75]
    assert (first / "predictions.jsonl").read_text() == '{"score": 0.5}\n'
    assert json.loads((first / "settings.json").read_text()) == {"items": 10, "samples": 4}
    # The stage itself is neither stale nor another one for it.
    assert state_of(tmp_path, asked=ASKED).word == "finished"
    assert state_of(tmp_path, asked=changed(evaluation={"items": 5, "samples": 4})).word == "unmeasured"


def test_the_same_measurement_is_kept_once_and_none_is_nothing(tmp_path: Path) -> None:
    finish(tmp_path)
    assert keep_measurement(tmp_path) is None
    measure(tmp_path, 0.5)
    assert keep_measurement(tmp_path) == keep_measurement(tmp_path)
    assert len(list((tmp_path / "measured").iterdir())) == 1
