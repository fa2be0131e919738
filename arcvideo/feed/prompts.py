"""Prompt: what a completion is sampled from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arcvideo.model.positions import replace_newlines, xd_positions
from arcvideo.model.special import SpecialIds
from arcvideo.render import Ids
from arcvideo.types import Counts, Media, Sample


@dataclass(frozen=True, kw_only=True)
class Question:
    """A prompt as far as it is known without reading its clip."""

    key: str
    """Sample key."""
    task: str
    tags: tuple[str, ...]
    instructed: bool
    """Whether an instruction suffix asks for the answer format."""
    has_audio: bool
    """Whether the model gets sound with it."""


@dataclass(frozen=True, kw_only=True)
class StepPrompts:
    """What one rank is to ask at one step, as `StepData` is what it trains on."""

    prompts: list[Prompt]
    """Each with its place in the stream; unreadable ones are missing, not replaced."""
    counts: Counts = field(default_factory=dict)
    """Items that this rank was handed."""
    lost: tuple[str, ...] = ()
    """Record keys of clips that could not be read."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One question and its media, up to and including `<sep>`."""

    prefix_ids: Ids
    """(n,) int64 with newline ids; empty without media."""
    question_ids: Ids
    """(m,) int64."""
    media: tuple[Media, ...]
    """Those of the question, in the order in which they are shown; none for text."""
    sample: Sample
    source: str
    """Name of the source in the mixture."""
    place: int | None = None
    """Which prompt of the training stream this is, from 0; the same item may stand at many places. None outside it."""
    tags: tuple[str, ...] = ()
    """The item's tags, for scores per kind of question."""
    duration: float | None = None
    """Seconds of the clip as its file has them, also where frames and sound are thinned out; None without a clip."""
    specials: SpecialIds = field(repr=False)

    @property
    def key(self) -> str:
        return self.sample.key

    @property
    def task(self) -> str:
        return self.sample.task

    @property
    def question(self) -> str:
        """The first question as text, without instruction suffix."""
        return self.sample.turns[0].question

    @property
    def outline(self) -> Question:
        """What was known of it before its clip was read."""
        return Question(
            key=self.key,
            task=self.task,
            tags=self.tags,
            instructed=self.sample.instructed,
            has_audio=any(medium.has_audio for medium in self.media),
        )

    @property
    def truth(self) -> Mapping[str, Any]:
        return self.sample.truth

    @property
    def ids(self) -> Ids:
        """(L,) int64 with newline ids."""
        return np.concatenate([self.prefix_ids, self.question_ids])

    @property
    def length(self) -> int:
        return len(self.prefix_ids) + len(self.question_ids)

    @property
    def input_ids(self) -> Tensor:
        """(L,) int64 as the model reads them."""
        return replace_newlines(torch.from_numpy(self.ids), special=self.specials)

    @property
    def position_ids(self) -> Tensor:
        """(4, L) int64."""
        return xd_positions(torch.from_numpy(self.ids), self.specials)
