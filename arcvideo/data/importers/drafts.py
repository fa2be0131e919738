"""What every annotation reader makes: drafts, records whose media have not been looked at yet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arcvideo.shards.members import AUDIO, IMAGE, VIDEO, Problem
from arcvideo.tasks import RecordError, make_sample

_DOTS = str.maketrans({".": "_"})


@dataclass(kw_only=True)
class ImportReport:
    """What became of the rows: rows = used + problems. A row is what becomes one item."""

    rows: int = 0
    used: int = 0
    problems: list[Problem] = field(default_factory=list)
    loose_tags: int = 0
    """Questions whose `<video>` is not followed by a newline; the released trainer fails on them, we accept them."""

    def refuse(self, key: str, *, reason: str, detail: str) -> None:
        """Lists a row that is not used."""
        self.problems.append(Problem(key=key, stage="import", reason=reason, detail=detail))


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

    def media_folder(self) -> Path:
        """The folder of the media.

        Raises:
            ValueError: none is given, or it does not exist.
        """
        if self.videos is None:
            raise ValueError("--videos is missing: name the folder of the media files")
        for path in (self.videos, self.audio):
            if path is not None and not path.is_dir():
                raise ValueError(f"{path}: no such folder")
        return self.videos


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A record whose media have not been looked at yet."""

    key: str
    items: tuple[Mapping[str, Any], ...]
    labels: tuple[str, ...]
    """What each item is called in the list of problems."""
    media: Path | None
    """None for text only."""
    sound: Path | None = None
    """Sound that is used when `media` has none."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the record."""


@dataclass(kw_only=True)
class Drafting:
    """Collects items by the media they are about, and checks each before it is kept."""

    report: ImportReport
    audio: Path | None = None
    _items: dict[Path | str, list[Mapping[str, Any]]] = field(default_factory=dict)
    _labels: dict[Path | str, list[str]] = field(default_factory=dict)
    _media: dict[Path | str, tuple[Path | None, str]] = field(default_factory=dict)
    _extra: dict[Path | str, Mapping[str, Any]] = field(default_factory=dict)

    def add(
        self,
        item: Mapping[str, Any],
        *,
        label: str,
        name: str,
        media: Path | None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Keeps an item; items about the same media become one record.

        Args:
            label: what the item is called when it is refused, now or later.
            name: the record's key, before dots are replaced and doubles are told apart.
            media: its file, None for text only.
            extra: further fields of the record; those given with its first item count.

        Raises:
            RecordError: the item cannot become a sample.
        """
        make_sample(item, key=label, media_key=None if media is None else name)
        place = name if media is None else media
        self._items.setdefault(place, []).append(item)
        self._labels.setdefault(place, []).append(label)
        self._media.setdefault(place, (media, name))
        self._extra.setdefault(place, extra or {})

    def drafts(self) -> Iterator[Draft]:
        """The records, in the order in which their first items came."""
        taken: set[str] = set()
        for place, items in self._items.items():
            media, name = self._media[place]
            yield Draft(
                key=_free(record_name(name), taken=taken),
                items=tuple(items),
                labels=tuple(self._labels[place]),
                media=media,
                sound=sound_beside(media.stem, folder=self.audio) if media is not None else None,
                extra=self._extra[place],
            )


def record_name(name: str) -> str:
    """A record key: keys end at the first dot of a name, so dots would cut them."""
    return "/".join(part.translate(_DOTS) for part in name.split("/"))


def _free(name: str, *, taken: set[str]) -> str:
    """The name, or the name with the first number that makes it new."""
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free


def media_path(name: Any, *, folder: Path) -> Path:
    """Where a media file named by an annotation lies.

    Raises:
        RecordError: `no_media`, `unsafe_name`: a name that leaves the folder.
    """
    if not isinstance(name, str) or not name:
        raise RecordError("no_media", "no media file is named")
    if Path(name).is_absolute() or ".." in Path(name).parts or "\0" in name:
        raise RecordError("unsafe_name", f"media {name!r}")
    return folder / name


def found_media(stem: str, *, folder: Path) -> Path:
    """The media file with this base name, whatever its type; a path that does not exist when there is none.

    Raises:
        RecordError: `unsafe_name`.
    """
    wanted = media_path(f"{stem}.mp4", folder=folder)
    kinds = ("mp4", *sorted((VIDEO | AUDIO | IMAGE) - {"mp4"}))
    return next((path for kind in kinds if (path := folder / f"{stem}.{kind}").is_file()), wanted)


def sound_beside(stem: str, *, folder: Path | None) -> Path | None:
    """The sound file with this base name in a folder of sounds."""
    if folder is None:
        return None
    return next((path for kind in sorted(AUDIO) if (path := folder / f"{stem}.{kind}").is_file()), None)


def json_rows(paths: Iterable[Path], *, report: ImportReport) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of every object in JSON-lines files and in files that hold one JSON list; the rest is refused."""
    for path in existing(paths):
        with open(path, "rb") as file:
            while (first := file.read(1)).isspace():
                pass
        rows = _list_rows(path, report=report) if first == b"[" else _line_rows(path, report=report)
        for place, row in rows:
            if isinstance(row, dict):
                yield place, row
            else:
                report.refuse(place, reason="broken_json", detail="not an object")


def existing(paths: Iterable[Path]) -> Iterator[Path]:
    """The annotation files.

    Raises:
        ValueError: one is not there.
    """
    for path in paths:
        if not path.is_file():
            raise ValueError(f"{path}: no such annotation file")
        yield path


def _line_rows(path: Path, *, report: ImportReport) -> Iterator[tuple[str, Any]]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            report.rows += 1
            try:
                yield f"line {number}", json.loads(line.decode("utf-8"))
            except (ValueError, RecursionError) as error:
                report.refuse(f"line {number}", reason="broken_json", detail=str(error))


def _list_rows(path: Path, *, report: ImportReport) -> Iterator[tuple[str, Any]]:
    for number, row in enumerate(whole_json(path)):
        report.rows += 1
        yield f"entry {number}", row


def whole_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it is not one, or not there.
    """
    (path,) = existing([path])
    try:
        return json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON: {error}") from None
