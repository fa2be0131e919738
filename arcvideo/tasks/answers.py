"""Reading a model's answer: its think and answer blocks, an option letter, a time span, under one name for others.

The readers themselves stand in `blocks.py`, `mcq.py` and `spans.py`; rewards, evaluation, rejection sampling and `ask`
read through them, so that what is optimised is what is measured and shown. Its table: docs/answers.md.
"""

from arcvideo.tasks.blocks import Parsed, Reading, answer_text, one_answer, split_answer
from arcvideo.tasks.mcq import parse_letter, read_letter
from arcvideo.tasks.spans import Span, clock, clock_span, parse_span, read_span, temporal_iou

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
