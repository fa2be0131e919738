"""Whether an item of a record can be used at all: asked by the index and, before media are copied, by the importers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from arcvideo.model.special import SPECIALS
from arcvideo.render import MEDIA_TAG, split_question
from arcvideo.shards.text import whole
from arcvideo.tasks import RecordError, make_sample
from arcvideo.types import Sample

_LARGEST = 10**300
"""Numbers beyond have no place in a float."""
_LONGEST = 200_000
"""Characters of an item's texts: several times what contexts of 20,000 tokens hold."""
_MEDIA_TAGS = re.compile(
    r"<\|?(?:video|image|audio|vision|vid|img)(?:_?\d{1,4}|_(?:pad|start|end|bos|eos|soft_token))?\|?>|<ImageHere>",
    re.IGNORECASE,
)
"""Where media stand in the texts of this and other formats."""


def checked_sample(item: Any, *, key: str, has_media: bool, media_count: int = 1) -> Sample:
    """Return the sample of an item, made in the plain style, when it can be made in every style.

    Args:
        item: from JSON.
        key: of the item.
        has_media: whether its record is about a clip.
        media_count: how many media the record has then.

    Raises:
        RecordError: what is wrong with it, whatever it is.
    """
    media_key = key if has_media else None
    try:
        check_values(item)
        sample = make_sample(item, key=key, media_key=media_key, style="plain", media_count=media_count)
        thought = make_sample(item, key=key, media_key=media_key, style="think")
        tags = item.get("tags") or []
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise RecordError("bad_tags", "'tags' must be a list of strings")
    except RecordError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        # One odd item must not cost the other records of a shard, whatever a task did not expect.
        raise RecordError("bad_item", f"{type(error).__name__}: {error}") from error
    _check_length(sample, thought)
    _check_tags(sample)
    return sample


def _check_length(*samples: Sample) -> None:
    """Complain about more text than any context holds: whoever asks about it would run out of memory.

    Raises:
        RecordError: `long_text`.
    """
    for sample in samples:
        length = sum(len(turn.question) + len(turn.answer) for turn in sample.turns)
        if length > _LONGEST:
            raise RecordError("long_text", f"{length} characters of text; at most {_LONGEST} are read")


def check_values(value: Any) -> None:
    """Complain about what cannot be written as JSON or has no place in a float, anywhere in a value from JSON.

    Raises:
        RecordError: `broken_text`, `bad_number`.
    """
    for part in _values(value):
        if isinstance(part, str):
            whole(part)
        elif isinstance(part, int) and abs(part) > _LARGEST:
            raise RecordError("bad_number", f"a number of {part.bit_length()} bits")


def check_renders(sample: Sample) -> None:
    """Complain about a text that no tokenizer of this model can take, which the index leaves to the token counts.

    Raises:
        RecordError: `special_in_text`, `bad_media_tag`.
    """
    split_question(sample)
    for turn in sample.turns:
        for text in (turn.question, turn.answer):
            specials = [special for special in SPECIALS.values() if special in text]
            if specials:
                raise RecordError("special_in_text", f"text contains {specials}")


def _check_tags(sample: Sample) -> None:
    """Media tags that would be taught as text: any in an answer, and those of other formats in a question."""
    for turn in sample.turns:
        for text, where in ((turn.question.replace(MEDIA_TAG, ""), "question"), (turn.answer, "answer")):
            match = _MEDIA_TAGS.search(text)
            if match is not None and match[0] not in SPECIALS.values():
                detail = f"{match[0]!r} in the {where} would be taught as text; {MEDIA_TAG!r} may stand in questions"
                raise RecordError("bad_media_tag", detail)


def _values(value: Any) -> Iterator[Any]:
    """Yield everything in a JSON value, names of fields included."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            waiting += value
        else:
            yield value
