"""The special strings of a tokenizer and their ids (torch-free)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from arcvideo.model.arc_hunyuan.family import ARC_HUNYUAN
from arcvideo.model.families.family import Template
from arcvideo.model.families.table import FAMILIES, family_of

SPECIALS: dict[str, str] = {
    "end": ARC_HUNYUAN.strings["end"],
    "start": ARC_HUNYUAN.strings["start"],
    "bos": "<|bos|>",
    **{name: text for name, text in ARC_HUNYUAN.strings.items() if name not in ("end", "start")},
}
"""Name -> string of the released tokenizer, in the order in which the tiny tokenizer appends them."""
ALL_SPECIALS = frozenset(text for family in FAMILIES.values() for text in family.strings.values())
"""Strings with a meaning in some family."""

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


@dataclass(frozen=True, kw_only=True)
class FlatIds(SpecialIds):
    """The same where frames have no marks: the last cell of a row is `newline`, the last of a group `img_close`.

    Both become `image` before the model sees them. The defaults are Qwen2.5-VL's.
    """

    start: int = 151644
    end: int = 151645
    eos: int = 151643
    sep: int = 151645
    pad: int = 151643
    img_open: int = 151654
    img_close: int = 151654
    newline: int = 151655
    image: int = 151656
    vid_open: int = 151652
    vid_close: int = 151653


@lru_cache(maxsize=8)
def special_ids(tokenizer: Any) -> SpecialIds:
    """Return the ids of the special strings of a tokenizer.

    Raises:
        ValueError: strings that the tokenizer lacks, or two that share an id.
    """
    family = family_of(tokenizer)
    vocabulary = tokenizer.get_vocab()
    ids = {field.name: vocabulary[family.strings[field.name]] for field in fields(SpecialIds)}
    if len(set(ids.values())) < len(set(family.strings.values())):
        raise ValueError("special strings of the tokenizer share an id: it does not belong to this model")
    return SpecialIds(**ids) if family.marks else FlatIds(**ids)


def default_ids(family: str) -> SpecialIds:
    """Return ids for a model without a tokenizer: the released ones where they are known, else any distinct ones."""
    return SpecialIds() if FAMILIES[family].marks else FlatIds()


def template_of(tokenizer: Any) -> Template:
    """Return how the tokenizer's family writes a conversation."""
    return family_of(tokenizer).template
