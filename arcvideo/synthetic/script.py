"""The truth of a TinyShorts clip: what is seen, read, said and heard, and when.

A script is drawn from a seed and nothing else, so a clip, its media bytes and its questions can be made again anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

COLORS = ("red", "green", "blue", "yellow", "purple", "white")
KINDS = ("circle", "square", "triangle", "cross")
SCREEN_WORDS = ("SALE", "NEWS", "GOAL", "COOK", "LIVE", "TRIP", "QUIZ", "DUET")
SPOKEN_WORDS = (
    "mango", "river", "piano", "tiger", "lemon", "robot", "candle", "window", "garden", "silver", "pepper", "rocket",
)  # fmt: skip
SOUNDS = ("beep", "siren", "hum", "rattle")
CLIP_KINDS = ("full", "silent", "speech", "image")
DURATION = 8
"""Seconds of a clip; one frame a second, so eight frames."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A coloured shape, visible in [start, end) whole seconds; x and y are its centre, 0..1."""

    color: str
    kind: str
    start: int
    end: int
    x: float
    y: float
    motion: str
    """still, left or right."""

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"


@dataclass(frozen=True, kw_only=True)
class Word:
    """On-screen text, visible in [start, end) whole seconds."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Speech:
    """One spoken-like word, inside one second of the clip."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Sound:
    """A background sound, audible in [start, end) whole seconds."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Script:
    """Everything that is true of one clip."""

    key: str
    kind: str
    """full; silent: no audio stream; speech: an audio file alone; image: one still."""
    duration: int
    seed: int
    shapes: tuple[Shape, ...]
    words: tuple[Word, ...]
    speech: tuple[Speech, ...]
    sounds: tuple[Sound, ...]


def draw_script(*, split: str, index: int, seed: int, kind: str | None = None) -> Script:
    """Return the script of clip `index` of a split; train and test draw from different streams.

    Args:
        kind: one of CLIP_KINDS; None draws it (70 % full, 10 % of each of the others).
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: choose train or test")
    clip_seed = int(np.random.SeedSequence([seed, 0 if split == "train" else 1, index]).generate_state(1)[0])
    rng = np.random.default_rng(clip_seed)
    drawn = str(rng.choice(CLIP_KINDS, p=(0.7, 0.1, 0.1, 0.1)))
    kind = kind or drawn
    sees, hears = kind != "speech", kind in ("full", "speech")
    duration = 1 if kind == "image" else DURATION
    return Script(
        key=f"{split}-{index:06d}",
        kind=kind,
        duration=duration,
        seed=clip_seed,
        shapes=_shapes(rng, duration=duration) if sees else (),
        words=(Word(text=str(rng.choice(SCREEN_WORDS)), **_span(rng, duration=duration)),) if sees else (),
        speech=_speech(rng) if hears else (),
        sounds=(Sound(name=str(rng.choice(SOUNDS)), **_span(rng, duration=duration)),) if hears else (),
    )


def _span(rng: np.random.Generator, *, duration: int) -> dict[str, int]:
    if duration == 1:
        return {"start": 0, "end": 1}
    length = int(rng.integers(2, 5))
    start = int(rng.integers(0, duration - length + 1))
    return {"start": start, "end": start + length}


def _shapes(rng: np.random.Generator, *, duration: int) -> tuple[Shape, ...]:
    """Return one shape, in every fourth clip two: of different colour, kind and side, so that each question has one
    answer.
    """
    count = 1 + int(rng.random() < 0.25)
    colors = rng.choice(COLORS, size=count, replace=False)
    kinds = rng.choice(KINDS, size=count, replace=False)
    sides = rng.permutation([0.27, 0.73])[:count]
    return tuple(
        Shape(
            color=str(color),
            kind=str(kind),
            x=float(side + rng.uniform(-0.05, 0.05)),
            y=float(rng.uniform(0.25, 0.55)),
            motion=str(rng.choice(("still", "left", "right"))),
            **_span(rng, duration=duration),
        )
        for color, kind, side in zip(colors, kinds, sides, strict=True)
    )


def _speech(rng: np.random.Generator) -> tuple[Speech, ...]:
    """Return two different words, in every fifth clip three, one a second, without a pause between them."""
    count = 2 + int(rng.random() < 0.2)
    texts = rng.choice(SPOKEN_WORDS, size=count, replace=False)
    first = int(rng.integers(0, DURATION - count + 1))
    starts = first + np.arange(count) + rng.uniform(0.05, 0.3, size=count)
    return tuple(
        Speech(text=str(text), start=float(start), end=float(start + 0.6))
        for text, start in zip(texts, starts, strict=True)
    )


def script_from(truth: dict[str, Any]) -> Script:
    """Return the script that a record carries as its `truth`."""
    events = {"shapes": Shape, "words": Word, "speech": Speech, "sounds": Sound}
    parts = {name: tuple(kind(**event) for event in truth[name]) for name, kind in events.items()}
    return Script(**{**truth, **parts})
