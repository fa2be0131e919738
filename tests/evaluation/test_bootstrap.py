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
    after = before + np.tile([0.01, 0.03], 100)
    mean, low, high = paired_difference(list(after), list(before))
    assert mean == pytest.approx(0.02)
    assert low > 0
    assert high < 0.03
    assert interval(list(after)).low < interval(list(before)).high


def test_paired_difference_refuses_different_items() -> None:
    with pytest.raises(ValueError, match="same items"):
        paired_difference([1.0], [1.0, 0.0])


def test_no_items_is_an_error() -> None:
    with pytest.raises(ValueError, match="no items"):
        interval([])


def shared_clips(random: np.random.Generator, *, clips: int, items: int) -> tuple[list[float], list[str]]:
    """Items that are right or wrong with their clip: as many facts as clips, however many items."""
    right = random.random(clips) < 0.5
    return [float(right[clip]) for clip in range(clips) for _ in range(items)], [
        f"clip-{clip}" for clip in range(clips) for _ in range(items)
    ]


def test_items_that_share_a_clip_are_one_piece_of_evidence() -> None:
    """Ten items a clip say no more than one when they agree: the interval is that of the clips alone, to the bit."""
    scores, clips = shared_clips(np.random.default_rng(2), clips=40, items=10)
    by_clip = interval(scores, clips=clips, seed=5)
    alone = interval(scores[::10], seed=5)
    assert by_clip == pytest.approx(alone)
    by_item = interval(scores, seed=5)
    assert by_item.mean == by_clip.mean
    # The standard error of a mean of 400 is sqrt(10) times smaller than that of 40.
    assert (by_clip.high - by_clip.low) / (by_item.high - by_item.low) == pytest.approx(10**0.5, rel=0.15)


def test_clips_of_one_item_each_change_nothing() -> None:
    random = np.random.default_rng(3)
    scores, weights = list(random.random(50)), list(random.random(50) + 0.5)
    plain = interval(scores, weights=weights, seed=1)
    assert plain == interval(scores, weights=weights, clips=[f"c{n}" for n in range(50)], seed=1)


def test_intervals_over_clips_cover_the_truth_where_those_over_items_do_not() -> None:
    random = np.random.default_rng(4)
    covered = {"clips": 0, "items": 0}
    for seed in range(100):
        scores, clips = shared_clips(random, clips=60, items=8)
        for name, given in (("clips", clips), ("items", None)):
            found = interval(scores, clips=given, seed=seed, resamples=300)
            covered[name] += found.low <= 0.5 <= found.high
    assert covered["clips"] >= 88
    assert covered["items"] <= 75  # z = 1.96 / sqrt(8) covers half


def test_a_paired_difference_draws_clips_too() -> None:
    """Two items of a clip that move in opposite directions hardly differ in any resample of clips."""
    before, clips = [0.5] * 80, [f"c{n // 2}" for n in range(80)]
    after = [0.5 + (0.5 if n % 2 else -0.5) for n in range(80)]
    after[0] += 0.01  # clips that agree to the last bit have an interval of another kind
    by_clip = paired_difference(after, before, clips=clips)
    assert -1e-9 < by_clip.low <= by_clip.mean <= by_clip.high < 0.001
    by_item = paired_difference(after, before)
    assert by_item.low < -0.05 < 0.05 < by_item.high


def test_a_paired_difference_of_rates_is_the_difference_of_the_rates() -> None:
    edits, other, words = [4.0, 2.0], [2.0, 2.0], [20.0, 10.0]
    difference = paired_difference(edits, other, weights=words)
    assert difference.mean == pytest.approx(6 / 30 - 4 / 30)


def test_a_score_without_clip_or_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="as many"):
        interval([1.0, 2.0], clips=["a"])
    with pytest.raises(ValueError, match="as many"):
        interval([1.0, 2.0], weights=[1.0])


@pytest.mark.parametrize(
    ("scores", "low", "high"),
    [
        ([1.0] * 10, 0.6915, 1.0),  # Clopper and Pearson: 0.025 ** (1 / 10)
        ([0.0] * 10, 0.0, 0.3085),
        ([0.0] * 300, 0.0, 0.0122),
        ([1.0], 0.025, 1.0),
        ([0.4] * 10, 0.4 * 0.6915, 0.4 + 0.6 * 0.3085),
        ([1.7] * 10, 1.7, 1.7),  # no share: nobody knows where it ends
    ],
)
def test_clips_that_all_agree_are_not_certain(scores: list[float], low: float, high: float) -> None:
    found = interval(scores)
    assert found.mean == pytest.approx(scores[0])
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)


def test_it_is_clips_that_agree_not_items() -> None:
    """Ten items of one clip are one clip, whatever they say; so are clips of several sizes and weights."""
    one = interval([1.0, 0.0] * 5, clips=["a"] * 10)
    assert one == pytest.approx((0.5, 0.0125, 0.9875))
    sizes = interval([1.0, 0.0, 1.0, 1.0, 0.0, 0.0], clips=["a", "a", "b", "b", "b", "b"])
    assert sizes == pytest.approx(interval([0.5, 0.5]))
    assert interval([0.0, 0.0], weights=[3.0, 9.0]) == pytest.approx(interval([0.0, 0.0]))


def test_the_interval_of_rare_failures_covers_them() -> None:
    """Of twenty clips none fails in half of the draws when 3 % do; a bootstrap calls those certain and covers half."""
    random = np.random.default_rng(5)
    covered = [
        found.low <= 0.97 <= found.high for found in (interval(list(random.random(20) < 0.97)) for _ in range(200))
    ]
    assert sum(covered) >= 190


def test_stages_that_answer_alike_may_differ_on_other_clips() -> None:
    before = list(np.random.default_rng(6).random(10))
    assert paired_difference(before, before) == pytest.approx((0.0, -0.3085, 0.3085), abs=1e-4)
    assert paired_difference([1.0] * 10, [0.0] * 10) == pytest.approx((1.0, 1 - 2 * 0.3085, 1.0), abs=1e-4)
