"""Drafts -> shards: media are examined in parallel, bytes are copied untouched, and a stopped import goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, tee
from pathlib import Path
from typing import Any

from arcvideo.data.importers.drafts import Draft, ImportReport
from arcvideo.decoding.pool import MediaPool
from arcvideo.decoding.probe import Extent, Probed, ProbeJob
from arcvideo.media.errors import MediaError
from arcvideo.shards.members import AUDIO, IMAGE, VIDEO, Problem
from arcvideo.shards.write import Record, write_shards
from arcvideo.tasks.fields import RecordError, check_times


@dataclass(kw_only=True)
class _Part:
    """What went into one shard; a line of the ledger."""

    shard: str = ""
    drafts: int = 0
    """Drafts looked at, used or not."""
    used: int = 0
    """Rows used."""
    digest: str = ""
    """Of the drafts and of the sizes of their files."""
    problems: list[dict[str, str]] = field(default_factory=list)


def write_drafts(
    drafts: Sequence[Draft],
    *,
    out: Path,
    name: str,
    per_shard: int,
    workers: int,
    report: ImportReport,
    advance: Callable[[int], Any],
) -> list[Path]:
    """Write the records whose media can be read; the paths of all shards.

    Every finished shard is a line of `out/<name>.import.jsonl`. When the same import is started again, they are kept
    and the rest is written: the shards are those of an import that was never stopped, byte for byte.

    Args:
        name: shards are called `<name>-000000.tar`, ...
        workers: processes that examine media; 0 does it here.
        report: rows used and problems are added to it.
        advance: called with the number of drafts done since the last call.

    Raises:
        ValueError: `out` holds the beginning of another import; no record can be used.
    """
    ledger = out / f"{name}.import.jsonl"
    parts = _finished(ledger, drafts=drafts, out=out)
    advance(sum(part.drafts for part in parts))
    rest = islice(drafts, sum(part.drafts for part in parts), None)
    now = _Part()

    def finish(path: Path) -> None:
        nonlocal now
        now.shard = path.name
        parts.append(now)
        with open(ledger, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(now)) + "\n")
        now = _Part()

    out.mkdir(parents=True, exist_ok=True)
    with MediaPool(count=workers) as pool:
        for_jobs, for_records = tee(rest)
        probes = pool.examined(job for draft in for_jobs for job in _jobs(draft))

        def records() -> Iterator[Record]:
            for draft in for_records:
                results = list(islice(probes, 1 + len(draft.more)))
                record, result = _record(draft, results, part=now), results[0]
                if draft.names_sound and isinstance(result, Probed) and not result.uses_sound:
                    report.ignored["sound beside a video that has its own"] += len(draft.items)
                now.drafts += 1
                now.digest = _digest(now.digest, draft)
                advance(1)
                if record is not None:
                    yield record

        try:
            write_shards(records(), out=out, name=name, per_shard=per_shard, first=len(parts), finished=finish)
        finally:
            for part in [*parts, now]:
                report.used += part.used
                report.problems += [Problem(**problem) for problem in part.problems]
    return [out / part.shard for part in parts]


def _jobs(draft: Draft) -> list[ProbeJob | None]:
    """Return what to examine, one for each medium; None where there is nothing."""
    return [_job(draft.media, sound=draft.sound), *(_job(path, sound=None) for path in draft.more)]


def _job(media: Path | None, *, sound: Path | None) -> ProbeJob | None:
    if media is None or not media.is_file():
        return None
    beside = None if sound is None else Extent(path=sound, name=sound.name)
    return ProbeJob(main=Extent(path=media, name=media.name), sound=beside)


def _record(draft: Draft, probes: Sequence[Probed | MediaError | None], *, part: _Part) -> Record | None:
    """Return the record with the bytes of its media, or None and a problem for each of its rows."""
    try:
        media = {} if draft.media is None else _media(draft, draft.media, probes[0])
        if draft.more:
            several = [
                media,
                *(_media(draft, path, probed) for path, probed in zip(draft.more, probes[1:], strict=True)),
            ]
            media = {f"{number}.{kind}": data for number, of in enumerate(several) for kind, data in of.items()}
    except (MediaError, OSError) as error:
        reason = getattr(error, "reason", "unreadable")
        part.problems += [asdict(_problem(label, reason=reason, detail=str(error))) for label in draft.labels]
        return None
    seconds = max((probed.facts.duration for probed in probes if isinstance(probed, Probed)), default=0.0)
    items = []
    for item, label in zip(draft.items, draft.labels, strict=True):
        try:
            check_times(item, seconds=seconds)
            items.append(item)
        except RecordError as error:
            part.problems.append(asdict(_problem(label, reason=error.reason, detail=error.detail)))
    part.used += len(items)
    return Record(key=draft.key, content={**draft.extra, "items": items}, media=media) if items else None


def _media(draft: Draft, path: Path, probed: Probed | MediaError | None) -> dict[str, bytes]:
    if isinstance(probed, MediaError):
        raise probed
    if probed is None:
        raise MediaError("no_media", f"{path}: no such file")
    media = {_type(path, known=VIDEO | AUDIO | IMAGE, other="media"): path.read_bytes()}
    if probed.uses_sound and path == draft.media:
        assert draft.sound is not None
        media[_type(draft.sound, known=AUDIO, other="mka")] = draft.sound.read_bytes()
    return media


def _type(path: Path, *, known: Collection[str], other: str) -> str:
    """Return the extension to store a file under; what it is, its content says."""
    extension = path.suffix.lower().lstrip(".")
    return extension if extension in known else other


def _problem(label: str, *, reason: str, detail: str) -> Problem:
    return Problem(key=label, stage="import", reason=reason, detail=detail)


def _digest(before: str, draft: Draft) -> str:
    """Return chains a draft, and the sizes of its files, onto the digest of those before it."""
    paths = (draft.media, draft.sound, *draft.more)
    sizes = [path.stat().st_size if path is not None and path.is_file() else -1 for path in paths]
    named = [str(draft.media), str(draft.sound), *map(str, draft.more)]
    text = json.dumps([before, draft.key, draft.items, draft.extra, *named, sizes])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _finished(ledger: Path, *, drafts: Sequence[Draft], out: Path) -> list[_Part]:
    """Return the parts that an earlier, stopped import left complete."""
    if not ledger.exists():
        return []
    parts: list[_Part] = []
    place = 0
    for line in ledger.read_text(encoding="utf-8").split("\n"):
        try:
            part = _Part(**json.loads(line))
        except (ValueError, TypeError):
            break  # cut short by the stop
        digest = ""
        for draft in drafts[place : place + part.drafts]:
            digest = _digest(digest, draft)
        if digest != part.digest or not (out / part.shard).is_file():
            raise ValueError(
                f"{ledger} tells of another import, or its files changed: give an empty --out, or delete it"
            )
        parts.append(part)
        place += part.drafts
    scratch = ledger.with_name(f".{ledger.name}.partial")
    scratch.write_text("".join(json.dumps(asdict(part)) + "\n" for part in parts))
    os.replace(scratch, ledger)
    return parts
