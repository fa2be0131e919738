"""Collecting the questions of a benchmark: each is kept, or listed with the benchmark's own id and what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcvideo.bench.item import Bench, BenchHole, BenchItem
from arcvideo.shards.items import check_renders, checked_sample
from arcvideo.shards.text import whole
from arcvideo.tasks import RecordError

MakeItem = Callable[[str, Any], BenchItem]
"""Called with the id and the row.

Raises:
    RecordError: the question cannot be asked.
"""


@dataclass(kw_only=True)
class Questions:
    """The questions of one benchmark, as they are read."""

    name: str
    items: list[BenchItem] = field(default_factory=list)
    holes: list[BenchHole] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _ids: set[str] = field(default_factory=set)

    def read(self, rows: Iterable[tuple[str, Any]], make: MakeItem) -> None:
        """Keep the question of each row, or list it.

        Args:
            rows: (the benchmark's own id, row); a row that is a RecordError is listed as that.
            make: turns a row into an item.
        """
        for name, row in rows:
            ident = name.encode("utf-8", "backslashreplace").decode()
            try:
                if isinstance(row, RecordError):
                    raise row
                self._keep(_made(make, ident, row))
            except RecordError as error:
                self.refuse(ident, reason=error.reason, detail=error.detail)

    def refuse(self, ident: str, *, reason: str, detail: str) -> None:
        """List a question that cannot be asked."""
        self.holes.append(BenchHole(id=ident, reason=reason, detail=detail))

    def _keep(self, item: BenchItem) -> None:
        if item.id in self._ids:
            raise RecordError("duplicate_id", f"an earlier question has the id {item.id!r}; that one is asked")
        check_renders(checked_sample(dict(item.fields), key=item.id, has_media=True))
        self._ids.add(item.id)
        self.items.append(item)

    def bench(self, *, source: str, published: int | None = None, folder: Path) -> Bench:
        """Return the benchmark.

        Args:
            source: paper or page.
            published: how many questions it is published with; a difference is noted.
            folder: where it was read, for the message.

        Raises:
            ValueError: there is not one question that can be asked; the message counts why.
        """
        count = len(self.items) + len(self.holes)
        if not self.items:
            why = Counter(hole.reason for hole in self.holes)
            most = ", ".join(f"{number} x {reason}" for reason, number in why.most_common(4)) or "there are none"
            first = f"; the first: {self.holes[0].id}: {self.holes[0].detail}" if self.holes else ""
            raise ValueError(f"{folder}: none of {count} questions can be asked ({most}){first}")
        if published is not None and count != published:
            self.notes.append(f"{count} questions here; the published set has {published}")
        return Bench(
            name=self.name, items=tuple(self.items), holes=tuple(self.holes), source=source, notes=tuple(self.notes)
        )


def _made(make: MakeItem, ident: str, row: Any) -> BenchItem:
    try:
        return make(ident, row)
    except RecordError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, OSError, RecursionError) as error:
        # One odd row must not cost the others, whatever a reader did not expect.
        raise RecordError("bad_row", f"{type(error).__name__}: {error}") from error


def entry(row: Any) -> Mapping[str, Any]:
    """Return a row that is an object.

    Raises:
        RecordError: `bad_row`.
    """
    if not isinstance(row, Mapping):
        raise RecordError("bad_row", f"expected an object, got {str(row)[:80]!r}")
    return row


def text(row: Mapping[str, Any], name: str) -> str:
    """Return a text of a row.

    Raises:
        RecordError: `no_<name>`, `bad_<name>`, `broken_text`.
    """
    value = row.get(name)
    label = name.lower().replace(" ", "_").replace("-", "_")
    if value is None or (isinstance(value, str) and not value.strip()):
        raise RecordError(f"no_{label}", f"field {name!r} is missing or empty")
    if not isinstance(value, str):
        raise RecordError(f"bad_{label}", f"field {name!r} must be a text, got {str(value)[:80]!r}")
    return whole(value).strip()


def tags(row: Mapping[str, Any], **names: str) -> tuple[str, ...]:
    """Return the tags `name:value` of these fields; an absent one gives none, a list one for each entry.

    Args:
        row: of the annotations.
        names: name of the tag -> field.
    """
    labels = []
    for name, key in names.items():
        value = row.get(key)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, (str, int, float)) and not isinstance(part, bool) and str(part).strip():
                labels.append(f"{name}:{whole(str(part)).strip()}")
    return tuple(labels)


def multiple_choice(question: str, *, options: Any, answer: Any) -> dict[str, Any]:
    """Return the fields of a multiple choice, as the task reads them.

    Args:
        question: without its options.
        options: texts, with or without their letters, or an object of letters and texts, of which empty ones at the end
            are left out.
        answer: a letter.

    Raises:
        RecordError: `no_options`, `no_answer`.
    """
    if isinstance(options, Mapping):
        letters = sorted(options)
        while letters and isinstance(options[letters[-1]], str) and not options[letters[-1]].strip():
            letters.pop()
        options = {letter: options[letter] for letter in letters}
    if not options:
        raise RecordError("no_options", "the question has no options")
    if not isinstance(answer, str) or not answer.strip():
        raise RecordError("no_answer", f"the answer must name an option, got {answer!r}")
    options = list(options) if isinstance(options, tuple) else options
    return {"task": "mcq", "question": question, "options": options, "answer": answer.strip()}


def letter_of(answer: Any, *, options: Any) -> str:
    """Return the letter of the one option whose text the answer is, for sets that give the text.

    Raises:
        RecordError: `no_options`, `bad_answer`: no option is it, or several are.
    """
    if not isinstance(options, list) or not options:
        raise RecordError("no_options", f"the question has no list of options, got {str(options)[:80]!r}")
    places = [place for place, option in enumerate(options) if option == answer]
    if len(places) != 1 or places[0] > 25:
        raise RecordError("bad_answer", f"{len(places)} of the options are the answer {str(answer)[:80]!r}")
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[places[0]]


class Numbers:
    """Ids for sets that give their questions none: the video, and which of its questions it is."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()

    def __call__(self, video: Any, place: str) -> str:
        """Return `video#0`, `video#1`, ...; the place of the row when it names no video."""
        if not isinstance(video, str) or not video:
            return place
        self._seen[video] += 1
        return f"{video}#{self._seen[video] - 1}"
