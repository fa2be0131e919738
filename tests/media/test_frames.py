from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcvideo.media.frames import plan_frames, stamp_text, time_spans


def test_middle_frames_and_stamps_equal_the_reference(goldens):
    for case in goldens["frame_sampling"]:
        plan = plan_frames(frame_count=case["vlen"], fps=case["fps"], max_frames=150)
        assert list(plan.indices) == case["indices"], case["vlen"]
        assert [[round(a), round(b)] for a, b in plan.spans] == case["interval_seconds_train"], case["vlen"]
        assert [stamp_text(span) for span in plan.spans] == case["stamp_text"], case["vlen"]


@settings(max_examples=200, deadline=None)
@given(
    frame_count=st.integers(1, 20_000),
    fps=st.floats(0.05, 120),
    max_frames=st.integers(1, 150),
    seed=st.integers(-(2**70), 2**70),
)
def test_every_random_frame_exists_and_lies_in_its_interval(frame_count, fps, max_frames, seed):
    plan = plan_frames(frame_count=frame_count, fps=fps, max_frames=max_frames, policy="random", seed=seed)
    assert 1 <= len(plan.indices) <= max_frames
    for index, (start, end) in zip(plan.indices, plan.spans, strict=True):
        assert 0 <= index < frame_count
        assert min(int(start * fps), frame_count - 1) <= index < max(int(end * fps), int(start * fps) + 1)


def test_random_frames_depend_on_the_seed_and_on_nothing_else():
    draw = lambda seed: plan_frames(frame_count=300, fps=30, max_frames=150, policy="random", seed=seed)  # noqa: E731
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_a_video_of_less_than_a_second_gives_one_frame():
    assert plan_frames(frame_count=1, fps=25, max_frames=150).indices == (0,)


def test_below_one_frame_a_second_frames_repeat():
    assert plan_frames(frame_count=2, fps=0.5, max_frames=150).indices == (0, 0, 1, 1)


def test_a_smaller_limit_widens_the_intervals():
    spans = time_spans(duration=8.0, max_frames=4)
    assert spans == ((0, 2), (2, 4), (4, 6), (6, 8))


def test_stamps_count_hours():
    assert stamp_text((3599.6, 7325.2)) == "01:00:00-02:02:05"


def test_an_unknown_policy_is_refused_by_name():
    with pytest.raises(ValueError, match="middle, random"):
        plan_frames(frame_count=10, fps=1, max_frames=5, policy="first")
