"""Captions: what is shown, including text on the screen."""

from __future__ import annotations

from arcvideo.tasks.fields import text_sample
from arcvideo.tasks.scoring import text_measures
from arcvideo.tasks.task import Task

QUESTION = "Describe the video content."

CAPTION = Task(
    name="caption",
    question=QUESTION,
    sample=text_sample("caption", question=QUESTION),
    measures=text_measures("caption"),
)
