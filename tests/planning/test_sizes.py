from __future__ import annotations

import numpy as np

from arcvideo.flops import Segment
from arcvideo.planning.table import attention_pairs, audio_chunks, prefix_tokens, ragged


def test_pairs_of_a_family_are_those_of_its_segments() -> None:
    """What a plan balances is what FLOPs are counted of."""
    for prefix, branches in ((0, [7]), (31, [5, 9, 1]), (12, [])):
        segments = [Segment(length=prefix), *(Segment(length=length, prefix=prefix) for length in branches)]
        pairs = attention_pairs(prefix, sum(branches), sum(length**2 for length in branches))
        assert pairs == sum(segment.pairs for segment in segments)


def test_prefixes_need_media() -> None:
    assert prefix_tokens(np.array([3, 3]), np.array([40, 0])).tolist() == [44, 0]


def test_a_chunk_that_is_begun_counts() -> None:
    assert audio_chunks(np.array([0, 1, 30, 31]), seconds=30).tolist() == [0, 1, 1, 2]


def test_ragged_ranges_follow_each_other() -> None:
    assert ragged(np.array([5, 0, 2]), np.array([2, 0, 3])).tolist() == [5, 6, 2, 3, 4]
    assert ragged(np.array([], dtype=np.int64), np.array([], dtype=np.int64)).tolist() == []
