from __future__ import annotations

import numpy as np
import pytest

from arcvideo.planning.random_words import shuffled, uniforms, uniforms_at, words, words_at


@pytest.mark.parametrize("count", [1, 7, 1000, 1_000_003])
def test_words_at_places_are_those_of_the_stream(count: int) -> None:
    places = (words(60, "where") % np.uint64(count)).astype(np.int64)
    assert (words_at(places, count, "key", 3) == words(count, "key", 3)[places]).all()
    assert (uniforms_at(places, count, "key", 4) == uniforms(count, "key", 4)[places]).all()


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 9, 100, 4097, 65_537])
def test_shuffled_is_an_order_of_which_any_part_is_found_alone(count: int) -> None:
    everything = shuffled(np.arange(count), count, "key", 1)
    assert sorted(everything.tolist()) == list(range(count))
    part = np.arange(count // 3, count // 2 + 1)
    assert (shuffled(part, count, "key", 1) == everything[part]).all()
    if count > 50:
        for other in (shuffled(np.arange(count), count, "key", 2), np.arange(count)):
            assert (everything == other).mean() < 0.1


def test_orders_of_one_key_differ_by_their_number() -> None:
    sizes, places = np.repeat([40, 41], [40, 41]), np.concatenate([np.arange(40), np.arange(41)])
    mixed = shuffled(places, sizes, "key", tweak=np.repeat([1, 2], [40, 41]))
    assert (mixed[:40] == shuffled(np.arange(40), 40, "key", tweak=1)).all()
    assert (mixed[40:] == shuffled(np.arange(41), 41, "key", tweak=2)).all()
    assert sorted(mixed[40:].tolist()) == list(range(41))
    assert (mixed[:40] != mixed[40:80]).any()


def test_where_a_clip_comes_is_even() -> None:
    """Chi square of the place of one number over 64 bins in 6,400 orders: 63 expected, deviation 11."""
    places = np.array([shuffled(np.array([17]), 64, "key", number)[0] for number in range(6400)])
    counts = np.bincount(places, minlength=64)
    assert ((counts - 100) ** 2 / 100).sum() < 63 + 6 * 11.3
