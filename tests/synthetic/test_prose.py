"""The decoder learns to name letters before anything else is mixed in."""

from __future__ import annotations

from collections.abc import Iterable

from arcvideo.synthetic.prose import LettersFirst


def alone(steps: int, hits: Iterable[float]) -> list[bool]:
    first, answers = LettersFirst(steps=steps), []
    for step, share in enumerate(hits):
        answers.append(first.alone(step))
        first.note(share)
    return answers


def test_letters_stand_alone_until_they_are_known() -> None:
    answers = alone(1000, [0.6] * 200 + [1.0] * 100)
    assert all(answers[:200])
    # 0.6 -> 0.95 by a tenth of what is left in a step: 0.4 * 0.9^n <= 0.05 from n = 20 on.
    assert answers.index(False) == 220


def test_letters_do_not_stand_alone_again() -> None:
    answers = alone(1000, [1.0] * 100 + [0.0] * 100)
    assert not any(answers[answers.index(False) :])


def test_letters_that_are_never_known_leave_half_of_the_steps() -> None:
    assert alone(40, [0.6] * 40) == [True] * 20 + [False] * 20
