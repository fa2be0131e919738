from __future__ import annotations

import numpy as np
import pytest

from arcvideo.evaluation.bootstrap import interval, paired_difference


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        found = interval(list(random.random(100) < 0.3), seed=seed, resamples=300)
        covered += found.low <= 0.3 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_interval_is_reproducible_and_ordered() -> None:
    values = [0.0, 1.0, 1.0, 0.5]
    first = interval(values, seed=3)
    assert first == interval(values, seed=3)
    assert first.low <= first.mean <= first.high


def test_weighted_interval_is_a_ratio_of_sums() -> None:
    assert interval([1.0, 3.0], weights=[2.0, 6.0]).mean == 0.5


def test_paired_difference_sees_what_unpaired_intervals_hide() -> None:
    random = np.random.default_rng(1)
    before = random.random(200)
    mean, low, high = paired_difference(list(before + 0.02), list(before))
    assert mean == pytest.approx(0.02)
    assert low > 0
    assert high < 0.03
    assert interval(list(before + 0.02)).low < interval(list(before)).high
    assert not paired_difference(list(before), list(before)).above_zero


def test_paired_difference_refuses_different_items() -> None:
    with pytest.raises(ValueError, match="same items"):
        paired_difference([1.0], [1.0, 0.0])


def test_no_items_is_an_error() -> None:
    with pytest.raises(ValueError, match="no items"):
        interval([])
