"""The page on performance has the figures of the recorded runs, and says what nobody has measured."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.page import page
from benchmarks.table import ratio_spread, ratio_text


def result(folder: Path, name: str, *, ratio: float, passed: bool) -> None:
    row = {"metric": f"{name} ms", "ours": 1.5, "baseline": 3.0, "ratio": ratio, "target": 2.0, "equal": True}
    content = {
        "machine": {"cpu": "a CPU", "cores": 2, "python": "3.11"},
        "versions": {"torch": "2"},
        "notes": ["how"],
        "rows": [row | {"bound": None, "passed": passed}],
    }
    (folder / f"{name}.json").write_text(json.dumps(content))


def test_recorded_figures_are_shown_and_a_missed_target_is_said(tmp_path: Path) -> None:
    result(tmp_path, "loop", ratio=2.5, passed=True)
    result(tmp_path, "pack", ratio=1.25, passed=False)
    text = page(tmp_path)
    assert "| loop ms | 1.5 | 3 | 2.5 | - | 2 | yes |" in text
    assert "| pack ms | 1.5 | 3 | 1.25 (missed) | - | 2 | yes |" in text
    assert "make bench-loop" in text


def test_what_needs_a_gpu_is_called_unmeasured_until_it_is(tmp_path: Path) -> None:
    assert "Not measured" in page(tmp_path)
    result(tmp_path, "slice", ratio=3.0, passed=True)
    assert "Not measured" not in page(tmp_path)


def test_a_ratio_stands_with_its_spread_and_one_within_the_noise_is_called_so() -> None:
    assert ratio_spread([1.0, 2.0, 1.0], [4.0, 6.0, 5.0]) == (3.0, 5.0)
    assert ratio_text(4.0, (3.0, 5.0)) == "4 (3 to 5)"
    assert ratio_text(1500.0, (0.9, 3000.0)) == "below noise (0.9 to 3000)"
    assert ratio_text(2.5, None) == "2.5"
