"""Drafts -> shards: media are examined in parallel and copied once, and a stopped import goes on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, tee
from pathlib import Path
from typing import Any

from arcvideo.data.importers.drafts import ImportReport
from arcvideo.data.importers.ledger import Ledger, Part, draft_state
from arcvideo.data.importers.sources import Medium, Opened, label_of, opened, size_of, unchanged
from arcvideo.data.importers.spool import Draft, import_problem
from arcvideo.decoding.pool import MediaPool
from arcvideo.decoding.probe import Extent, Probed, ProbeJob
from arcvideo.files import FULL
from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits
from arcvideo.shards.columns import CLIP, ITEM
from arcvideo.shards.members import AUDIO, IMAGE, VIDEO, Problem
from arcvideo.shards.write import Content, Record, ShardWriter, json_text, room_of_end, tar_size
from arcvideo.tasks.fields import RecordError, check_times

BYTES_PER_SHARD = 1 << 30
_OF_STATE = 64
"""Bytes of a draft in the ledger, at most."""
_OF_FILES = 96 << 10
"""Bytes on disk of the digest, the lock, the line of the ledger and the files of the index, without their rows."""


def write_drafts(
    drafts: Iterable[Draft],
    *,
    ledger: Ledger,
    name: str,
    per_shard: int,
    workers: int,
    report: ImportReport,
    advance: Callable[[int], Any],
    bytes_per_shard: int = BYTES_PER_SHARD,
) -> list[Path]:
    """Write the records whose media can be read; the paths of all shards, beside the ledger.

    When the same import is started again, finished shards are kept and the rest is written: the shards are those of an
    import that was never stopped, byte for byte, whatever `workers` is.

    Args:
        ledger: of these shards, open.
        name: shards are called `<name>-000000.tar`, ...
        per_shard: records of a shard.
        workers: processes that examine media; 0 does it here.
        report: rows used and problems are added to it.
        advance: called with the number of drafts done since the last call.
        bytes_per_shard: a shard is full after them, too.

    Raises:
        ValueError: a draft of a finished shard changed; no record can be used; the disk is full.
    """
    out, part = ledger.path.parent, Part()

    def count(finished: Part) -> None:
        report.used += finished.used
        report.problems.extend(Problem(**problem) for problem in finished.problems)

    def kept(finished: Part) -> None:
        count(finished)
        advance(finished.drafts)

    rest = ledger.unfinished(drafts, each=kept)
    with MediaPool(count=workers) as pool:
        examined = _examined(rest, pool=pool)
        try:
            waiting = next(examined, None)
            while waiting is not None:
                number = len(ledger.parts)
                with ShardWriter(out / f"{name}-{number:06d}.tar") as shard:
                    while waiting is not None and shard.records < per_shard and shard.size < bytes_per_shard:
                        _add(waiting, shard=shard, part=part, report=report)
                        advance(1)
                        waiting = next(examined, None)
                    if not shard.records:
                        break
                    fact = shard.complete()
                    part.shard, part.size, part.sha256 = shard.path.name, fact["size"], fact["sha256"]
                    ledger.add(part)
                    count(part)
                    part = Part()
                    shard.publish()
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise ValueError(
                f"--out {out}: the disk is full ({error.strerror}); {len(ledger.parts)} shards are finished and stay: "
                "make room and start the same command again"
            ) from error
        finally:
            examined.close()
            count(part)
    if not ledger.parts:
        raise ValueError(f"nothing to write to {out}: there are no records")
    return [out / part.shard for part in ledger.parts]


def room_of_shard() -> int:
    """Return the bytes that a shard takes besides its records: the end of the tar, and the files beside it."""
    return room_of_end() + _OF_FILES


def room_needed(draft: Draft) -> int:
    """Return the bytes that a draft takes in a shard, its index and the ledger, at most; none when a file of it is over
    the limit, which is refused.
    """
    media = [medium for medium in (draft.media, draft.sound, *draft.more) if medium is not None]
    if any(size_of(medium) > MediaLimits().max_bytes for medium in media):
        return 0
    sizes = {"json": len(json_text({**draft.extra, "items": draft.items}, has_media=draft.media is not None))}
    for number, medium in enumerate((draft.media, draft.sound, *draft.more)):
        if medium is not None:
            sizes[f"{number}.{_type(medium, known=VIDEO | AUDIO | IMAGE, other='media')}"] = size_of(medium)
    index = CLIP.itemsize * len(sizes) + ITEM.itemsize * len(draft.items) + len(draft.key.encode("utf-8", "replace"))
    return tar_size(draft.key, sizes) + index + _OF_STATE


@dataclass(kw_only=True)
class _Ready:
    """A draft whose files are open."""

    draft: Draft
    state: str
    """As it was when its files were opened."""
    media: list[Opened | MediaError | None]
    sound: Opened | MediaError | None
    probed: Sequence[Probed | MediaError | None] = ()

    def close(self) -> None:
        for medium in (*self.media, self.sound):
            if isinstance(medium, Opened):
                medium.close()


def _examined(drafts: Iterator[Draft], *, pool: MediaPool) -> Generator[_Ready, None, None]:
    """Yield drafts in order with what their media are; a few are open at a time."""
    for_jobs, in_order = tee(map(_ready, drafts))
    probes = pool.examined(job for ready in for_jobs for job in _jobs(ready))
    for ready in in_order:
        ready.probed = list(islice(probes, len(ready.media)))
        try:
            yield ready
        finally:
            ready.close()


def _ready(draft: Draft) -> _Ready:
    media = [None if medium is None else _opened(medium) for medium in (draft.media, *draft.more)]
    sound = None if draft.sound is None else _opened(draft.sound)
    return _Ready(draft=draft, state=draft_state(draft), media=media, sound=sound)


def _opened(medium: Medium) -> Opened | MediaError:
    try:
        return opened(medium)
    except MediaError as error:
        return error


def _jobs(ready: _Ready) -> Iterator[ProbeJob | None]:
    """Yield what to examine, one for each medium; None where there is nothing."""
    for number, medium in enumerate(ready.media):
        if not isinstance(medium, Opened):
            yield None
            continue
        sound = _extent(ready.sound) if number == 0 and isinstance(ready.sound, Opened) else None
        yield ProbeJob(main=_extent(medium), sound=sound)


def _extent(medium: Opened) -> Extent:
    name = medium.medium.name if isinstance(medium.medium, Path) else label_of(medium.medium)
    return Extent(path=medium.path, name=name)


def _add(ready: _Ready, *, shard: ShardWriter, part: Part, report: ImportReport) -> None:
    """Write the record of a draft, or a problem for each of its rows."""
    draft = ready.draft
    part.drafts += 1
    part.states.append(ready.state)
    items, refused = [], []
    try:
        media = _media(ready)
        seconds = max((probed.facts.duration for probed in ready.probed if isinstance(probed, Probed)), default=0.0)
        for item, label in zip(draft.items, draft.labels, strict=True):
            try:
                check_times(item, seconds=seconds)
                items.append(item)
            except RecordError as error:
                refused.append(_problem(label, reason=error.reason, detail=error.detail))
        if items:
            content = {**draft.extra, "items": items}
            shard.add(Record(key=draft.key, content=content, media=media, confirm=lambda: _confirm(ready)))
    except MediaError as error:
        items, refused = [], [_problem(label, reason=error.reason, detail=error.detail) for label in draft.labels]
    part.used += len(items)
    part.problems += refused
    first = ready.probed[0]
    if draft.names_sound and isinstance(first, Probed) and not first.uses_sound:
        report.ignored["sound beside a video that has its own"] += len(draft.items)


def _media(ready: _Ready) -> dict[str, Content]:
    """Return the files of a record by the names they have in a shard.

    Raises:
        MediaError: one cannot be used.
    """
    clips: list[dict[str, Content]] = []
    for number, (medium, probed) in enumerate(zip(ready.media, ready.probed, strict=True)):
        if medium is None:
            continue
        for side in (medium, probed):
            if isinstance(side, MediaError):
                raise side
        assert isinstance(medium, Opened)
        assert isinstance(probed, Probed)
        clips.append({_type(medium.medium, known=VIDEO | AUDIO | IMAGE, other="media"): medium})
        if isinstance(ready.sound, MediaError) and number == 0 and not probed.facts.sound_samples:
            raise ready.sound  # with a sound of its own the picture does not need it
        if probed.uses_sound:
            assert number == 0
            assert isinstance(ready.sound, Opened)
            clips[-1][_type(ready.sound.medium, known=AUDIO, other="mka")] = ready.sound
    if len(clips) < 2:
        return clips[0] if clips else {}
    return {f"{number}.{kind}": file for number, clip in enumerate(clips) for kind, file in clip.items()}


def _confirm(ready: _Ready) -> None:
    """Complain when what was copied is not what was examined, or a file was changed meanwhile."""
    for number, (medium, probed) in enumerate(zip(ready.media, ready.probed, strict=True)):
        if isinstance(medium, Opened) and isinstance(probed, Probed):
            sounds = [ready.sound] if number == 0 and probed.uses_sound and isinstance(ready.sound, Opened) else []
            unchanged([medium, *sounds], digest=probed.digest)
    if draft_state(ready.draft) != ready.state:
        raise MediaError("unreadable", f"{ready.draft.key}: its files changed while it was imported; import it again")


def _type(medium: Medium, *, known: Collection[str], other: str) -> str:
    """Return the extension to store a file under; what it is, its content says."""
    extension = medium.suffix.lower().lstrip(".")
    return extension if extension in known else other


def _problem(label: str, *, reason: str, detail: str) -> dict[str, str]:
    return asdict(import_problem(label, reason=reason, detail=detail))
