"""What a text is worth and what guessing would reach, as pure functions on texts and spans."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from arcvideo.tasks.answers import answer_text, one_answer
from arcvideo.tasks.spans import Span
from arcvideo.tasks.task import Asked, Measure, Score, true_text

CONSTANT_CANDIDATES = 64
"""How many of the most frequent transcripts are tried as a constant answer."""


def words(text: str) -> list[str]:
    """Return words without case and punctuation; a CJK character is a word.

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
    """Return fewest insertions, deletions and substitutions that turn one into the other."""
    row = list(range(len(second) + 1))
    for index, item in enumerate(first, start=1):
        diagonal, row[0] = row[0], index
        for column, other in enumerate(second, start=1):
            best = min(row[column] + 1, row[column - 1] + 1, diagonal + (item != other))
            diagonal, row[column] = row[column], best
    return row[-1]


def transcript_edits(prediction: str, *, truth: str) -> tuple[int, int]:
    """Return (edits, reference words) of a transcript."""
    reference = words(truth)
    return edit_distance(words(answer_text(prediction)), reference), max(len(reference), 1)


def exact(prediction: str, *, truth: str) -> float:
    """Return 1.0 when the one answer has the words of the truth."""
    said = one_answer(prediction).value
    return float(said is not None and words(said) == words(truth))


def word_f1(prediction: str, *, truth: str) -> float:
    """Return harmonic mean of the shares of words that the answer and the truth have in common, in any order.

    >>> word_f1("<think>x</think><answer>red circle</answer>", truth="red circle, blue square")
    0.6666666666666666
    """
    said, true = Counter(words(answer_text(prediction))), Counter(words(truth))
    return _word_f1(said, true)


def _word_f1(said: Counter[str], true: Counter[str]) -> float:
    total = said.total() + true.total()
    return 2 * (said & true).total() / total if total else 1.0


def rouge_l(prediction: str, *, truth: str) -> float:
    """Return harmonic mean of the shares that the longest common subsequence of words has of the answer and of the
    truth.

    ROUGE-L with equal weights, without stemming; a CJK character is a word.

    >>> round(rouge_l("the red circle moves", truth="a red circle slowly moves"), 4)
    0.6667
    """
    return _rouge_l(words(answer_text(prediction)), words(truth))


def _rouge_l(said: Sequence[str], true: Sequence[str]) -> float:
    total = len(said) + len(true)
    return 2 * _common(said, true) / total if total else 1.0


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for item in first:
        diagonal = 0
        for column, other in enumerate(second, start=1):
            diagonal, row[column] = row[column], diagonal + 1 if item == other else max(row[column], row[column - 1])
    return row[-1]


def constant_word_f1(truths: Sequence[str]) -> float:
    """Return highest mean F1 of one of the truths given for every clip."""
    return _best_constant(truths)[0]


def constant_rouge_l(truths: Sequence[str]) -> float:
    """Return mean ROUGE-L of the truth that has the highest mean F1 when it is given for every clip."""
    constant = _best_constant(truths)[1]
    return sum(_rouge_l(constant, words(truth)) for truth in truths) / len(truths)


def _best_constant(truths: Sequence[str]) -> tuple[float, tuple[str, ...]]:
    """Return the highest mean F1 of a constant answer, and the words of that answer."""
    counts = [Counter(words(truth)) for truth in truths]
    candidates = [text for text, _ in Counter(tuple(words(truth)) for truth in truths).most_common(CONSTANT_CANDIDATES)]
    means = [sum(_word_f1(Counter(candidate), true) for true in counts) / len(counts) for candidate in candidates]
    best = max(range(len(means)), key=means.__getitem__)
    return means[best], candidates[best]


def constant_transcript_error(truths: Sequence[str]) -> float:
    """Return lowest error of one transcript given for every clip; at most 1, the error of saying nothing."""
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
    """Return the one span, on a grid of `step` seconds, with the highest mean IoU over all truths."""
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


def text_measures(task: str) -> tuple[Measure, ...]:
    """Return the figures of a task whose answers are free texts, on request: exact, F1 of words, ROUGE-L."""

    def truths(items: Sequence[Asked]) -> list[str]:
        return [true_text(item.truth) for item in items]

    return (
        Measure(
            name=f"{task}_exact",
            score=lambda text, truth: Score(value=exact(text, truth=true_text(truth))),
            chance=lambda items: most_frequent_share([(item.question, true_text(item.truth)) for item in items]),
            on_request=True,
        ),
        Measure(
            name=f"{task}_f1",
            score=lambda text, truth: Score(value=word_f1(text, truth=true_text(truth))),
            chance=lambda items: constant_word_f1(truths(items)),
            on_request=True,
        ),
        Measure(
            name=f"{task}_rouge_l",
            score=lambda text, truth: Score(value=rouge_l(text, truth=true_text(truth))),
            chance=lambda items: constant_rouge_l(truths(items)),
            on_request=True,
        ),
    )
