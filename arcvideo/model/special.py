"""The special strings of the tokenizer and their ids (torch-free)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

SPECIALS: dict[str, str] = {
    "end": "<|endoftext|>",
    "start": "<|startoftext|>",
    "bos": "<|bos|>",
    "eos": "<|eos|>",
    "pad": "<|pad|>",
    "img_open": "<img>",
    "img_close": "</img>",
    "newline": "<newline>",
    "image": "<IMG_CONTEXT>",
    "sep": "<sep>",
    "vid_open": "<vid>",
    "vid_close": "</vid>",
}
"""Name -> string, in the order in which the tiny tokenizer appends them."""

ANSWER_TAGS: tuple[str, ...] = ("<think>", "</think>", "<answer>", "</answer>")
"""Ordinary text in the released tokenizer; single ordinary tokens in the tiny one."""


@dataclass(frozen=True, kw_only=True)
class SpecialIds:
    """Token ids that layout and positions need; the defaults are the released ones."""

    start: int = 127958
    """Begins every sequence."""
    end: int = 127957
    """Ends an answer and a document (eod)."""
    eos: int = 127960
    """Also ends a generated answer."""
    sep: int = 128000
    """Ends the human turn."""
    pad: int = 127961
    """Padding of batches."""
    img_open: int = 127962
    """Opens a frame."""
    img_close: int = 127963
    """Closes a frame."""
    newline: int = 127964
    """Ends a row of a frame; becomes `image` before the model sees it."""
    image: int = 127968
    """Stands for one fused token."""
    vid_open: int = 128001
    """Opens the video."""
    vid_close: int = 128002
    """Closes the video."""


@lru_cache(maxsize=8)
def special_ids(tokenizer: Any) -> SpecialIds:
    """Return the ids of the special strings of a tokenizer.

    Raises:
        ValueError: a string the tokenizer lacks, or two that share an id.
    """
    vocabulary = tokenizer.get_vocab()
    names = [field.name for field in fields(SpecialIds)]
    missing = [SPECIALS[name] for name in names if SPECIALS[name] not in vocabulary]
    if missing:
        raise ValueError(f"the tokenizer lacks the special strings {missing}: it does not belong to this model")
    ids = {name: vocabulary[SPECIALS[name]] for name in names}
    if len(set(ids.values())) < len(ids):
        raise ValueError("special strings of the tokenizer share an id: it does not belong to this model")
    return SpecialIds(**ids)
