from __future__ import annotations

import pytest

from arcvideo.report.curves import curve, scatter, thinned


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [2.0, 2.0, 2.0], [-1.0, 1e9], [1e-9, 2e-9]])
def test_any_curve_can_be_drawn(values: list[float]) -> None:
    drawn = curve(list(enumerate(values)), title="x")
    assert drawn.startswith("<svg")
    assert "nan" not in drawn


def test_a_curve_without_points_is_nothing() -> None:
    assert curve([(0, float("nan"))], title="x") == ""


def test_long_curves_are_thinned_by_means_and_show_their_range() -> None:
    points = [(step, float(step)) for step in range(1000)]
    kept = thinned(points, count=100)
    assert len(kept) == 100
    assert kept[0] == (4.5, 4.5)
    assert 'class="band"' in curve(points, title="x")
    assert 'class="band"' not in curve(points[:50], title="x")


def test_names_of_points_that_would_overlap_are_left_out() -> None:
    names = [f"long-name-{number}" for number in range(30)]
    drawn = scatter([(float(number), 1.0) for number in range(30)], title="x", labels=names)
    assert drawn.count("long-name-") < 10
    assert drawn.count("<circle") == 30
