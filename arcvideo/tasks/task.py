"""What a task is: one record that holds all there is to know of one kind of question.

The rooms above read its fields and name no task: the index makes samples, a rollout reads and rewards, an evaluation
measures, `ask` shows what was read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from arcvideo.tasks.answers import Reading, answer_text, one_answer
from arcvideo.tasks.spans import clock_span, parse_span
from arcvideo.types import Sample

Truth = Mapping[str, Any]
"""What a sample's answer is compared with: `letter`, `options`, `span`, `text`, ..."""
Worth = Callable[[Any, Any, float], float]
"""Called with what was read, what it is compared with and the seconds of the clip (0 if unknown): a reward."""


class MakeSample(Protocol):
    """A record's item becomes a Sample.

    Raises:
        RecordError: a field is missing or malformed.
    """

    def __call__(self, item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample: ...


class Outline(Protocol):
    """What is known of a held-out question before its clip is read."""

    @property
    def tags(self) -> tuple[str, ...]: ...
    @property
    def has_audio(self) -> bool: ...


class Asked(Protocol):
    """A held-out question."""

    @property
    def question(self) -> str: ...
    @property
    def truth(self) -> Truth: ...


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one answer counts in a figure: the figure is sum(value) / sum(weight)."""

    value: float
    weight: float = 1.0


def every(question: Outline) -> bool:
    """Return that a figure is measured on every question of its task."""
    return True


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One figure of a task on held-out clips."""

    name: str
    """Name in `evaluation.metrics`."""
    score: Callable[[str, Truth], Score]
    """What a completion counts."""
    chance: Callable[[Sequence[Asked]], float]
    """What the best answer that ignores the clip reaches on these questions."""
    asks: Callable[[Outline], bool] = every
    """Which questions of the task it is measured on."""
    constant: Callable[[Sequence[Asked]], str] | None = None
    """An answer that is given to all of the questions in place of the model's."""
    silent: bool = False
    """The clips lose their sound first."""
    lower_is_better: bool = False
    """It is an error."""
    on_request: bool = False
    """Not measured unless `evaluation.metrics` names it."""

    @property
    def control(self) -> bool:
        """Whether it says what is reached without the model or without sound: nothing to show answers of."""
        return self.silent or self.constant is not None


def told_times(text: str) -> list[str]:
    """Return the time ranges that an answer names, one line for each of its lines that names one."""
    spans = [span for line in answer_text(text).splitlines() if (span := parse_span(line))]
    return [f"time: {clock_span(span)} ({span[0]:g} s to {span[1]:g} s)" for span in spans]


def read_text(text: str, truth: Truth) -> Reading[str]:
    """Return the one answer of a completion, as it stands."""
    return one_answer(text)


def true_text(truth: Truth) -> str:
    """Return the text that an answer is compared with.

    Raises:
        ValueError: it is missing.
    """
    return str(known(truth, "text"))


def known(truth: Truth, name: str) -> Any:
    """Return an entry of the truth.

    Raises:
        ValueError: it is missing; nothing read would be as right as nothing known.
    """
    if truth.get(name) is None:
        raise ValueError(f"the truth has no {name!r}, so no answer can be right; mend or leave out the item")
    return truth[name]


@dataclass(frozen=True, kw_only=True)
class Task:
    """One kind of question."""

    name: str
    """The `task` of a record's item."""
    sample: MakeSample
    """Makes a Sample of an item."""
    instruction: str = "general"
    """Which instruction suffix asks for thoughts and an answer block (`tasks/fields.py`)."""
    question: str = ""
    """Standard question; empty when every item has its own."""
    read: Callable[[str, Truth], Reading[Any]] = read_text
    """Reads the answer of a completion."""
    compared: Callable[[Truth], Any] = true_text
    """What an answer is compared with; refuses a truth that no answer can reach."""
    say: Callable[[Any], str] = str
    """What was read, in words."""
    tell: Callable[[str], list[str]] = told_times
    """What `ask` writes below an answer, line by line."""
    rewards: Mapping[str, Worth] = field(default_factory=dict)
    """Name -> reward of what was read; what cannot be read is worth 0. The first is the default."""
    reward_makers: Mapping[str, Callable[..., Worth]] = field(default_factory=dict)
    """Name -> function that makes a reward of its arguments."""
    passes_above: float = 0.5
    """Rejection sampling keeps an answer when its default reward is greater."""
    text_draft: bool = True
    """The `draft` of an item is a text in place of its answer."""
    measures: tuple[Measure, ...] = ()
    """Figures on held-out clips."""

    @property
    def reward(self) -> str | None:
        """Name of the default reward; None when no reward of ours judges it."""
        return next(iter(self.rewards), None)
