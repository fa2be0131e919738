"""Rows gathered by what they are about, in a temporary database on disk: memory does not grow with their number.

The database has no name (the system forgets it with the process, however that ends) and lies in the folder for
temporary files, `TMPDIR`. It is about as large as the annotations.
"""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any

from arcvideo.data.importers.sides import Clips
from arcvideo.data.importers.sources import Medium, as_json, of_json
from arcvideo.shards.members import Problem

_PAGES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
PRAGMA temp_store = FILE;
PRAGMA cache_size = -8192;
CREATE TABLE records (number INTEGER PRIMARY KEY, place TEXT UNIQUE, name TEXT, media TEXT, extra TEXT,
                      key TEXT UNIQUE, clip TEXT);
CREATE TABLE sounds (place TEXT PRIMARY KEY, sound TEXT);
CREATE TABLE items (record INTEGER, item TEXT, label TEXT);
"""
_NEXT = "SELECT {} FROM records LEFT JOIN sounds USING (place) WHERE number > ? ORDER BY number LIMIT 256"
_LONGEST_LABEL = 300
"""Characters of what a row is called in the list of problems."""
_IN_MEMORY = 1 << 20
"""Bytes of a list that are kept in memory before it goes to the disk."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A record whose media have not been looked at yet."""

    key: str
    items: tuple[Mapping[str, Any], ...]
    labels: tuple[str, ...]
    """What each item is called in the list of problems."""
    media: Medium | None
    """None for text only."""
    sound: Medium | None = None
    """Sound that is used when `media` has none."""
    names_sound: bool = False
    """Whether a row names that sound, so that leaving it out is worth a word."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the record."""
    more: tuple[Medium, ...] = ()
    """Media that are shown behind the first."""
    clip: str = ""
    """What the clip is called by content, once `Spool.name_clips` was called; records of one clip share it."""


def import_problem(label: str, *, reason: str, detail: str) -> Problem:
    """Return the row of the list of problems for a row that is not used; a label of megabytes is cut."""
    label = label if len(label) <= _LONGEST_LABEL else f"{label[:_LONGEST_LABEL]}..."
    return Problem(key=label, stage="import", reason=reason, detail=detail)


class Problems:
    """Problems in the order in which they came; many of them lie on disk."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - goes with this object
        self._end = 0
        self.reasons: Counter[str] = Counter()
        """Reason -> how many."""

    def append(self, problem: Problem) -> None:
        """Add one."""
        line = json.dumps(asdict(problem)).encode() + b"\n"
        self._file.seek(self._end)
        self._file.write(line)
        self._end += len(line)
        self.reasons[problem.reason] += 1

    def extend(self, problems: Iterable[Problem]) -> None:
        """Add several."""
        for problem in problems:
            self.append(problem)

    def __len__(self) -> int:
        return self.reasons.total()

    def __iter__(self) -> Iterator[Problem]:
        at = 0
        while at < self._end:
            self._file.seek(at)
            line = self._file.readline()
            at += len(line)
            yield Problem(**json.loads(line))


class Spool:
    """Items by record, records in the order in which they were first named."""

    def __init__(self) -> None:
        try:
            self._base = sqlite3.connect("", isolation_level=None, check_same_thread=False)
            self._base.executescript(_PAGES)
        except sqlite3.Error as error:
            raise _full(error) from error
        self._named = False

    def add(
        self,
        item: Mapping[str, Any],
        *,
        label: str,
        name: str,
        place: str,
        media: Sequence[Medium],
        extra: Mapping[str, Any],
    ) -> None:
        """Keep an item; what else is given counts with the first of a place."""
        row = (place, _safe(name), json.dumps([as_json(medium) for medium in media]), json.dumps(extra))
        self._run("INSERT OR IGNORE INTO records (place, name, media, extra) VALUES (?, ?, ?, ?)", *row)
        text = json.dumps(item, default=str)
        self._run("INSERT INTO items SELECT number, ?, ? FROM records WHERE place = ?", text, _safe(label), place)

    def sound(self, place: str, *, first: Medium) -> Medium:
        """Return the sound of a record, which is `first` if it had none."""
        self._run("INSERT OR IGNORE INTO sounds VALUES (?, ?)", place, json.dumps(as_json(first)))
        ((text,),) = self._run("SELECT sound FROM sounds WHERE place = ?", place)
        medium = of_json(json.loads(text))
        assert medium is not None
        return medium

    def name_records(self, key: Callable[[str], str]) -> None:
        """Give every record a key of its own, made of its name by `key`; no item is added any more."""
        if self._named:
            return
        self._named = True
        self._run("CREATE INDEX of_record ON items (record)")
        number = 0
        while rows := self._run(_NEXT.format("number, name"), number):
            for number, name in rows:
                self._run("UPDATE records SET key = ? WHERE number = ?", self._free(key(json.loads(name))), number)

    def name_clips(self) -> int:
        """Name the clip of every record by its media, of text only by its key; returns how many there are."""
        clips = Clips()
        for _, media, _ in self._media():
            if len(media) > 1:
                clips.join(media)
        for number, media, key in self._media():
            self._run("UPDATE records SET clip = ? WHERE number = ?", clips.name(media) if media else key, number)
        ((count,),) = self._run("SELECT count(DISTINCT clip) FROM records")
        return int(count)

    def _media(self) -> Iterator[tuple[int, list[Medium], str]]:
        """Yield number, media and key of every record."""
        number = 0
        while rows := self._run(_NEXT.format("number, media, key"), number):
            for number, media, key in rows:
                media_of_record = [of_json(medium) for medium in json.loads(media)]
                yield number, [medium for medium in media_of_record if medium is not None], key

    def drafts(self, *, sound_of: Callable[[Medium], Medium | None]) -> Iterator[Draft]:
        """Yield the records; those without a sound of their own have what `sound_of` says of their first medium."""
        number = 0
        while rows := self._run(_NEXT.format("number, key, media, sound, extra, clip"), number):
            for number, key, media, sound, extra, clip in rows:
                first, *more = [of_json(medium) for medium in json.loads(media)] or [None]
                pairs = self._run("SELECT item, label FROM items WHERE record = ? ORDER BY rowid", number)
                named = None if sound is None else of_json(json.loads(sound))
                yield Draft(
                    key=json.loads(key),
                    items=tuple(json.loads(item) for item, _ in pairs),
                    labels=tuple(json.loads(label) for _, label in pairs),
                    media=first,
                    sound=named or (None if first is None else sound_of(first)),
                    names_sound=named is not None,
                    extra=json.loads(extra),
                    more=tuple(medium for medium in more if medium is not None),
                    clip=clip or "",
                )

    def __len__(self) -> int:
        ((count,),) = self._run("SELECT count(*) FROM records")
        return int(count)

    def _free(self, name: str) -> str:
        """Return the name, or the name with the first number that makes it new."""
        free, number = name, 1
        while self._run("SELECT 1 FROM records WHERE key = ?", _safe(free)):
            number += 1
            free = f"{name}_{number}"
        return _safe(free)

    def _run(self, text: str, *values: Any) -> list[Any]:
        try:
            return self._base.execute(text, values).fetchall()
        except sqlite3.Error as error:
            raise _full(error) from error


def _safe(text: str) -> str:
    """Return a text as JSON: half a character has no place in a database."""
    return json.dumps(text)


def _full(error: sqlite3.Error) -> OSError:
    return OSError(f"the rows cannot be kept in the folder for temporary files ({error}): TMPDIR=DIR names another")
