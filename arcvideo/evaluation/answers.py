"""An answer on disk: all that scoring it needs, so that figures can be computed again without model, media or torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from arcvideo.tasks import TASKS
from arcvideo.tasks.blocks import one_answer

FULL = "full"
"""The arm in which the model gets everything."""
NO_SOUND = "no_sound"
"""The arm in which the sound is taken away; figures over silent clips are measured in it."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model said to one question in one arm."""

    key: str
    """Of the question, unique inside the measurement."""
    number: int
    """Place of the question among all of the measurement, from 0."""
    clip: str
    """What the question is about; intervals draw whole clips."""
    task: str
    question: str
    """Without instruction suffix."""
    truth: Mapping[str, Any]
    """What the answer is compared with."""
    reference: str
    """The item's own answer as it would be trained."""
    text: str
    """The completion, unparsed."""
    arm: str = FULL
    tags: tuple[str, ...] = ()
    instructed: bool = False
    """Whether an instruction suffix asked for the answer format."""
    has_audio: bool = True
    """Whether the clip has sound, whatever the arm."""
    has_video: bool = True
    seconds: float | None = None
    """Length of the clip; None when it is not known."""
    tokens: int = 0
    """Length of the completion."""
    finished: bool = True
    """False when it was cut off."""

    @property
    def known(self) -> Mapping[str, Any]:
        """The truth with the length of the clip, at which predicted times are cut."""
        return self.truth if self.seconds is None else {**self.truth, "seconds": self.seconds}

    @property
    def problem(self) -> str | None:
        """Why nothing could be read of the answer; None when something was."""
        if self.task in TASKS:
            return TASKS[self.task].read(self.text, self.truth).problem
        return one_answer(self.text).problem

    def row(self) -> dict[str, Any]:
        """Return it as a JSON-able object."""
        return asdict(self) | {"truth": dict(self.truth)}


def answer_of(row: Mapping[str, Any]) -> Answer:
    """Return the answer of a JSON object."""
    return Answer(**{**row, "tags": tuple(row.get("tags", ()))})


def answer_about(sample: Any, *, number: int, text: str, **facts: Any) -> Answer:
    """Return what was said to a question as it is scored and stored.

    Args:
        sample: the question, an `arcvideo.types.Sample`.
        number: its place among all of the measurement.
        text: the completion, unparsed.
        facts: further fields of `Answer`: arm, tags, has_audio, has_video, seconds, tokens, finished.
    """
    return Answer(
        key=sample.key,
        number=number,
        clip=sample.media_key or sample.key.rpartition("/")[0] or sample.key,
        task=sample.task,
        question=sample.turns[0].question,
        truth=sample.truth,
        reference=sample.turns[0].answer,
        instructed=sample.instructed,
        text=text,
        **facts,
    )
