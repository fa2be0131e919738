"""Reading a model's answer: the think and answer blocks, an option letter, a time span.

Rewards, evaluation, rejection sampling and `ask` read through this file alone, so that what is optimised is what is
measured and shown. Exactly one answer is read, or none: what cannot be read without guessing is None. The table of what
is read is docs/answers.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from arcvideo.tasks.blocks import Parsed, Reading, answer_text, one_answer, split_answer
from arcvideo.tasks.letters import read_letter
from arcvideo.tasks.spans import Span, clock, clock_span, read_span, temporal_iou

__all__ = [
    "Parsed",
    "Reading",
    "Span",
    "answer_text",
    "clock",
    "clock_span",
    "one_answer",
    "parse_letter",
    "parse_span",
    "read_letter",
    "read_span",
    "split_answer",
    "temporal_iou",
]


def parse_letter(text: str, *, options: Sequence[str] | None = None) -> str | None:
    """Return the option letter an answer names: 'B', 'B.', '(B)', 'B. blue', 'Answer: B'; None without a single one.

    Args:
        text: A completion; its answer block counts when there is one, else all of it.
        options: The option texts, if known. A text then names its option, and must agree with the letter.
    """
    return read_letter(text, options=options).value


def parse_span(text: str) -> tuple[float, float] | None:
    """Return the (start, end) in seconds of the one time range an answer names; None without one, or when reversed.

    Understands clocks (HH:MM:SS, MM:SS, with fractions), amounts ('3.5 s', '1 min 2 s', '12 seconds' in Chinese), pairs
    and JSON of bare numbers, all dashes, and English and Chinese connectors.
    """
    return read_span(text).value
