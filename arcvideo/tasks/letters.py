"""Reading the option an answer names: one letter, or none (docs/answers.md).

An answer is looked through for everything that may name an option: letters that stand alone, and the options' own
texts. Only when all of it names the same option, and a letter stands where an answer is given, is it read.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from arcvideo.tasks.blocks import TAKEN_BACK, Reading, one_answer, plain, undecorated

_LEAD_MARK = "\ue000"  # stands for "the answer is", "选", ...
_TEXT_MARK = 0xE100  # + the number of an option: stands for the text of that option
_TEXTS = "\ue100-\ue1ff"

_KIND = r"(?:answer|option|choice|letter)(?![a-z])"
_LEAD = re.compile(
    rf"(?<![a-z])(?:(?:the|my|your)\s+)?(?:(?:final|correct|right|best|most likely)\s+)*{_KIND}\s*"
    rf"(?:(?:is|would be|should be|must be)(?![a-z])\s*|[:=]\s*)*(?:(?:the\s+)?{_KIND}\s*:?\s*)?"
    r"|(?<![a-z])(?:i\s+(?:choose|select|pick)|it\s+(?:is|must\s+be)|it's)(?![a-z])\s*"
    r"|(?:应该?|应当)?(?:正确|最佳|最终)?的?(?:答案|选项|选择|选)(?:应该|应当|应)?(?:是|为|选择|选)?\s*:?\s*(?:选项)?\s*"
    r"|(?:应该?|应当)是\s*",
    re.IGNORECASE,
)
_LETTER = re.compile(r"(?<![A-Za-z0-9_'\u2019])[A-Za-z](?![A-Za-z0-9_]|['\u2019][A-Za-z])")
_COMPOUND = (re.compile(r"[A-Za-z]{2,}-$"), re.compile(r"-[A-Za-z]{2,}"))  # vitamin-C, T-shirt
_UNIT = re.compile(r"\d\s*$")  # 12 s
_ABBREVIATION = re.compile(r"\b(?:e\.\s?g|i\.\s?e|a\.\s?m|p\.\s?m)\.", re.IGNORECASE)
_CLOSED = re.compile(rf"{_LEAD_MARK}|\s*(?:$|[.,:;!?/)\]}}】》。、\n{_TEXTS}]|[-\u2010-\u2015]\s)")
_JOINED = re.compile(r"\s*(?:[\u4e00-\u9fff&]|(?:is|are|was|and|or|but|nor|because|since|not)(?![A-Za-z]))")
_BEFORE = re.compile(rf"(?:^|{_LEAD_MARK})[\s(\[{{【《]*$")
_RIGHT = rf"项?\s*是?(?:正确|对)|项|{_LEAD_MARK}|\s+(?:is|must be)\s+(?:(?:the\s+)?(?:right|correct|best)|{_LEAD_MARK})"
_AFTER = re.compile(rf"[\s)\]}}】》]*(?:$|[.,:;!)\]}}】》。、{_TEXTS}]|[-\u2010-\u2015]\s|{_RIGHT})|[ )\]}}】》]*\n")
_NEGATED = re.compile(
    r"(?<![A-Za-z])(?:not|no|never|neither|nor|cannot|wrong|incorrect|unlikely|doubt|which|if)(?![A-Za-z])|n['\u2019]t"
    r"|[不没非错否哪]",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[.,;!?。、\n]")
_NEAR = 40  # characters that tell a letter from a word
_AROUND = " \t\n.,:;!。、，()[]{}【】《》-"


@dataclass(frozen=True, kw_only=True)
class _Mention:
    """A letter that names an option."""

    letter: str
    start: int


def read_letter(text: str, *, options: Sequence[str] | None = None) -> Reading[str]:
    """Return the option letter that a completion names, or why there is no single one.

    Args:
        text: A completion; its answer block counts when there is one, else all of it.
        options: The option texts, if known. A text then names its option, and must agree with the letter.
    """
    answer = one_answer(text)
    if answer.value is None:
        return answer
    said = _marked(undecorated(answer.value), options=options or ())
    mentions = _mentions(said)
    letters = sorted({mention.letter for mention in mentions})
    texts = sorted({chr(ord("A") + ord(mark) - _TEXT_MARK) for mark in re.findall(f"[{_TEXTS}]", said)})
    if not letters:
        alone = re.fullmatch(rf"[\s{_LEAD_MARK}{re.escape(_AROUND)}]*[{_TEXTS}][\s{re.escape(_AROUND)}]*", said)
        return Reading(value=texts[0]) if alone else Reading(problem="no option letter")
    if len(letters) > 1:
        return Reading(problem=f"several letters: {', '.join(letters)}")
    (letter,) = letters
    if options is not None and ord(letter) - ord("A") >= len(options):
        return Reading(problem=f"letter {letter} of {len(options)} options")
    others = [other for other in texts if other != letter]
    if others:
        return Reading(problem=f"letter {letter} with the text of option {', '.join(others)}")
    if not any(_is_answer(said, mention) for mention in mentions):
        return Reading(problem="no option letter")
    if TAKEN_BACK.search(said):
        return Reading(problem=f"letter {letter} is taken back")
    return Reading(value=letter)


def last_named(text: str, *, options: Sequence[str]) -> str | None:
    """Return the letter of the option whose text a thought names last; None when it names none."""
    marks = re.findall(f"[{_TEXTS}]", _marked(undecorated(plain(text)), options=options))
    return chr(ord("A") + ord(marks[-1]) - _TEXT_MARK) if marks else None


def _marked(said: str, *, options: Sequence[str]) -> str:
    """Put one mark in place of each lead and of each option text; where both begin, the longer one counts."""
    said = _ABBREVIATION.sub(" ", said)
    texts = [undecorated(plain(option)).strip(_AROUND).casefold() for option in options]
    # A text that two options share, but for case, names neither; a text of one character is taken for a letter.
    # Most answers are a letter: what cannot stand in them is not looked for, which costs a compiled pattern each.
    patterns = {
        index: _pattern(text)
        for index, text in enumerate(texts)
        if 1 < len(" ".join(text.split())) <= len(said) and texts.count(text) == 1
    }
    marks, place = [], 0
    while place < len(said):
        candidates = [(match.end(), _LEAD_MARK) for match in (_LEAD.match(said, place),) if match]
        for index, pattern in patterns.items():
            match = pattern.match(said, place)
            if match:
                candidates.append((match.end(), chr(_TEXT_MARK + index)))
        end, mark = max(candidates, default=(place + 1, said[place]))
        marks.append(mark)
        place = end
    return "".join(marks).strip()


def _pattern(text: str) -> re.Pattern[str]:
    """Return what finds an option's text as whole words, however its white space is written."""
    body = r"\s+".join(re.escape(word) for word in text.split())
    first, last = (r"(?<![A-Za-z0-9])" if text[0].isalnum() else ""), (r"(?![A-Za-z0-9])" if text[-1].isalnum() else "")
    return re.compile(f"{first}{body}{last}", re.IGNORECASE)


def _mentions(said: str) -> list[_Mention]:
    """Return the letters that stand alone and are neither an article, a pronoun, a unit nor part of a compound."""
    mentions = []
    for match in _LETTER.finditer(said):
        letter = match[0]
        before, after = said[max(match.start() - _NEAR, 0) : match.start()], said[match.end() : match.end() + _NEAR]
        if _COMPOUND[0].search(before) or _COMPOUND[1].match(after) or (letter.islower() and _UNIT.search(before)):
            continue
        word = letter in "AIai"  # also words: "A blue car", "I think"
        if word and not _CLOSED.match(after) and not (letter == "A" and _JOINED.match(after)):
            continue
        mentions.append(_Mention(letter=letter.upper(), start=match.start()))
    return mentions


def _is_answer(said: str, mention: _Mention) -> bool:
    """Return whether a letter stands where an answer is given: first, behind a lead, or on a line of its own."""
    before, after = said[: mention.start], said[mention.start + 1 :]
    if before.rpartition("\n")[2].strip(_AROUND) == "" and after.partition("\n")[0].strip(_AROUND) == "":
        return True
    if not (_BEFORE.search(before) and _AFTER.match(after)):
        return False
    return not _NEGATED.search(_CLAUSE.split(before)[-1])
