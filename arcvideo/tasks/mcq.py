"""Multiple choice: options A, B, ... and the letter of the right one.

An answer is looked through for everything that may name an option: letters that stand alone, and the options' own
texts. Only when all of it names the same option, and a letter stands where an answer is given, is it read
(docs/answers.md).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from arcvideo.tasks.blocks import TAKEN_BACK, Reading, one_answer, plain, split_answer, undecorated
from arcvideo.tasks.fields import RecordError, conversation, required_text, styled_answer
from arcvideo.tasks.task import Asked, Measure, Score, Task, Truth, known
from arcvideo.types import Sample

_LEAD_MARK = "\ue000"  # stands for "the answer is", "选", ...
_TEXT_MARK = 0xE100  # + the number of an option: stands for the text of that option
_TEXTS = "\ue100-\ue1ff"

_KIND = r"(?:answer|option|choice|letter)(?![a-z])"
_LEAD = re.compile(
    rf"(?<![a-z])(?:(?:the|my|your)\s+)?(?:(?:final|correct|right|best|most likely)\s+)*{_KIND}\s*"
    rf"(?:(?:is|would be|should be|must be)(?![a-z])\s*|[:=]\s*)*(?:(?:the\s+)?{_KIND}\s*:?\s*)?"
    r"|(?<![a-z])(?:i(?:\s+would|['\u2019]d)?\s+(?:choose|select|pick|go\s+with)|it\s+(?:is|(?:must|should|would)\s+be)|it's)"
    r"(?![a-z])\s*|(?<![a-z])(?:so|thus|hence|therefore)(?![a-z])\s*[,:]?\s*"
    r"|(?:应该?|应当)?(?:正确|最佳|最终)?的?(?:答案|选项|选择|选)(?:应该|应当|应)?(?:是|为|选择|选)?\s*:?\s*(?:选项)?\s*"
    r"|(?:应该?|应当)是\s*",
    re.IGNORECASE,
)
_LETTER = re.compile(r"(?<![A-Za-z0-9_'\u2019])[A-Za-z](?![A-Za-z0-9_]|['\u2019][A-Za-z])")
_COMPOUND = (re.compile(r"[A-Za-z]{2,}-$"), re.compile(r"-[A-Za-z]{2,}"))  # vitamin-C, T-shirt
_UNIT = re.compile(r"\d\s*$")  # 12 s
_ABBREVIATION = re.compile(r"\b(?:e\.\s?g|i\.\s?e|a\.\s?m|p\.\s?m)\.", re.IGNORECASE)
_CLOSED = re.compile(rf"{_LEAD_MARK}|\s*(?:$|[.,:;!?/)\]}}】》。、\n{_TEXTS}]|[-\u2010-\u2015]\s)")
_JOINED = re.compile(
    rf"\s*(?:[\u4e00-\u9fff&{_LEAD_MARK}]|(?:is|are|was|and|or|but|nor|because|since|not)(?![A-Za-z]))"
)
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
_OPENS, _CLOSES = "(\uff08", ".):\u3001\uff0e\uff1a\uff09"
_LABELS = [rf"[{_OPENS}]?[{letter}{chr(ord(letter) + 0xFEE0)}]\s*[{_CLOSES}]" for letter in ascii_uppercase]
"""What public files write before the options: `A.`, `A)`, `(A)`, `A:` and their full-width forms."""
_LABELLED = [re.compile(rf"\s*{label}\s*(?=\S)", re.IGNORECASE) for label in _LABELS]
_LIST_BEGINS, _LIST_GOES_ON = re.compile(rf"(?:^|\s){_LABELS[0]}\s*\S"), re.compile(rf"[\s,;]{_LABELS[1]}\s*\S")
_HEADINGS = ("options", "choices", "\u9009\u9879")


@dataclass(frozen=True, kw_only=True)
class _Mention:
    """A letter that names an option."""

    letter: str
    start: int


def parse_letter(text: str, *, options: Sequence[str] | None = None) -> str | None:
    """Return the option letter an answer names: 'B', 'B.', '(B)', 'B. blue', 'Answer: B'; None without a single one.

    Args:
        text: A completion; its answer block counts when there is one, else all of it.
        options: The option texts, if known. A text then names its option, and must agree with the letter.
    """
    return read_letter(text, options=options).value


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


def _sample(item: Mapping[str, Any], *, key: str, media_key: str | None, style: str = "plain") -> Sample:
    """Fields: `question`, `options` (2 to 26 texts, or an object of letters and texts), `answer` (a letter).

    Letters that the options carry themselves, and a list of the options at the end of the question, are taken away
    before the options are listed. The answer is read as an answer is: `B`, `B.`, `(B)`, `B. blue` and `blue` name B.

    `draft`, an object with `options` and `answer`, takes their place in the style of that name.
    """
    if style == "draft":
        item = {**item, **_draft(item.get("draft"))}
    answer = required_text(item, "answer")
    question = required_text(item, "question")
    options = _options(item.get("options"))
    letters = ascii_uppercase[: len(options)]
    letter = read_letter(answer, options=options)
    if letter.value is None:
        raise RecordError(
            "bad_answer", f"the answer must be one of the letters {letters}, got {answer!r}: {letter.problem}"
        )
    question = f"{_without_list(question, options=options)}\n{_listed(options)}"
    return Sample(
        key=key,
        task="mcq",
        turns=conversation(item, question=question, answer=styled_answer(item, answer=letter.value, style=style)),
        media_key=media_key,
        truth={"letter": letter.value, "options": options},
        instruction="mcq" if style != "plain" else "none",
    )


def _draft(value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict) or set(value) != {"options", "answer"}:
        raise RecordError(
            "bad_draft", f"'draft' of a multiple choice must be an object of options and answer: {value!r}"
        )
    return {**value, "draft": None}


def with_options(question: str, options: Sequence[str] | Mapping[str, str]) -> str:
    """Return a question with its options listed as they are trained.

    Raises:
        RecordError: `bad_options`: not 2 to 26 different texts.
    """
    texts = _options(list(options) if isinstance(options, tuple) else options)
    return f"{_without_list(question, options=texts)}\n{_listed(texts)}"


def lists_options(question: str) -> bool:
    """Return whether a question lists options itself: an A before a B, as files write them."""
    first = _LIST_BEGINS.search(question)
    return first is not None and _LIST_GOES_ON.search(question, first.start()) is not None


def _listed(options: Sequence[str]) -> str:
    return "\n".join(f"{letter}.{option}" for letter, option in zip(ascii_uppercase, options, strict=False))


def _options(value: Any) -> tuple[str, ...]:
    texts = value
    if isinstance(value, Mapping):  # {"A": "red", "B": "blue"}
        letters = list(ascii_uppercase[: len(value)])
        texts = [value[letter] for letter in letters] if set(value) == set(letters) else None
    good = isinstance(texts, list) and all(isinstance(option, str) and option.strip() for option in texts)
    if not good or not 2 <= len(texts) <= len(ascii_uppercase):
        raise RecordError("bad_options", f"'options' must be a list of 2 to 26 non-empty strings, got {value!r}")
    texts = _unlabelled(texts)
    if len({option.strip() for option in texts}) < len(texts):
        raise RecordError("bad_options", f"'options' repeats a text, so the right letter is ambiguous: {value!r}")
    return tuple(texts)


def _unlabelled(options: Sequence[str]) -> list[str]:
    """Return the options without the letters they carry, when each carries its own."""
    labels = [pattern.match(option) for pattern, option in zip(_LABELLED, options, strict=False)]
    if not all(labels):
        return list(options)
    return [option[label.end() :] for option, label in zip(options, labels, strict=True) if label]


def _without_list(question: str, *, options: Sequence[str]) -> str:
    """Return the question without a list of all its options, each behind its letter, that it ends with.

    Read from the end, with nothing compiled: this runs for every item of every epoch.
    """
    *others, last = zip(ascii_uppercase, options, strict=False)
    rest = _before_option(question.rstrip(), letter=last[0], text=last[1].strip())
    for letter, option in reversed(others):
        rest = None if rest is None else _before_option(_ended(rest), letter=letter, text=_ended(option.strip()))
    if rest is None:
        return question
    rest = rest.rstrip()
    heading = rest[:-1].rstrip() if rest.endswith((":", "\uff1a")) else ""
    for name in _HEADINGS:
        if heading[-len(name) :].lower() == name:
            rest = heading[: -len(name)].rstrip()
    return rest or question


def _ended(text: str) -> str:
    """Return a text without the white space, commas and semicolons behind it, which stand between listed options."""
    while text != (shorter := text.rstrip().rstrip(",;")):
        text = shorter
    return text


def _before_option(question: str, *, letter: str, text: str) -> str | None:
    """Return what stands before the option that a question ends with, None when it ends with another one."""
    behind = len(question) - len(text)
    if behind < 0 or question[behind:].lower() != text.lower():
        return None
    label = question[:behind].rstrip()
    named = label[:-1].rstrip()
    if not label.endswith(tuple(_CLOSES)) or named[-1:].upper() not in (letter, chr(ord(letter) + 0xFEE0)):
        return None
    before = named[:-1]
    return before[:-1] if before.endswith(tuple(_OPENS)) else before


def _read(text: str, truth: Truth) -> Reading[str]:
    return read_letter(text, options=truth.get("options"))


def _compared(truth: Truth) -> str:
    return str(known(truth, "letter"))


def _tell(text: str) -> list[str]:
    return [f"option: {parse_letter(text) or 'none that can be read'}"]


def _right(text: str, truth: Truth) -> Score:
    return Score(value=float(_read(text, truth).value == _compared(truth)))


def _followed(text: str, truth: Truth) -> Score:
    """Return whether an answer is the option that its thought names last; thoughts that name none do not count."""
    named = last_named(split_answer(text).think or "", options=known(truth, "options"))
    if named is None:
        return Score(value=0.0, weight=0.0)
    return Score(value=float(_read(text, truth).value == named))


def _guessed(items: Sequence[Asked]) -> float:
    return sum(1 / len(item.truth["options"]) for item in items) / len(items)


MCQ = Task(
    name="mcq",
    instruction="mcq",
    sample=_sample,
    read=_read,
    compared=_compared,
    tell=_tell,
    rewards={"mcq_accuracy": lambda said, true, seconds: float(said == true)},
    text_draft=False,  # the passing answer is the item's own letter, whatever stands beside it
    measures=(
        Measure(name="mcq_accuracy", score=_right, chance=_guessed),
        # Does the thought lead to the answer? Where it does not, it is decoration, and rewards cannot shape it.
        Measure(name="mcq_thought_followed", score=_followed, chance=_guessed, on_request=True),
    ),
)
