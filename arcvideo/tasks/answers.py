"""Reading a model's answer: the think and answer blocks, an option letter, a time span.

Rewards and evaluation use the same functions, so that what is optimised is what is measured. All of them are strict:
what cannot be read without guessing is None.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """The two blocks of an answer."""

    think: str | None
    answer: str | None
    valid: bool
    """The whole text is exactly `<think>..</think><answer>..</answer>`, white space around the blocks allowed."""


_TAGS = ("<think>", "</think>", "<answer>", "</answer>")
_WHOLE = re.compile(r"\s*<think>(.*?)</think>\s*<answer>(.*?)</answer>\s*", re.DOTALL)
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_OPEN_THINK = re.compile(r"<think>.*", re.DOTALL)


def split_answer(text: str) -> Parsed:
    """The blocks of `text`; each tag may occur only once in a valid answer, so nothing can be nested or repeated."""
    whole = _WHOLE.fullmatch(text)
    if whole and all(text.count(tag) == 1 for tag in _TAGS):
        return Parsed(think=whole[1].strip(), answer=whole[2].strip(), valid=True)
    think, answer = _THINK.search(text), _ANSWER.search(_THINK.sub(" ", text))  # a thought is not an answer
    return Parsed(think=think[1].strip() if think else None, answer=answer[1].strip() if answer else None, valid=False)


def answer_text(text: str) -> str:
    """What the answer block says; without a block, what stands outside thoughts, a thought that never ends included.

    Full-width characters become plain ones.
    """
    block = split_answer(text).answer
    if block is None:
        block = _OPEN_THINK.sub(" ", _THINK.sub(" ", text))
    return unicodedata.normalize("NFKC", block).strip()


_LEAD = (
    r"(?:(?:so|thus|therefore|hence)[, ]+)?(?:the )?(?:(?:final|correct|right|best) )?(?:answer|option|choice)"
    r"(?: is)?\s*:?\s*(?:option )?|(?:正确)?(?:答案|选项|选择|选)(?:是|为)?\s*:?\s*"
)
_LETTER = re.compile(rf"(?P<lead>{_LEAD})?(?:\((?P<round>[A-Z])\)|(?P<bare>[A-Z]))(?P<rest>.*)", re.DOTALL | re.I)
_OTHER_LETTER = re.compile(r"\([A-Z]\)|(?<![A-Za-z])[A-Z](?:[.):,]|\s*$)")


def parse_letter(text: str, *, options: Sequence[str] | None = None) -> str | None:
    """The option letter an answer names: 'B', 'B.', '(B)', 'B. blue', 'Answer: B'; None when there is no single one.

    Args:
        text: A completion; its answer block counts when there is one, else all of it.
        options: The option texts, if known: letters beyond them and a letter before another option's text are None.
    """
    found = _LETTER.fullmatch(answer_text(text))
    if not found:
        return None
    letter = (found["round"] or found["bare"]).upper()
    rest = found["rest"]
    if options is not None and ord(letter) - ord("A") >= len(options):
        return None
    said = rest.lstrip(" \t\n.,:;)]、。-").rstrip(" \t\n.。").lower()
    if options is not None and said and said in [option.strip().lower() for option in options]:
        return letter if said == options[ord(letter) - ord("A")].strip().lower() else None
    separated = not rest.strip() or rest[0] in ".,:;)、。" or (rest[0] == "\n")
    if not separated or _OTHER_LETTER.search(rest):
        return None
    return letter


_CLOCK = r"(?:\d{1,2}:)?\d{1,2}:\d{2}(?:\.\d+)?"
_NUMBER = r"\d+(?:\.\d+)?"
_UNIT = r"\s*(?:seconds|second|secs|sec|s|秒)(?![a-z])"
_DASH = r"\s*(?:-+>?|[\u2010-\u2015\u2212~]|\bto\b|\buntil\b|\band\b|至|到)\s*"
_SPANS = (
    re.compile(rf"(?<![\d:.])({_CLOCK}){_DASH}({_CLOCK})(?![\d:])", re.I),
    re.compile(rf"(?<![\d:.])({_NUMBER})(?:{_UNIT})?{_DASH}({_NUMBER}){_UNIT}", re.I),
)
_BARE_SPAN = re.compile(rf"\[?\(?\s*({_NUMBER})(?:{_DASH}|\s*,\s*)({_NUMBER})\s*\)?\]?\.?", re.I)


def parse_span(text: str) -> tuple[float, float] | None:
    """(start, end) in seconds of the first time range an answer names; None when there is none or it is reversed.

    Understands HH:MM:SS and MM:SS clocks, '3.5s to 7 s', an optional `<span>` tag, all dashes, and Chinese connectors.
    """
    bounds = parse_bounds(text)
    return bounds if bounds is not None and bounds[0] <= bounds[1] else None


def parse_bounds(text: str) -> tuple[float, float] | None:
    """As `parse_span`, but a reversed range is returned as it was written."""
    said = re.sub(r"</?span>", " ", answer_text(text))
    for pattern in _SPANS:
        found = pattern.search(said)
        if found:
            break
    else:
        found = _BARE_SPAN.fullmatch(said.strip())
    if not found:
        return None
    start, end = _seconds(found[1]), _seconds(found[2])
    return (start, end) if start is not None and end is not None else None


def _seconds(clock: str) -> float | None:
    """Seconds of 'HH:MM:SS', 'MM:SS' or a plain number; None for 75 seconds past the minute and the like."""
    *larger, seconds = clock.split(":")
    if (larger and float(seconds) >= 60) or (len(larger) == 2 and int(larger[1]) >= 60):
        return None
    return sum(int(part) * 60**power for power, part in enumerate(reversed(larger), start=1)) + float(seconds)


def temporal_iou(first: tuple[float, float], second: tuple[float, float]) -> float:
    """Intersection over union of two time spans in seconds; 0 when both are empty."""
    shared = min(first[1], second[1]) - max(first[0], second[0])
    union = max(first[1], second[1]) - min(first[0], second[0])
    return max(0.0, shared) / union if union > 0 else 0.0


def clock(seconds: float) -> str:
    """'HH:MM:SS' of the nearest whole second, halves up."""
    whole = int(seconds + 0.5)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def clock_span(span: tuple[float, float]) -> str:
    """'HH:MM:SS - HH:MM:SS'; a span that rounds to nothing is widened to one second."""
    start, end = int(span[0] + 0.5), int(span[1] + 0.5)
    return f"{clock(start)} - {clock(max(end, start + 1))}"
