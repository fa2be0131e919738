"""The families there are, by name; a new one is a folder beside `arc_hunyuan` and a row here. No torch."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

from arcvideo.model.arc_hunyuan.family import ARC_HUNYUAN
from arcvideo.model.arc_hunyuan_1b.family import ARC_HUNYUAN_1B
from arcvideo.model.arc_qwen.family import ARC_QWEN
from arcvideo.model.families.family import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (ARC_HUNYUAN, ARC_HUNYUAN_1B, ARC_QWEN)}


@lru_cache(maxsize=8)
def family_of(tokenizer: Any) -> Family:
    """Return the family whose special strings a tokenizer has.

    Raises:
        ValueError: a tokenizer of none, with what it lacks of the first.
    """
    vocabulary = tokenizer.get_vocab()
    for family in FAMILIES.values():
        if all(text in vocabulary for text in family.strings.values()):
            return family
    missing = [text for text in ARC_HUNYUAN.strings.values() if text not in vocabulary]
    raise ValueError(f"the tokenizer lacks the special strings {missing}: it does not belong to this model")


def parts_of(name: str) -> Any:
    """Return the `PARTS` of a family: what builds its modules. Other families' modules are not imported."""
    return importlib.import_module(FAMILIES[name].parts).PARTS
