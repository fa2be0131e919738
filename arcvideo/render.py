"""Token ids and the supervised mask of a sample, made together in one pass.

A conversation about a clip is `<|startoftext|>` [text before] `<vid>` frames `</vid>` [text after, instruction]
`<sep>` answer `<|endoftext|>`, further turns without a new start. It is cut behind `</vid>`: the prefix belongs to the
clip, the branch to one item, so that many items of a clip share one prefix. Without media the branch is everything.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from arcvideo.layout import MediaLayout
from arcvideo.model.special import special_ids, template_of
from arcvideo.tasks.fields import RecordError
from arcvideo.tasks.instructions import suffix
from arcvideo.types import Sample

Ids = npt.NDArray[np.int64]
N = TypeVar("N", int, npt.NDArray[np.int64])
MEDIA_TAG = "<video>"
TEXT_FORMAT = 1
"""Raised whenever rendering changes, so that stored token counts are made again."""


@lru_cache(maxsize=8)
def fingerprint(tokenizer: Any) -> str:
    """16 hex digits that change with anything in the tokenizer that could change a token count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    described = backend.to_str() if backend is not None else json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(described.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One item behind its clip's prefix."""

    ids: Ids
    """(n,) int64."""
    is_target: npt.NDArray[np.bool_]
    """(n,) True where the token is supervised: answers and the end token behind each."""
    question_tokens: int
    """Length of the prompt part: up to and including the first `<sep>`."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """The first question, cut at the media tag."""

    before: str
    after: str


def split_question(sample: Sample) -> Question:
    """What stands before and behind the frames; without a tag the frames come first.

    The released code replaces the exact string `<video>` + newline only; a tag without its newline is accepted here.

    Raises:
        RecordError: `bad_media_tag`: several tags, a tag in a later turn, or a tag without media.
    """
    first = sample.turns[0].question
    tags = sum(turn.question.count(MEDIA_TAG) for turn in sample.turns)
    if tags > 1 or first.count(MEDIA_TAG) != tags:
        raise RecordError("bad_media_tag", f"{MEDIA_TAG!r} may occur once, in the first question")
    if tags and sample.media_key is None:
        raise RecordError("bad_media_tag", f"{MEDIA_TAG!r} in the question of a record without media")
    before, _, after = first.partition(MEDIA_TAG) if tags else ("", "", first)
    return Question(before=before, after=after.removeprefix("\n") if tags else after)


def media_length(frame_count: N, *, layout: MediaLayout) -> N:
    """Tokens from `<vid>` to `</vid>`, of one number of frames or an array of them."""
    return 2 + layout.groups(frame_count) * (layout.tokens_per_group + layout.marks)


def render_prefix(*, frame_count: int, before: str, tokenizer: Any, layout: MediaLayout) -> Ids:
    """(n,) int64: start token, text before, `<vid>` frames `</vid>`; row ends still carry the newline id."""
    from arcvideo.model.positions import video_ids  # imports torch, which counting tokens does without

    special = special_ids(tokenizer)
    frames = video_ids(layout.grid, frames=frame_count, special=special).numpy()
    return np.concatenate([written("opening", tokenizer), encode(before, tokenizer=tokenizer), frames])


def render_branch(sample: Sample, *, tokenizer: Any, wording: str) -> Branch:
    """The ids behind the prefix (with the start token when there is no media), and which of them are supervised.

    Raises:
        RecordError: the text holds a structural special token or a misplaced media tag.
    """
    special = special_ids(tokenizer)
    pieces: list[tuple[Ids, bool]] = []
    if sample.media_key is None:
        pieces.append((written("opening", tokenizer), False))
    behind = template_of(tokenizer).behind_media
    for number, turn in enumerate(sample.turns):
        human = _first_human(sample, wording=wording, behind_media=behind) if number == 0 else turn.question
        if number:
            pieces.append((written("between", tokenizer), False))
        pieces += [(encode(human, tokenizer=tokenizer), False), (written("separator", tokenizer), False)]
        if number == 0:
            question_tokens = sum(len(ids) for ids, _ in pieces)
        pieces += [(encode(turn.answer, tokenizer=tokenizer), True), (np.array([special.end]), True)]
    return Branch(
        ids=np.concatenate([ids for ids, _ in pieces]),
        is_target=np.repeat([target for _, target in pieces], [len(ids) for ids, _ in pieces]),
        question_tokens=question_tokens,
    )


@lru_cache(maxsize=32)
def written(part: str, tokenizer: Any) -> Ids:
    """(n,) int64 ids of a part of the template, with its special strings."""
    text = getattr(template_of(tokenizer), part)
    ids = np.array(tokenizer.encode(text, add_special_tokens=False) if text else [], dtype=np.int64)
    ids.setflags(write=False)
    return ids


def _first_human(sample: Sample, *, wording: str, behind_media: str) -> str:
    question = split_question(sample).after
    instruction = suffix(sample.instruction, wording=wording)
    asked = f"{question}\n{instruction}" if instruction else question
    return f"{behind_media}{asked}" if sample.media_key is not None else asked


def encode(text: str, *, tokenizer: Any) -> Ids:
    """(n,) int64 ids of plain text.

    Special strings are recognised in plain text by the released tokenizer, so text with one of the structural ones
    would forge a turn or a frame; such text is refused.

    Raises:
        RecordError: `special_in_text`.
    """
    return _encoded(text, tokenizer)


@lru_cache(maxsize=1 << 14)  # questions repeat from clip to clip
def _encoded(text: str, tokenizer: Any) -> Ids:
    ids = np.array(tokenizer.encode(text, add_special_tokens=False) if text else [], dtype=np.int64)
    forged = ids[np.isin(ids, list(vars(special_ids(tokenizer)).values()))]
    if len(forged):
        raise RecordError("special_in_text", f"text contains {tokenizer.convert_ids_to_tokens(forged.tolist())}")
    ids.setflags(write=False)
    return ids
