"""Scripts: drawn from a seed alone, with truths that leave no question two answers."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict

import pytest

from arcvideo.synthetic.script import CLIP_KINDS, DURATION, Script, draw_script, script_from

SCRIPTS = [draw_script(split="train", index=index, seed=3) for index in range(200)]


def picture(script: Script) -> dict[str, object]:
    """What a viewer could tell clips apart by, without the key."""
    return {name: value for name, value in asdict(script).items() if name not in ("key", "seed")}


def test_a_script_depends_on_split_index_and_seed_only() -> None:
    again = [draw_script(split="train", index=index, seed=3) for index in reversed(range(200))]
    assert again[::-1] == SCRIPTS
    assert draw_script(split="train", index=0, seed=4) != SCRIPTS[0]


def test_train_and_test_share_no_clip() -> None:
    test = [draw_script(split="test", index=index, seed=3) for index in range(200)]
    assert {script.seed for script in test}.isdisjoint(script.seed for script in SCRIPTS)
    assert all(picture(script) != picture(other) for script in test for other in SCRIPTS)
    assert len({script.key for script in [*test, *SCRIPTS]}) == 400


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="split='dev': choose train or test"):
        draw_script(split="dev", index=0, seed=0)


def test_all_kinds_are_drawn_and_most_clips_are_full() -> None:
    counts = Counter(script.kind for script in SCRIPTS)
    assert set(counts) == set(CLIP_KINDS)
    assert counts["full"] > 100


@pytest.mark.parametrize("kind", CLIP_KINDS)
def test_a_kind_has_what_it_says(kind: str) -> None:
    script = draw_script(split="test", index=1, seed=0, kind=kind)
    assert bool(script.shapes) == bool(script.words) == (kind != "speech")
    assert bool(script.speech) == bool(script.sounds) == (kind in ("full", "speech"))
    assert script.duration == (1 if kind == "image" else DURATION)


def test_events_lie_inside_the_clip() -> None:
    for script in SCRIPTS:
        for event in (*script.shapes, *script.words, *script.sounds):
            assert 0 <= event.start < event.end <= script.duration
        for word in script.speech:
            assert 0 <= word.start < word.end <= script.duration
            assert int(word.start) == int(word.end)  # inside one second, so inside one frame's share of the sound


def test_the_two_shapes_can_be_told_apart_by_colour_kind_and_side() -> None:
    for script in SCRIPTS:
        if len(script.shapes) == 2:
            one, other = script.shapes
            assert one.color != other.color
            assert one.kind != other.kind
            assert (one.x < 0.5) != (other.x < 0.5)


def test_words_follow_each_other_and_differ() -> None:
    for script in SCRIPTS:
        assert all(one.end < other.start for one, other in zip(script.speech, script.speech[1:], strict=False))
        assert len({word.text for word in script.speech}) == len(script.speech)
        assert len(script.speech) in ((2, 3) if script.speech else (0,))


def test_the_truth_of_a_record_is_the_whole_script() -> None:
    for script in SCRIPTS[:20]:
        assert script_from(json.loads(json.dumps(asdict(script)))) == script
