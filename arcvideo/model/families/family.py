"""What a family of models is, as far as it can be said without torch; `parts.py` in its folder builds its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Template:
    """How a conversation is written: text with special strings."""

    opening: str
    """Before the first question, its media included."""
    behind_media: str
    """Between the media and the question."""
    separator: str
    """Between a question and its answer."""
    between: str
    """Between the end of an answer and the next question."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One kind of model: how clips become tokens, which strings mark them, where its modules are."""

    name: str
    parts: str
    """Module whose `PARTS` builds towers, merger and decoder, and knows the released key names."""
    strings: Mapping[str, str]
    """Field of `SpecialIds` -> the tokenizer's string."""
    template: Template
    merged: int
    """Patches on the side of a cell, the square of a picture that becomes one token, before further pooling."""
    row_ends: bool = True
    """Whether a row of cells ends with a token of its own."""
    edges: int = 2
    """Tokens of a group beside its rows: begin and end."""
    marks: int = 2
    """Ids around the tokens of a group."""
    frames_per_group: int = 1
    """Frames whose patches are embedded together."""
    middle_sound: bool = False
    """Of sound too long to be kept whole, the middle of each part is kept; else its beginning."""
    adapter_targets: tuple[str, ...]
    """Last parts of the names of the decoder's linear layers."""
    gated_vision: bool = False
    """Whether the vision tower's MLP has a gate: three matrices a layer in place of two."""
