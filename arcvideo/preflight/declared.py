"""A source whose shards are not there yet, by the sizes that a recipe expects of it."""

from __future__ import annotations

import math
from typing import NamedTuple

from arcvideo.composing.config import RunConfig
from arcvideo.composing.recipe import ExpectedSource
from arcvideo.planning.settings import SourceSettings
from arcvideo.planning.table import attention_pairs, audio_chunks
from arcvideo.render import media_length

ORDINARY = {"plain": (150, 60), "think": (400, 300), "draft": (400, 300)}
"""Tokens of a question with its answer, and of the answer, where no run has counted them yet."""


class Row(NamedTuple):
    """What an epoch reads of one source."""

    samples: float
    tokens: float
    """Of packs, or of prompts."""
    targets: float
    """Supervised tokens."""
    frames: float
    chunks: float
    """Of audio."""
    pairs: float
    """Query-key pairs of attention."""


def declared_row(source: SourceSettings, expected: ExpectedSource, *, name: str, config: RunConfig) -> Row:
    """Return an epoch of a source that is only declared: all clips alike, questions and answers of ordinary length.

    Raises:
        ValueError: the mixture asks for what sizes alone cannot tell.
    """
    if config.data.unit != "epochs":
        raise ValueError(f"data.sources.{name}: its shards are not there, and data.unit={config.data.unit} needs them")
    clips = math.ceil(expected.samples / expected.samples_per_clip) * source.fraction
    visits = min(clips, source.max_clips or clips) * source.weight
    questions = min(expected.samples_per_clip, source.items_per_clip or expected.samples_per_clip)
    frames = min(math.ceil(expected.seconds), config.layout.max_frames)
    branch, targets = ORDINARY[source.style]
    if config.objective.paired:
        branch, targets = branch + targets, 2 * targets
    prefix = 1 + media_length(frames, layout=config.layout) if frames else 0
    prompted = config.objective.sampled
    tokens = questions * (prefix + branch) if prompted else prefix + questions * branch
    together = attention_pairs(prefix, questions * branch, questions * branch**2)
    pairs = float(questions * attention_pairs(prefix + branch) if prompted else together)
    shown = questions if prompted else 1
    chunks = audio_chunks(frames, seconds=config.layout.chunk_seconds)
    per_visit = (questions, tokens, 0 if prompted else questions * targets, shown * frames, shown * chunks, pairs)
    return Row(*(visits * value for value in per_visit))


def declared_longest(source: SourceSettings, expected: ExpectedSource, *, config: RunConfig) -> int:
    """Return tokens of a prompt of that source."""
    frames = min(math.ceil(expected.seconds), config.layout.max_frames)
    return (1 + media_length(frames, layout=config.layout) if frames else 0) + ORDINARY[source.style][0]
