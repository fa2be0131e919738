"""What a model that is not ours is told: the same question, instruction, frames and times, as text and pictures."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from arcvideo.evaluation.answers import Answer, answer_about
from arcvideo.layout import MediaLayout
from arcvideo.measuring.arms import arm_clip
from arcvideo.measuring.questions import MeasuredQuestion
from arcvideo.measuring.read import Read
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.tasks.fields import suffix
from arcvideo.types import Clip

FRAMES_LAYOUT = MediaLayout()
"""How clips are decoded for other models: one frame a second, stamped, at most 150, as for ours."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """One question in one arm."""

    question: MeasuredQuestion
    arm: str
    text: str
    clip: Clip | None
    """What is seen and heard; None for text alone."""
    read: Read


def question_text(question: MeasuredQuestion, *, wording: str) -> str:
    """Return the question with its instruction, without the mark of where the frames stand."""
    text = question.sample.turns[0].question.replace("<video>", "").strip()
    instruction = suffix(question.sample.instruction, wording=wording)
    return f"{text}\n{instruction}" if instruction else text


def pending(read: Read, *, wording: str) -> Iterator[Told]:
    """Yield what is left to ask about a clip."""
    arms = dict.fromkeys(arm for question in read.material.questions for arm in read.wanted.get(question.key, ()))
    for arm in arms:
        clip = None if read.seen is None else arm_clip(read.seen, arm=arm, other=read.other)
        if clip is None and (read.seen is not None or arm != "full"):
            continue
        for question in read.material.questions:
            if arm in read.wanted.get(question.key, ()):
                yield Told(
                    question=question, arm=arm, text=question_text(question, wording=wording), clip=clip, read=read
                )


class PlainModel:
    """A model that is not ours, as far as all of them are the same."""

    def __init__(self, settings: EvaluateSettings) -> None:
        """Take how it is asked."""
        self.style, self.wording = settings.style or "plain", settings.wording or "arc"
        self.max_new_tokens = settings.max_new_tokens or (1024 if self.style == "think" else 64)

    @property
    def layout(self) -> MediaLayout:
        """How clips are decoded for it."""
        return FRAMES_LAYOUT

    def prompts_digest(self, read: Read) -> str:
        """Return 16 hex digits of the texts that are asked about a clip."""
        texts = "\n".join(map(self.first_prompt, read.material.questions))
        return hashlib.sha256(texts.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def first_prompt(self, question: MeasuredQuestion) -> str:
        """Return the text of a question."""
        return question_text(question, wording=self.wording)

    def ask(self, clips: Iterable[Read]) -> Iterator[tuple[list[Answer], dict[str, float]]]:
        """Yield the answers about one clip at a time, with the seconds they took; raises what `answers` raises."""
        for read in clips:
            began = time.perf_counter()
            answers = self.answers(pending(read, wording=self.wording))
            video = 0.0 if read.seen is None else read.seen.clip.duration
            yield answers, {"answer": time.perf_counter() - began, "video": video}

    def answers(self, requests: Iterable[Told]) -> list[Answer]:
        """Return the answers to everything that is asked about a clip, in order."""
        raise NotImplementedError


def answer_of(request: Told, *, text: str, tokens: int, finished: bool) -> Answer:
    """Return what was said as it is scored and stored."""
    seen = request.read.seen
    return answer_about(
        request.question.sample,
        number=request.question.number,
        text=text,
        arm=request.arm,
        tags=request.question.tags,
        has_audio=seen is not None and seen.clip.waveform is not None,
        has_video=seen is not None and seen.clip.frames is not None,
        seconds=None if seen is None else seen.clip.duration,
        tokens=tokens,
        finished=finished,
    )


def pictures(frames: Tensor) -> np.ndarray:
    """Return (F, S, S, 3) uint8 of (F, 3, S, S)."""
    return np.ascontiguousarray(frames.permute(0, 2, 3, 1).cpu().numpy())
