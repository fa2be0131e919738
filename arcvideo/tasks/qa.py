"""Open questions with a short or long free answer; may have further turns."""

from __future__ import annotations

from collections.abc import Sequence

from arcvideo.tasks.fields import text_sample
from arcvideo.tasks.scoring import exact, most_frequent_share, text_measures
from arcvideo.tasks.task import Asked, Measure, Outline, Score, Task, Truth, true_text

SPEECH_TAG = "topic:speech"
"""Questions with this tag ask what is said: they cannot be answered without sound."""


def _about_speech(question: Outline) -> bool:
    return SPEECH_TAG in question.tags and question.has_audio


def _exact(text: str, truth: Truth) -> Score:
    return Score(value=exact(text, truth=true_text(truth)))


def _chance(items: Sequence[Asked]) -> float:
    return most_frequent_share([(item.question, true_text(item.truth)) for item in items])


QA = Task(
    name="qa",
    sample=text_sample("qa"),
    measures=(
        Measure(name="speech_qa", score=_exact, chance=_chance, asks=_about_speech),
        Measure(name="speech_qa_audio_zeroed", score=_exact, chance=_chance, asks=_about_speech, silent=True),
        *text_measures("qa"),
    ),
)
