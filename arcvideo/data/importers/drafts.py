"""What every annotation reader makes: drafts, records whose media have not been looked at yet."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from arcvideo.data.importers.columnar import ARROW, PARQUET
from arcvideo.data.importers.parts import json_parts
from arcvideo.data.importers.sources import Cell, Medium, label_of, place_of, rows_with_cells
from arcvideo.data.importers.spool import Draft, Problems, Spool, import_problem
from arcvideo.shards.items import check_renders, check_values, checked_sample
from arcvideo.shards.members import AUDIO, IMAGE, VIDEO
from arcvideo.shards.text import json_of, open_text, read_text, whole
from arcvideo.shards.text import rows as text_rows
from arcvideo.tasks import RecordError

_LONGEST = 255
"""Bytes of a part of a path that file systems take."""
_LONGEST_PATH = 4095
"""Bytes of a path that the system takes."""
_MOST_COLUMNS, _LONGEST_COLUMN = 1000, 80
"""Names of columns that are counted, and characters of each."""
_LONGEST_ROW = 1 << 20
"""Characters of a first line that is looked at as a row."""
_OTHERS = re.compile("[.\0\ud800-\udfff]")
"""Signs of a name that the key of a record cannot have: keys end at the first dot, and are UTF-8."""


@dataclass(kw_only=True)
class ImportReport:
    """What became of the rows: rows = used + problems. A row is what becomes one item."""

    rows: int = 0
    used: int = 0
    problems: Problems = field(default_factory=Problems)
    ignored: Counter[str] = field(default_factory=Counter)
    """What was left out of rows that are used -> in how many of them."""
    loose_tags: int = 0
    """Questions whose `<video>` is not followed by a newline; the released trainer fails on them, we accept them."""

    def refuse(self, key: str, *, reason: str, detail: str) -> None:
        """Lists a row that is not used."""
        self.problems.append(import_problem(key, reason=reason, detail=detail))

    def ignore(self, columns: Iterable[str]) -> None:
        """Count columns that a row has and nothing was made of; each row may name its own, so only so many are kept."""
        for name in columns:
            if name in self.ignored or len(self.ignored) < _MOST_COLUMNS:
                self.ignored[name[:_LONGEST_COLUMN]] += 1


@contextmanager
def judged(label: str, *, report: ImportReport, place: str = "") -> Iterator[None]:
    """Refuse the row that the block reads when it cannot be used, whatever it holds; nothing of it ends the import.

    Args:
        label: of the row in the list of problems.
        report: holds the list.
        place: of the row in its file, where `label` does not say it.
    """
    try:
        yield
    except RecordError as error:
        reason, detail = error.reason, error.detail
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
        reason, detail = "bad_row", f"{type(error).__name__}: {error}"
    else:
        return
    report.refuse(label, reason=reason, detail=f"{place}: {detail}" if place else detail)


@dataclass(frozen=True, kw_only=True)
class ImportRequest:
    """What to import."""

    annotations: tuple[Path, ...]
    """Annotation files, or folders for the format `transcripts`."""
    videos: Path | None = None
    """Folder that media names are relative to."""
    audio: Path | None = None
    """Folder of sound files, used for videos without sound."""
    task: str = "summary"
    """Task of a conversation: summary or qa."""
    outside: bool = False
    """Whether media may lie outside of `videos`, at absolute paths or behind `..`."""
    encoding: str | None = None
    """Of text files; None looks at their first bytes and takes UTF-8 otherwise."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Field -> column of the format `table`."""

    def media_folder(self) -> Path:
        """Return the folder of the media.

        Raises:
            ValueError: none is given, or it does not exist.
        """
        if self.videos is None:
            raise ValueError("--videos is missing: name the folder of the media files")
        for path in (self.videos, self.audio):
            if path is not None and not path.is_dir():
                raise ValueError(f"{path}: no such folder")
        return self.videos


@dataclass(kw_only=True)
class Drafting:
    """Collects items by the media they are about, and checks each before it is kept."""

    report: ImportReport
    audio: Path | None = None
    _spool: Spool = field(default_factory=Spool)

    def add(
        self,
        item: Mapping[str, Any],
        *,
        label: str,
        name: str,
        media: Medium | None,
        sound: Medium | None = None,
        extra: Mapping[str, Any] | None = None,
        more: Sequence[Medium] = (),
    ) -> None:
        """Keep an item; items about the same media become one record.

        Args:
            label: what the item is called when it is refused, now or later.
            name: the record's key, before dots are replaced and doubles are told apart.
            media: its file, None for text only.
            sound: a sound file that the row names beside it, used when `media` has none.
            extra: further fields of the record; those given with its first item count.
            more: media that are shown behind the first.

        Raises:
            RecordError: the item cannot become a sample, or the further fields cannot be written.
        """
        check_values(extra or {})
        check_renders(checked_sample(item, key=label, has_media=media is not None, media_count=1 + len(more)))
        media_in_order = () if media is None else (media, *more)
        place = json.dumps([place_of(medium) for medium in media_in_order] or name)
        if sound is not None and (earlier := self._spool.sound(place, first=sound)) != sound:
            raise RecordError("several_media", f"an earlier row gives {media} another sound, {label_of(earlier)}")
        self._spool.add(item, label=label, name=name, place=place, media=media_in_order, extra=extra or {})

    def drafts(self) -> Drafts:
        """Return the records, in the order in which their first items came."""
        self._spool.name_records(record_name)
        return Drafts(spool=self._spool, audio=self.audio)


@dataclass(frozen=True, kw_only=True)
class Drafts:
    """Records that were drafted; they may be gone through several times, and are read from disk each time."""

    spool: Spool
    audio: Path | None
    """Folder of sounds."""

    def __len__(self) -> int:
        return len(self.spool)

    def __iter__(self) -> Iterator[Draft]:
        return self.spool.drafts(sound_of=self._sound)

    def _sound(self, media: Medium) -> Path | None:
        return sound_beside(media.stem, folder=self.audio) if isinstance(media, Path) else None


def record_name(name: str) -> str:
    """Return a record key: relative, UTF-8, and without dots, because keys end at the first dot of a name."""
    return "/".join(_OTHERS.sub("_", part) for part in name.replace("\\", "_").split("/") if part) or "_"


def media_path(name: Any, *, request: ImportRequest) -> Path:
    """Return where a media file named by an annotation lies.

    Raises:
        RecordError: `no_media`, `unsafe_name`: a name that leaves the folder.
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise RecordError("no_media", "no media file is named")
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        raise RecordError("no_media", f"{name[:80]!a} is the name of no file: it holds half a character") from None
    if re.match(r"(?:https?|s3|gs|hf|data):", name):
        raise RecordError("no_media", f"{name[:80]!r} is no file: download it, and name the file")
    folder = Path(os.path.normpath(request.media_folder()))
    path = Path(
        os.path.normpath(folder / os.path.expanduser(_with_slashes(name.removeprefix("file://"), folder=folder)))
    )
    inside = os.path.relpath(path, folder)
    is_outside = inside.split(os.sep)[0] == os.pardir
    if not is_outside:
        path = folder / inside  # spelled as the folder is, so that a clip has one key however rows name it
    whole_path = os.fsencode(path.absolute())
    if len(whole_path) > _LONGEST_PATH or any(len(part) > _LONGEST for part in whole_path.split(b"/")):
        raise RecordError("no_media", f"{name[:80]!r}... is longer than the name of a file can be")
    if not path.name or path == folder:
        raise RecordError("no_media", f"{name[:80]!r} names a folder, no file")
    if not request.outside and is_outside:
        detail = f"media {name!r} lies outside of --videos {folder}; name a folder above it, or give --outside"
        raise RecordError("unsafe_name", detail)
    return _spelled(path)


def _with_slashes(name: str, *, folder: Path) -> str:
    """Return a name that was written on Windows as it is written here; any other one as it is.

    Raises:
        RecordError: `no_media`: it begins with a drive or a server of Windows.
    """
    if "\\" not in name or os.path.lexists(folder / name):
        return name
    if re.match(r"[A-Za-z]:|\\\\", name):
        raise RecordError(
            "no_media", f"{name[:80]!r} is a path of Windows: name the file as it lies in --videos {folder}"
        )
    return name.replace("\\", "/")


def key_of(medium: Medium, *, request: ImportRequest) -> str:
    """Return what the record of a medium is called: as its file in the folder, or as the file that a table holds."""
    if isinstance(medium, Path):
        return media_key(medium, request=request)
    assert isinstance(medium, Cell)
    stem = re.sub(r"[^\w-]", "_", Path(medium.name).stem) or "clip"
    return f"{stem}-{medium.sha256[:12]}"


def _spelled(path: Path) -> Path:
    """Return the path as the disk has it: accents may be one sign or two there (files from a Mac)."""
    if not os.path.exists(path):
        for form in ("NFC", "NFD"):
            other = Path(unicodedata.normalize(form, str(path)))
            if os.path.exists(other):
                return other
    return path


def media_key(path: Path, *, request: ImportRequest) -> str:
    """Return what the record of a media file is called: its name in the folder, without its type."""
    folder = Path(os.path.normpath(request.media_folder()))
    return str((path.relative_to(folder) if path.is_relative_to(folder) else path).with_suffix(""))


def found_media(stem: str, *, request: ImportRequest) -> Path:
    """Return the media file with this base name, whatever its type, in whatever case; a path that does not exist when
    there is none.

    Raises:
        RecordError: `unsafe_name`.
    """
    wanted = media_path(f"{stem}.mp4", request=request)
    kinds = ("mp4", *sorted((VIDEO | AUDIO | IMAGE) - {"mp4"}))
    base = str(wanted).removesuffix(".mp4")
    written = (f"{base}.{kind}" for kind in (*kinds, *(kind.upper() for kind in kinds)))
    return next((_spelled(Path(name)) for name in written if os.path.isfile(_spelled(Path(name)))), wanted)


def sound_beside(stem: str, *, folder: Path | None) -> Path | None:
    """Return the sound file with this base name in a folder of sounds."""
    if folder is None:
        return None
    return next((path for kind in sorted(AUDIO) if os.path.isfile(path := folder / f"{stem}.{kind}")), None)


def json_rows(request: ImportRequest, *, report: ImportReport) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (place, object) of every object in JSON-lines files and in files that hold one JSON list, and of every row
    of Parquet and Arrow files; the rest is refused.
    """
    for path in existing(request.annotations):
        yield from annotated_rows(path, request=request, report=report)


def annotated_rows(path: Path, *, request: ImportRequest, report: ImportReport) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the same of one file. NaN is what pandas writes for nothing, so it is nothing."""
    rows = _columnar if path.suffix.lower() in (*PARQUET, *ARROW) else _json_objects
    for place, row in rows(path, request=request, report=report):
        yield (
            place,
            {name: None if isinstance(value, float) and value != value else value for name, value in row.items()},
        )


def _columnar(path: Path, *, request: ImportRequest, report: ImportReport) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in rows_with_cells(path):
        report.rows += 1
        yield f"row {number + 1}", row


def _json_objects(path: Path, *, request: ImportRequest, report: ImportReport) -> Iterator[tuple[str, dict[str, Any]]]:
    with open_text(path, encoding=request.encoding) as file:
        is_list = _begins_list(file)
    for place, row in (_list_rows if is_list else _line_rows)(path, request=request, report=report):
        if isinstance(row, dict):
            yield place, row
        else:
            listed = f"a list of {len(row)}, " if isinstance(row, list) else ""
            detail = row.detail if isinstance(row, RecordError) else f"{listed}not an object"
            report.refuse(place, reason="broken_json", detail=detail)


def _begins_list(file: IO[str]) -> bool:
    """Return whether a file holds a list of rows, and not rows that are a line each, of which the first is odd."""
    while (first := file.read(1)).isspace():
        pass
    if first != "[":
        return False
    try:
        json.loads(first + file.readline(_LONGEST_ROW))
        return not isinstance(json.loads(file.readline(_LONGEST_ROW)), dict)
    except (ValueError, RecursionError):  # it goes on in the next line, or ends with the first
        return True


def existing(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the annotation files.

    Raises:
        ValueError: one is not there.
    """
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: no such annotation file")
        yield path


def _line_rows(path: Path, *, request: ImportRequest, report: ImportReport) -> Iterator[tuple[str, Any]]:
    for number, line in text_rows(path, encoding=request.encoding):
        if not line.strip():
            continue
        report.rows += 1
        try:
            yield f"line {number}", json_of(whole(line))
        except RecordError as error:
            report.refuse(f"line {number}", reason=error.reason, detail=error.detail)


def _list_rows(path: Path, *, request: ImportRequest, report: ImportReport) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(json_parts(path, encoding=request.encoding)):
        report.rows += 1
        yield f"entry {number}", row


def whole_json(path: Path, *, encoding: str | None = None) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: it is not one, or not there.
    """
    (path,) = existing([path])
    try:
        return json_of(read_text(path, encoding=encoding), once=False)
    except RecordError as error:
        raise ValueError(f"{path}: is not JSON: {error.detail}") from None
