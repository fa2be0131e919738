"""Which half of its clip an answer needs, told from what the model says without the other half. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arcvideo.evaluation.answers import FULL, NO_SOUND, Answer
from arcvideo.measuring.settings import NO_PICTURE
from arcvideo.tasks import TASKS
from arcvideo.tasks.task import Measure

RIGHT_FROM = 0.5
"""An answer counts as right from this score on: a right letter or text, an IoU of one half."""
AUDIO, VIDEO, BOTH, NEITHER, UNKNOWN = (f"needs:{name}" for name in ("audio", "video", "both", "neither", "unknown"))


def classes(answers: Mapping[tuple[str, str], Answer]) -> list[dict[str, Any]]:
    """Return a row for each question that was asked without sound or without picture: its key, clip and tag.

    A question that is answered right by the whole clip needs what it is no longer answered right without: `needs:audio`
    falls with the sound alone, `needs:video` with the picture alone, `needs:both` with either, `needs:neither` with
    none of them. One that is not answered right by the whole clip tells nothing: `needs:unknown`. A half that the clip
    does not have is not needed.
    """
    rows = []
    for (arm, key), full in answers.items():
        silent, blind = answers.get((NO_SOUND, key)), answers.get((NO_PICTURE, key))
        if arm != FULL or (silent is None and blind is None) or _measure(full.task) is None:
            continue
        if (full.has_audio and full.has_video) and (silent is None or blind is None):
            continue  # one arm was not asked: that the other is right says nothing of this one
        right = {name: answer is None or _right(answer) for name, answer in (("sound", silent), ("picture", blind))}
        if not _right(full):
            tag = UNKNOWN
        elif right["sound"]:
            tag = NEITHER if right["picture"] else VIDEO
        else:
            tag = AUDIO if right["picture"] else BOTH
        rows.append({"key": key, "clip": full.clip, "task": full.task, "tags": [tag]})
    return rows


def _right(answer: Answer) -> bool:
    measure = _measure(answer.task)
    assert measure is not None
    score = measure.score(answer.text, answer.known)
    value = score.value / score.weight if score.weight else 0.0
    return value < RIGHT_FROM if measure.lower_is_better else value >= RIGHT_FROM


def _measure(task: str) -> Measure | None:
    """Return the figure that decides whether an answer is right: the first of its task, the F1 of words for texts."""
    measures = [measure for measure in TASKS[task].measures if not measure.control] if task in TASKS else []
    texts = [measure for measure in measures if measure.name == f"{task}_f1"]
    return next(iter(texts if measures and measures[0].on_request else measures), None)
