"""Our own records as plain JSON lines, and folders of sound files with their transcripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from arcvideo.data.importers.drafts import (
    Drafting,
    Drafts,
    ImportReport,
    ImportRequest,
    json_rows,
    judged,
    media_key,
    media_path,
)
from arcvideo.shards.members import AUDIO
from arcvideo.shards.text import read_text
from arcvideo.tasks import RecordError

_OWN_FIELDS = ("key", "media", "items", "text_only")


def import_records(request: ImportRequest, *, report: ImportReport) -> Drafts:
    """Return records of docs/data-format.md, one a line, with `media` naming the file, or a list of files in the order
    in which they are shown: {"key", "media", "items", ...}.

    `key` defaults to the media's name; a record without `media` must say `"text_only": true`.

    Raises:
        ValueError: a file or folder is missing.
    """
    request.media_folder()
    drafting = Drafting(report=report, audio=request.audio)
    for place, row in json_rows(request, report=report):
        label, items = str(row.get("key", place)), None
        with judged(label, report=report, place=place):
            name = row.get("media")
            first, *behind = name if isinstance(name, list) and name else [name]
            if name is None and row.get("text_only") is not True:
                raise RecordError("no_media", 'no "media"; say "text_only": true when that is meant')
            media = None if name is None else media_path(first, request=request)
            more = [media_path(path, request=request) for path in behind]
            key = row.get("key", label if media is None else media_key(media, request=request))
            if not isinstance(key, str) or not key or key.startswith("/") or ".." in Path(key).parts:
                raise RecordError("unsafe_name", f"key {key!r}")
            if not isinstance(row.get("items"), list) or not row["items"]:
                raise RecordError("no_items", "'items' must be a non-empty list")
            items = row["items"]
        if items is None:
            continue
        extra = {field: value for field, value in row.items() if field not in _OWN_FIELDS}
        report.rows += len(items) - 1  # the line was counted as one
        for number, item in enumerate(items):
            with judged(f"{label}/{number}", report=report, place=place):
                drafting.add(item, label=f"{label}/{number}", name=key, media=media, extra=extra, more=more)
    return drafting.drafts()


def import_transcripts(request: ImportRequest, *, report: ImportReport) -> Drafts:
    """Sound files with their transcripts: `x.wav` beside `x.txt`, or LibriSpeech's `*.trans.txt` of `x TEXT` lines.

    The annotations are folders, searched with all their sub-folders; every sound file without a transcript and every
    transcript without a sound file is listed.

    Raises:
        ValueError: a folder is missing.
    """
    drafting = Drafting(report=report)
    for root in request.annotations:
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder of sound files and transcripts")
        texts = dict(_transcripts(root, request=request, report=report))
        sounds = sorted(path for path in root.rglob("*") if path.suffix.lower().lstrip(".") in AUDIO and path.is_file())
        for sound in sounds:
            report.rows += 1
            label = str(sound.relative_to(root))
            text = texts.pop(sound.with_suffix(""), None)
            with judged(label, report=report):
                if text is None:
                    raise RecordError("no_answer", f"no transcript {sound.with_suffix('.txt').name} beside it")
                name = str(sound.relative_to(root).with_suffix(""))
                drafting.add({"task": "asr", "answer": text}, label=label, name=name, media=sound)
        for stem in texts:
            report.rows += 1
            report.refuse(str(stem.relative_to(root)), reason="no_media", detail="a transcript without a sound file")
    return drafting.drafts()


def _transcripts(root: Path, *, request: ImportRequest, report: ImportReport) -> Iterator[tuple[Path, str]]:
    """Yield (path of the sound without its extension, transcript)."""
    for path in sorted(path for path in root.rglob("*") if path.suffix.lower() == ".txt" and path.is_file()):
        try:
            text = read_text(path, encoding=request.encoding)
        except RecordError as error:
            report.rows += 1
            report.refuse(str(path.relative_to(root)), reason=error.reason, detail=error.detail)
            continue
        if not path.name.lower().endswith(".trans.txt"):
            yield path.with_suffix(""), text.strip()
            continue
        for line in text.split("\n"):
            name, _, said = line.strip().partition(" ")
            if name:
                yield path.parent / name, said.strip()
