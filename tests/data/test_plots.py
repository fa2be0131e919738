from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from arcvideo.data.plots import counts, draw, histogram
from arcvideo.data.shards import main
from tests.data import build


def test_histogram_counts_everything_and_folds_the_tail() -> None:
    bars = histogram(np.concatenate([np.arange(1000.0), [1e9]]), title="x", unit="s")
    assert sum(bars.heights) == 1001
    assert bars.labels == ["0", "990 s and more"]
    assert sum(histogram(np.full(5, 3.0), title="x", unit="s").heights) == 5
    assert histogram(np.array([]), title="x", unit="s").heights == []


def test_the_axis_ends_at_a_value_that_occurs() -> None:
    tokens = np.array([*range(100, 120), 500])  # the percentile between the last two would be 423.8 tokens
    assert histogram(tokens, title="x", unit="tokens").labels == ["100", "119 tokens and more"]


def test_names_below_bars_share_a_line_where_they_fit(tmp_path: Path) -> None:
    def lowest_ink(names: list[str]) -> int:
        draw([counts(dict.fromkeys(names, 1), title="x")], path=tmp_path / "a.png")
        return int(np.flatnonzero((np.asarray(Image.open(tmp_path / "a.png").convert("L")) < 200).any(axis=1)).max())

    assert lowest_ink([f"a-name-{number:02d}" for number in range(12)]) > lowest_ink(["a-name-00", "a-name-01"]) + 10


def test_taller_bars_have_more_ink(tmp_path: Path) -> None:
    draw([counts({"many": 90, "few": 30}, title="x")], path=tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png"))
    ink = (pixels == (70, 110, 180)).all(axis=2)
    left, right = ink[:, :345].sum(), ink[:, 345:].sum()
    assert left / right == pytest.approx(3, rel=0.05)


def test_stats_draws_a_picture(tmp_path: Path) -> None:
    pattern = build.shards(tmp_path, count=4)
    picture = tmp_path / "stats.png"
    assert main(["stats", pattern, "--image-size", "64", "--token-budget", "512", "--plot", str(picture)]) == 0
    assert Image.open(picture).size == (1280, 720)
