"""What a text is worth and what guessing would reach, as pure functions on texts and spans."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from arcvideo.tasks.answers import Span, answer_text, one_answer

CONSTANT_CANDIDATES = 64
"""How many of the most frequent transcripts are tried as a constant answer."""


def words(text: str) -> list[str]:
    """Words without case and punctuation; a CJK character is a word.

    A text without any, such as an emoji, is one word itself: saying nothing is not saying it.
    """
    plain = []
    for character in unicodedata.normalize("NFKC", text).casefold():
        if "\u3040" <= character <= "\u30ff" or "\u4e00" <= character <= "\u9fff":
            plain.append(f" {character} ")
        else:
            plain.append(character if character.isalnum() or character in "'" else " ")
    return "".join(plain).split() or [text.strip()] * bool(text.strip())


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Fewest insertions, deletions and substitutions that turn one into the other."""
    row = list(range(len(second) + 1))
    for index, item in enumerate(first, start=1):
        diagonal, row[0] = row[0], index
        for column, other in enumerate(second, start=1):
            best = min(row[column] + 1, row[column - 1] + 1, diagonal + (item != other))
            diagonal, row[column] = row[column], best
    return row[-1]


def transcript_edits(prediction: str, *, truth: str) -> tuple[int, int]:
    """(edits, reference words) of a transcript."""
    reference = words(truth)
    return edit_distance(words(answer_text(prediction)), reference), max(len(reference), 1)


def exact(prediction: str, *, truth: str) -> float:
    """1.0 when the one answer has the words of the truth."""
    said = one_answer(prediction).value
    return float(said is not None and words(said) == words(truth))


def word_f1(prediction: str, *, truth: str) -> float:
    """Harmonic mean of the shares of words that the answer and the truth have in common, in any order.

    >>> word_f1("<think>x</think><answer>red circle</answer>", truth="red circle, blue square")
    0.6666666666666666
    """
    said, true = Counter(words(answer_text(prediction))), Counter(words(truth))
    return _word_f1(said, true)


def _word_f1(said: Counter[str], true: Counter[str]) -> float:
    total = said.total() + true.total()
    return 2 * (said & true).total() / total if total else 1.0


def constant_word_f1(truths: Sequence[str]) -> float:
    """Highest mean F1 of one of the truths given for every clip."""
    counts = [Counter(words(truth)) for truth in truths]
    candidates = [
        Counter(text) for text, _ in Counter(tuple(words(truth)) for truth in truths).most_common(CONSTANT_CANDIDATES)
    ]
    return max(sum(_word_f1(candidate, true) for true in counts) / len(counts) for candidate in candidates)


def constant_transcript_error(truths: Sequence[str]) -> float:
    """Lowest error of one transcript given for every clip; at most 1, the error of saying nothing."""
    references = [words(truth) for truth in truths]
    total = sum(max(len(reference), 1) for reference in references)
    candidates = [list(text) for text, _ in Counter(map(tuple, references)).most_common(CONSTANT_CANDIDATES)]
    errors = [sum(edit_distance(candidate, reference) for reference in references) / total for candidate in candidates]
    return min([1.0, *errors])


def most_frequent_share(items: Sequence[tuple[str, str]]) -> float:
    """Share of right answers when every question gets its most frequent answer; items are (question, truth)."""
    counts: dict[str, Counter[tuple[str, ...]]] = {}
    for question, truth in items:
        counts.setdefault(question, Counter())[tuple(words(truth))] += 1
    return sum(max(counter.values()) for counter in counts.values()) / len(items)


def best_constant_span(truths: Sequence[Span], *, step: float = 1.0) -> Span:
    """The one span, on a grid of `step` seconds, with the highest mean IoU over all truths."""
    starts, ends = np.array(truths, dtype=np.float64).T
    marks = np.arange(0.0, ends.max() + step, step)
    best, chosen = -1.0, (0.0, step)
    for start in marks[:-1]:
        tried = marks[marks > start][:, None]  # (ends tried, 1) against (truths,)
        shared = (np.minimum(tried, ends) - np.maximum(start, starts)).clip(min=0)
        mean = (shared / (np.maximum(tried, ends) - np.minimum(start, starts))).mean(axis=1)
        if mean.max() > best:
            best, chosen = float(mean.max()), (float(start), float(tried[mean.argmax(), 0]))
    return chosen
