"""The proof of time: it holds for our decoding, and fails on every way in which times can be wrong by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from arcvideo.layout import MediaLayout
from arcvideo.measuring.clock import WrongTimes, prove_times
from arcvideo.media.clip import read_clip
from arcvideo.types import Clip

SILENCE = torch.zeros(16000)
LAYOUT = MediaLayout(image_size=128, max_frames=150)


def test_every_second_is_seen_and_heard_where_it_is() -> None:
    proof = prove_times(read_clip, layout=LAYOUT)
    assert proof["frames_show"] == list(range(12))
    assert proof["beeps"] == [second.bit_count() for second in range(12)]


def test_wider_intervals_hold_too() -> None:
    """As for clips of more seconds than frames: each stands for more than one."""
    proof = prove_times(read_clip, layout=replace(LAYOUT, max_frames=5))
    assert proof["frame_times"][1] == pytest.approx((2.4, 4.8))


def changed(change: Callable[[Clip], dict[str, Any]]) -> Any:
    """Reading as it is, with a fault behind it."""

    def read(data: bytes, **words: Any) -> Clip:
        clip = read_clip(data, **words)
        return replace(clip, **change(clip))

    return read


@pytest.mark.parametrize(
    ("read", "said"),
    [
        # A part of the file in place of all of it: what is seen at second n was n + 1, and the end is missing.
        (partial(read_clip, window=(1.0, 12.0)), r"times up to 11 s"),
        (changed(lambda clip: {"frame_times": clip.frame_times + 1}), r"times up to 13 s"),
        # The frame behind the right one, and the one before it.
        (changed(lambda clip: {"frames": clip.frames[[*range(1, 12), 11]]}), r"0 s to 1 s shows second 1 .*1, 2, 3"),
        (changed(lambda clip: {"frames": clip.frames[[0, *range(11)]]}), r"1 s to 2 s shows second 0 .*0, 0, 1, 2"),
        # Times that run at another pace than the frames.
        (changed(lambda clip: {"frame_times": clip.frame_times[[0, *range(11)]]}), r"times up to 11 s"),
        (changed(lambda clip: {"waveform": torch.cat([SILENCE, clip.waveform])}), r"second 1 .* has 0 beeps, not 1"),
        (changed(lambda clip: {"waveform": clip.waveform[16000:]}), r"second 0 .* has 1 beeps, not 0 .*1, 1, 2"),
        (changed(lambda clip: {"waveform": None}), r"without its picture or its sound"),
    ],
)  # fmt: skip
def test_times_that_are_wrong_by_one_are_told_with_what_came_back(read: Any, said: str) -> None:
    with pytest.raises(WrongTimes, match=said):
        prove_times(read, layout=LAYOUT)
