"""Speech recognition: what is said in the clip."""

from __future__ import annotations

from arcvideo.tasks.fields import text_sample
from arcvideo.tasks.scoring import constant_transcript_error, transcript_edits
from arcvideo.tasks.task import Measure, Score, Task, Truth, true_text

QUESTION = "Transcribe the speech."


def _edits(text: str, truth: Truth) -> Score:
    edits, words = transcript_edits(text, truth=true_text(truth))
    return Score(value=float(edits), weight=float(words))


ASR = Task(
    name="asr",
    question=QUESTION,
    sample=text_sample("asr", question=QUESTION),
    measures=(
        Measure(
            name="transcript_token_error",
            score=_edits,
            chance=lambda items: constant_transcript_error([true_text(item.truth) for item in items]),
            lower_is_better=True,
        ),
    ),
)
