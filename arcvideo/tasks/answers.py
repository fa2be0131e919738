"""Reading a model's answer: the think and answer blocks of a completion, and the one answer among them.

Rewards, evaluation, rejection sampling and `ask` read through this file and `spans.py`, and options as `mcq.py` reads
them, so that what is optimised is what is measured and shown. Exactly one answer is read, or none: what cannot be read
without guessing is None. The table of what is read is docs/answers.md.

A completion is read from left to right: a thought lasts from `<think>` to the next `</think>`, whatever stands in it;
a thought that was opened in the prompt ends at a `</think>` of its own. What is left is the answer: the text of its one
answer block, or, without any such block, all of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Reading(Generic[Value]):
    """What was read of an answer, or why nothing was; exactly one of the two is None."""

    value: Value | None = None
    problem: str | None = None
    """For people: `empty answer`, `several letters: A, B`, ..."""


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """The two blocks of an answer."""

    think: str | None
    answer: str | None
    """Text of the only answer block; None without one, and when it is not the only one or has no end."""
    valid: bool
    """The whole text is exactly `<think>..</think><answer>..</answer>`, white space around the blocks allowed."""


_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_TAG = re.compile(r"<(/?)(think|answer)>", re.IGNORECASE)
TAKEN_BACK = re.compile(
    r"[.,:;!?。、)\n]\s*(?:no|nope|wait|actually|sorry|hmm|rather|correction)(?![A-Za-z])\s*[,.!;:-]"
    r"|(?<![A-Za-z])(?:that|this|it)(?:\s+is|\s+was|['\u2019]s)\s+(?:wrong|incorrect|not)(?![A-Za-z])"
    r"|不对|错了|更正|等等",
    re.IGNORECASE,
)
"""An answer that is withdrawn behind itself."""
_MARKUP = re.compile(
    r"\$(?!第?\d)|[*`\"\u201c\u201d\u300c-\u300f]|__|\\[()\[\]]|(?<![A-Za-z])['\u2018\u2019]|['\u2019](?![A-Za-z])"
)
_WHOLE = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)


@dataclass(kw_only=True)
class _Blocks:
    """What stands where in a completion; `problem` is why its answer cannot be told."""

    thoughts: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    spoken: list[str] = field(default_factory=list)
    """All text outside of thoughts, answers included."""
    problem: str | None = None


def _pieces(text: str) -> Iterator[tuple[str, str]]:
    """Yield (tag in lower case, the text behind it); the first tag is empty."""
    tag, start = "", 0
    for match in _TAG.finditer(text):
        yield tag, text[start : match.start()]
        tag, start = match[0].lower(), match.end()
    yield tag, text[start:]


def _blocks(text: str) -> _Blocks:
    blocks = _Blocks()
    place = ""  # the block that is open: think, answer or none
    for tag, said in _pieces(text):
        if place == "think" and tag != "</think>":
            blocks.thoughts[-1] += tag + said  # a thought is not an answer, and nothing in it is
            continue
        if tag == "<think>" and not place:
            place = "think"
            blocks.thoughts.append(said)
            continue
        if tag == "<answer>" and not place:
            place = "answer"
            blocks.answers.append(said)
        elif tag == f"</{place}>":
            place = ""
        elif tag == "</think>" and not (blocks.thoughts or blocks.answers):  # the thought began in the prompt
            blocks.thoughts.append("".join(blocks.spoken))
            blocks.spoken.clear()
        elif tag:
            blocks.problem = blocks.problem or f"{tag} out of place"
        blocks.spoken.append(said)
    if place:
        blocks.problem = blocks.problem or f"{'a thought' if place == 'think' else 'an answer'} without an end"
    elif len(blocks.answers) > 1:
        blocks.problem = blocks.problem or f"{len(blocks.answers)} answer blocks"
    return blocks


def split_answer(text: str) -> Parsed:
    """Return the blocks of `text`; in a valid answer each tag occurs once, so nothing is nested or repeated."""
    whole = _WHOLE.fullmatch(text)
    if whole and all(text.count(tag) == 1 for tag in _TAGS):
        return Parsed(think=whole[1].strip(), answer=whole[2].strip(), valid=True)
    blocks = _blocks(text)
    single = blocks.answers[0].strip() if blocks.answers and blocks.problem is None else None
    return Parsed(think=blocks.thoughts[0].strip() if blocks.thoughts else None, answer=single, valid=False)


def one_answer(text: str) -> Reading[str]:
    """Return the text of the one answer that a completion gives, with full-width characters made plain.

    Nothing is read from two answer blocks, from a block inside a thought, or when a thought or an answer has no end.
    """
    blocks = _blocks(text)
    if blocks.problem is not None:
        return Reading(problem=blocks.problem)
    said = plain("".join(blocks.answers or blocks.spoken))
    return Reading(value=said) if said else Reading(problem="empty answer")


def answer_text(text: str) -> str:
    """Return all that is said outside of thoughts: the one answer, or, where that cannot be told, every word of it.

    For free texts, whose words are counted: a transcript that runs on into a second block is wrong by all of its words.
    """
    blocks = _blocks(text)
    single = blocks.problem is None and blocks.answers
    return plain(" ".join(blocks.answers if single else blocks.spoken))


def plain(text: str) -> str:
    """Return `text` with full-width characters made plain, without white space around it."""
    return unicodedata.normalize("NFKC", text).strip()


def undecorated(text: str) -> str:
    r"""Return `text` without bold, quotes, code marks and LaTeX: `**B**`, `"B"` and `\boxed{\text{B}}` say B."""
    before = ""
    while before != text:  # the innermost braces first
        before = text
        text = re.sub(r"\\boxed\s*\{([^{}]*)\}", r" answer: \1 ", text)
        text = re.sub(r"\\[a-z]+\s*\{([^{}]*)\}", r" \1 ", text)
    text = _MARKUP.sub(" ", text)
    text = re.sub(r"[^\S\n]+", " ", text)  # long white space would be tried in every split
    return re.sub(r" ?\n\s*", "\n", text).strip()
