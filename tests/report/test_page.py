from __future__ import annotations

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from arcvideo.report.curves import curve, thinned
from arcvideo.report.page import write_page

NASTY = "<script>alert('x')</script><answer>B</answer> & \"quotes\""


def make_run(folder: Path) -> Path:
    metric = {"value": 0.61, "low": 0.55, "high": 0.67, "chance": 0.25, "n": 200}
    summary = {"stages": {"sft": {"mcq_accuracy": metric}, "grpo": {"mcq_accuracy": metric}}, "seconds": {"sft": 60.0}}
    (folder / "summary.json").write_text(json.dumps({**summary, "passed": True}))
    for stage in ("grpo", "sft"):
        (folder / stage).mkdir()
        rows = [{"step": step, "train/loss": 1 / (step + 1), "train/reward": step / 9} for step in range(10)]
        rows[3]["train/loss"] = "nan"  # as MetricsFile writes what JSON cannot hold
        (folder / stage / "metrics.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 10, "tr'
        )
        prediction = {"metric": "mcq_accuracy", "key": "a/0", "question": NASTY, "truth": "B", "prediction": NASTY}
        (folder / stage / "predictions.jsonl").write_text(
            json.dumps({**prediction, "score": 1.0, "weight": 1.0}) + "\n"
        )
    rollout = {"step": 0, "question": NASTY, "truth": {"span": [0, 1]}, "completion": NASTY, "rewards": {"format": 1.0}}
    (folder / "grpo" / "rollouts.jsonl").write_text(json.dumps({**rollout, "advantage": 0.5}) + "\n")
    return folder


class Checker(HTMLParser):
    """Collects tags and attributes, and that they close in order."""

    void = frozenset({"meta", "br", "line"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_complete_self_contained_and_escaped(tmp_path: Path) -> None:
    page = write_page(make_run(tmp_path)).read_text()
    checker = Checker()
    checker.feed(page)
    assert not checker.open
    assert not checker.links
    assert not checker.tags & {"script", "link", "img", "answer"}
    assert page.count("<svg") == 4
    assert "All targets met" in page
    assert "0.610" in page
    assert "chance 0.250, n 200" in page
    assert page.index("<h2>sft</h2>") < page.index("<h2>grpo</h2>")  # the order of the summary
    assert "nan" not in page


def test_a_pipeline_that_still_runs_has_a_page(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "summary.json").unlink()
    page = write_page(tmp_path).read_text()
    assert "Not finished" in page
    assert "<svg" in page


def test_an_empty_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="train a stage first"):
        write_page(tmp_path)
    made = subprocess.run(
        [sys.executable, "-m", "arcvideo.report", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 1
    assert made.stderr.startswith("error:")
    assert "Traceback" not in made.stderr


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [2.0, 2.0, 2.0], [-1.0, 1e9], [1e-9, 2e-9]])
def test_any_curve_can_be_drawn(values: list[float]) -> None:
    drawn = curve(list(enumerate(values)), title="x")
    assert drawn.startswith("<svg")
    assert "nan" not in drawn


def test_a_curve_without_points_is_nothing() -> None:
    assert curve([(0, float("nan"))], title="x") == ""


def test_long_curves_are_thinned_by_means() -> None:
    kept = thinned([(step, float(step)) for step in range(1000)], count=100)
    assert len(kept) == 100
    assert kept[0] == (4.5, 4.5)
