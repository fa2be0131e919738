"""Token ids and the supervised mask of a sample, made together in one pass.

A conversation about a clip is `<|startoftext|>` [text before] `<vid>` frames `</vid>` [text after, instruction]
`<sep>` answer `<|endoftext|>`, further turns without a new start. It is cut behind `</vid>`: the prefix belongs to the
clip, the branch to one item, so that many items of a clip share one prefix. Without media the branch is everything.

A record may have several media, clips, pictures and sounds. Each stands where its `<video>` stands, or all in front.
`<vid>` opens the first and `</vid>` closes the last, as in the released code, and text may stand between them; families
whose frames have no marks give each medium a pair. The cut is behind the last medium of the first question; a
conversation that shows media behind its first answer is not cut, it is a branch with the media inside.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from arcvideo.layout import MediaLayout
from arcvideo.model.special import SpecialIds, special_ids, template_of
from arcvideo.tasks.fields import RecordError, suffix
from arcvideo.types import Sample

Ids = npt.NDArray[np.int64]
N = TypeVar("N", int, npt.NDArray[np.int64])
MEDIA_TAG = "<video>"
TEXT_FORMAT = 1
"""Raised whenever rendering changes, so that stored token counts are made again."""


@lru_cache(maxsize=8)
def fingerprint(tokenizer: Any) -> str:
    """Return 16 hex digits that change with anything in the tokenizer that could change a token count."""
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
class SplitQuestion:
    """The first question, cut at its media tags."""

    texts: tuple[str, ...]
    """What stands before each medium of the first question."""
    after: str
    """What stands behind the last of them."""
    later: int
    """Media of further questions."""

    @property
    def before(self) -> str:
        """The text before a sample's only medium."""
        return "".join(self.texts)


def split_question(sample: Sample) -> SplitQuestion:
    """Return what stands around the media of the first question; without any tag all media come first.

    The released code replaces the exact string `<video>` + newline only; a tag without its newline is accepted here.
    Behind each of several media text stands as it is written.

    Raises:
        RecordError: `bad_media_tag`: as many tags as media are needed, or none.
    """
    count = 0 if sample.media_key is None else sample.media_count
    first, *further = (turn.question.split(MEDIA_TAG) for turn in sample.turns)
    later = sum(len(pieces) - 1 for pieces in further)
    tags = len(first) - 1 + later
    if tags not in (0, count):
        raise RecordError("bad_media_tag", f"{tags} {MEDIA_TAG} in the questions of a record with {media_named(count)}")
    if not tags:
        return SplitQuestion(texts=("",) * count, after=first[0], later=0)
    after = first[-1].removeprefix("\n") if len(first) > 1 and count == 1 else first[-1]
    return SplitQuestion(texts=tuple(first[:-1]), after=after, later=later)


def media_named(count: int) -> str:
    """Return a number of media in words, for a message."""
    return {0: "no media", 1: "one medium"}.get(count, f"{count} media")


def media_length(frame_count: N, *, layout: MediaLayout) -> N:
    """Return tokens from `<vid>` to `</vid>`, of one number of frames or an array of them."""
    return 2 + layout.groups(frame_count) * (layout.tokens_per_group + layout.marks)


def media_lengths(frame_counts: Sequence[int], *, layout: MediaLayout) -> int:
    """Return tokens of all media of a conversation, its `<vid>` and `</vid>` included, text between them not."""
    groups = sum(layout.groups(count) for count in frame_counts)
    pairs = 1 if layout.one_pair else len(frame_counts)
    return 2 * pairs + groups * (layout.tokens_per_group + layout.marks) if frame_counts else 0


def media_ids(frame_counts: Sequence[int], *, tokenizer: Any, layout: MediaLayout) -> list[Ids]:
    """Return the ids of each medium of a conversation, (n,) int64; row ends still carry the newline id."""
    from arcvideo.model.positions import video_ids  # imports torch, which counting tokens does without

    special = special_ids(tokenizer)
    whole = [video_ids(layout.grid, frames=count, special=special).numpy() for count in frame_counts]
    if not layout.one_pair:
        return whole
    last = len(whole) - 1
    return [ids[number > 0 : len(ids) - (number < last)] for number, ids in enumerate(whole)]


def render_prefix(*, frame_count: int, before: str, tokenizer: Any, layout: MediaLayout) -> Ids:
    """Return (n,) int64: start token, text before, `<vid>` frames `</vid>`; row ends still carry the newline id."""
    media = media_ids([frame_count], tokenizer=tokenizer, layout=layout)
    return render_shared((before,), media=media, tokenizer=tokenizer)


def render_shared(texts: Sequence[str], *, media: Sequence[Ids], tokenizer: Any) -> Ids:
    """Return (n,) int64: start token, then each medium behind its text.

    Args:
        texts: `SplitQuestion.texts`.
        media: from `media_ids`, as many.
    """
    pieces = [written("opening", tokenizer)]
    for number, (text, ids) in enumerate(zip(texts, media, strict=True)):
        text = _behind(text, tokenizer=tokenizer) if number else text
        pieces += [encode(text, tokenizer=tokenizer), ids]
    return np.concatenate(pieces)


def _behind(text: str, *, tokenizer: Any) -> str:
    """Return text behind a medium: the newline of its tag as the family writes it."""
    return f"{template_of(tokenizer).behind_media}{text[1:]}" if text.startswith("\n") else text


def render_branch(sample: Sample, *, tokenizer: Any, wording: str) -> Branch:
    """Return the ids behind the prefix (with the start token when there is no media), and which of them are supervised.

    Raises:
        RecordError: the text holds a structural special token or a misplaced media tag.
    """
    question = split_question(sample)
    if question.later:
        raise RecordError("bad_media_tag", f"{MEDIA_TAG} behind the first answer: the conversation has no prefix")
    start = [] if question.texts else [written("opening", tokenizer)]
    question_text = _asked(sample, question, wording=wording, tokenizer=tokenizer)
    return _branch(sample, start=start, question_text=question_text, media=iter(()), tokenizer=tokenizer)


def render_whole(sample: Sample, *, media: Sequence[Ids], tokenizer: Any, wording: str) -> Branch:
    """Return the same of a conversation that is not cut: from the start token on, with its media.

    Args:
        media: ids of each, from `media_ids`; empty ones leave the text alone.

    Raises:
        RecordError: as `render_branch`.
    """
    question = split_question(sample)
    shown = iter(media)
    first = [ids for _, ids in zip(question.texts, shown, strict=False)]
    start = render_shared(question.texts, media=first, tokenizer=tokenizer)
    question_text = _asked(sample, question, wording=wording, tokenizer=tokenizer)
    return _branch(sample, start=[start], question_text=question_text, media=shown, tokenizer=tokenizer)


def cut_prompt(prefix: Ids, branch: Branch, *, specials: SpecialIds) -> tuple[Ids, Ids]:
    """Return the prompt of a branch in two parts: up to its last medium, and the rest of the first question.

    Args:
        prefix: of the branch; empty where the branch is the whole conversation.
        specials: of the tokenizer.
    """
    question_ids = branch.ids[: branch.question_tokens]
    marks = [specials.vid_open, specials.vid_close, specials.image, specials.newline, specials.img_close]
    last = np.flatnonzero(np.isin(question_ids, marks))
    if len(prefix) or not len(last):
        return prefix, question_ids
    return question_ids[: last[-1] + 1], question_ids[last[-1] + 1 :]


def _branch(
    sample: Sample, *, start: Sequence[Ids], question_text: str, media: Iterator[Ids], tokenizer: Any
) -> Branch:
    """Return the turns behind what stands before the first question's last part; `media` are those of further
    questions.
    """
    end = np.array([special_ids(tokenizer).end])
    pieces: list[tuple[Ids, bool]] = [(ids, False) for ids in start]
    for number, turn in enumerate(sample.turns):
        if number:
            pieces.append((written("between", tokenizer), False))
        human, *behind = [question_text] if not number else turn.question.split(MEDIA_TAG)
        pieces.append((encode(human, tokenizer=tokenizer), False))
        for text in behind:
            pieces += [(next(media), False), (encode(_behind(text, tokenizer=tokenizer), tokenizer=tokenizer), False)]
        pieces.append((written("separator", tokenizer), False))
        if number == 0:
            question_tokens = sum(len(ids) for ids, _ in pieces)
        pieces += [(encode(turn.answer, tokenizer=tokenizer), True), (end, True)]
    return Branch(
        ids=np.concatenate([ids for ids, _ in pieces]),
        is_target=np.repeat([target for _, target in pieces], [len(ids) for ids, _ in pieces]),
        question_tokens=question_tokens,
    )


@lru_cache(maxsize=32)
def written(part: str, tokenizer: Any) -> Ids:
    """Return (n,) int64 ids of a part of the template, with its special strings."""
    text = getattr(template_of(tokenizer), part)
    ids = np.array(tokenizer.encode(text, add_special_tokens=False) if text else [], dtype=np.int64)
    ids.setflags(write=False)
    return ids


def _asked(sample: Sample, question: SplitQuestion, *, wording: str, tokenizer: Any) -> str:
    """Return the first question behind its media, with its instruction."""
    instruction = suffix(sample.instruction, wording=wording)
    text = f"{question.after}\n{instruction}" if instruction else question.after
    if sample.media_count > 1 and MEDIA_TAG in sample.turns[0].question:
        return _behind(text, tokenizer=tokenizer)
    return f"{template_of(tokenizer).behind_media}{text}" if question.texts else text


def encode(text: str, *, tokenizer: Any) -> Ids:
    """Return (n,) int64 ids of plain text.

    Special strings are recognised in plain text by the released tokenizer, so text with one of the structural ones
    would forge a turn or a frame; such text is refused.

    Raises:
        RecordError: `special_in_text`.
    """
    return (_kept if len(text) <= _SHORT else _encoded)(text, tokenizer)


def _encoded(text: str, tokenizer: Any) -> Ids:
    tokens = tokenizer.encode(text, add_special_tokens=False) if text else []
    structural = frozenset(vars(special_ids(tokenizer)).values())
    if not structural.isdisjoint(tokens):
        forged = tokenizer.convert_ids_to_tokens([token for token in tokens if token in structural])
        raise RecordError("special_in_text", f"text contains {forged}")
    ids = np.array(tokens, dtype=np.int64)
    ids.setflags(write=False)
    return ids


_kept = lru_cache(maxsize=1 << 12)(_encoded)
_SHORT = 1_000
"""Characters of a text that is worth keeping: questions repeat from clip to clip, long answers do not."""
