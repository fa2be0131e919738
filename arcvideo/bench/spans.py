"""What the benchmarks of temporal grounding share: the question, and spans against the length of their clip."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from arcvideo.bench.folder import media_file
from arcvideo.bench.item import BenchItem
from arcvideo.bench.questions import Questions
from arcvideo.shards.text import whole
from arcvideo.tasks import RecordError

QUESTION = "When does this happen in the video: {}"
"""As the importers of the same sets ask it."""
CUT = "span:cut_at_end"
"""Tag of items whose span ends behind its clip and was cut there."""
GROUNDING = ("grounding_miou",)
"""Metrics of these sets."""


def grounding_item(
    ident: str, *, clip: Path, sentence: Any, spans: Sequence[Any], seconds: float, tags: tuple[str, ...] = ()
) -> BenchItem:
    """Return the question about when something happens.

    A span that ends behind its clip is cut there and tagged; one that begins there, or has no length, cannot be asked.

    Args:
        ident: of the benchmark.
        clip: media file.
        sentence: what happens.
        spans: [start, end] in seconds, each of them right; the longest one is the item's `span`, and all are its
            `spans` when there are several.
        seconds: length of the clip.
        tags: of the item.

    Raises:
        RecordError: `no_question`, `no_answer`, `bad_span`, `span_outside`.
    """
    if not isinstance(sentence, str) or not sentence.strip():
        raise RecordError("no_question", f"the sentence is empty, got {sentence!r}")
    if not spans:
        raise RecordError("no_answer", "no time span is given")
    read = [_span(span, seconds=seconds) for span in spans]
    cut_spans = [[start, min(end, seconds)] for start, end in read]
    if cut_spans != [list(span) for span in read]:
        tags = (*tags, CUT)
    fields: dict[str, Any] = {
        "task": "grounding",
        "question": QUESTION.format(whole(sentence).strip()),
        "span": max(cut_spans, key=lambda span: span[1] - span[0]),
    }
    if len(cut_spans) > 1:
        fields["spans"] = cut_spans
    return BenchItem(id=ident, clip=clip, task="grounding", fields=fields, tags=tags)


def _span(span: Any, *, seconds: float) -> tuple[float, float]:
    start, end = _pair(span)
    if not 0 <= start < end:
        raise RecordError("bad_span", f"[{start:g}, {end:g}] is no time span: 0 <= start < end in seconds")
    if start >= seconds:
        raise RecordError("span_outside", f"[{start:g}, {end:g}] begins behind the end of the clip, {seconds:.2f} s")
    return start, end


def _pair(span: Any) -> tuple[float, float]:
    if not isinstance(span, (list, tuple)) or len(span) != 2:
        raise RecordError("bad_span", f"expected [start, end] in seconds, got {str(span)[:80]!r}")
    return number(span[0], name="start"), number(span[1], name="end")


def number(value: Any, *, name: str) -> float:
    """Return a finite number.

    Raises:
        RecordError: `bad_<name>`.
    """
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e9
    if not good or not math.isfinite(value):
        raise RecordError(f"bad_{name}", f"{name} must be a number, got {str(value)[:80]!r}")
    return float(value)


def length(value: Any) -> float:
    """Return the length of a clip that its annotation states.

    Raises:
        RecordError: `bad_duration`.
    """
    seconds = number(value, name="duration")
    if seconds <= 0:
        raise RecordError("bad_duration", f"a clip of {seconds:g} s")
    return seconds


def captions(content: dict[str, Any], *, spans: str = "timestamps", sentences: str = "sentences") -> Iterator[Any]:
    """Yield (`video/number`, (video, entry, number)) of every sentence of {video: {duration, spans, sentences}}.

    A video whose lists do not fit each other is one row, as the RecordError that says so.
    """
    for video, row in content.items():
        lists = [row.get(name) for name in (spans, sentences)] if isinstance(row, dict) else [None, None]
        if not all(isinstance(part, list) for part in lists) or len(lists[0] or ()) != len(lists[1] or ()):
            yield video, RecordError("bad_row", f"{spans} and {sentences} must be lists of the same length")
            continue
        yield from ((f"{video}/{place}", (video, row, place)) for place in range(len(lists[0] or ())))


def read_captions(
    questions: Questions,
    rows: Iterator[Any],
    *,
    folders: Sequence[Path],
    spans: str = "timestamps",
    sentences: str = "sentences",
    tags: tuple[str, ...] = (),
) -> None:
    """Keep the question of every row of `captions`."""

    def make(ident: str, row: Any) -> BenchItem:
        video, entry, place = row
        return grounding_item(
            ident,
            clip=media_file(folders, video),
            sentence=entry[sentences][place],
            spans=[entry[spans][place]],
            seconds=length(entry.get("duration")),
            tags=tags,
        )

    questions.read(rows, make)


def note_cut(questions: Questions) -> None:
    """Note how many spans were cut at the end of their clip."""
    cut = sum(CUT in item.tags for item in questions.items)
    if cut:
        questions.notes.append(f"{cut} spans end behind their clip and were cut there (tag {CUT})")
