"""A record as it lies in a shard: its JSON, and which of its members are its media.

One clip is a picture, a sound or both (`key.mp4`, `key.wav`). Several media are numbered in the order in which they are
shown: `key.0.jpg`, `key.1.mp4`, `key.1.wav` (the sound of that clip), `key.2.mp3`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from arcvideo.decoding.probe import NO_MEDIA, Extent, MediaFacts, Probed, ProbeJob
from arcvideo.media.errors import MediaError
from arcvideo.shards.members import AUDIO, IMAGE, OTHER, VIDEO, Member, RecordMembers, numbered
from arcvideo.shards.text import json_value
from arcvideo.tasks import RecordError


@dataclass(frozen=True, kw_only=True)
class RecordMedia:
    """Where a record's media lie and what they are."""

    main: Member | None = None
    sound: Member | None = None
    digest: bytes = bytes(32)
    facts: MediaFacts = NO_MEDIA
    parts: tuple[RecordMedia, ...] = ()
    """Of several media, each; the rest then is of the first one, or of all together."""

    @property
    def longest(self) -> float:
        """Seconds of the longest medium."""
        return max((part.facts.duration for part in self.parts), default=self.facts.duration)

    def columns(self) -> tuple[Any, ...]:
        main, sound = self.main, self.sound
        return (
            *((main.offset, main.size) if main else (0, 0)),
            *((sound.offset, sound.size) if sound else (0, 0)),
            np.frombuffer(self.digest, dtype=np.uint8),
            self.facts.duration,
            self.facts.has_video,
            self.facts.sound_samples,
        )


def json_member(group: RecordMembers) -> Member:
    members = [member for member in group.members if member.extension == "json"]
    if len(members) != 1:
        raise RecordError("no_json" if not members else "several_json", f"{len(members)} .json members")
    return members[0]


def parse_record(data: bytes) -> dict[str, Any]:
    """Return the JSON object of a record.

    Raises:
        RecordError: `broken_json`.
    """
    record = json_value(data)
    if not isinstance(record, dict):
        raise RecordError("broken_json", f"the record must be an object, got {type(record).__name__}")
    return record


def _media_groups(group: RecordMembers) -> list[RecordMembers]:
    """Return the record's media, each as a record of its own: the group itself, or the groups of its numbers in
    order.
    """
    parts: dict[int, RecordMembers] = {}
    for member in group.members:
        pair = numbered(member.extension)
        if pair is not None:
            part = parts.setdefault(pair[0], RecordMembers(key=f"{group.key}.{pair[0]}"))
            part.members.append(replace(member, extension=pair[1]))
    plain = [member for member in group.members if member.extension in VIDEO | IMAGE | AUDIO]
    return [group] if not parts or plain else [parts[number] for number in sorted(parts)]


def _media_members(group: RecordMembers) -> tuple[list[Member], list[Member]]:
    """Return pictures (videos or stills) and sounds; a single member of unknown type is tried as a picture."""
    pictures = [member for member in group.members if member.extension in VIDEO | IMAGE]
    sounds = [member for member in group.members if member.extension in AUDIO]
    if not pictures and not sounds:
        unknown = [member for member in group.members if member.extension.rpartition(".")[2] not in OTHER]
        pictures = unknown if len(unknown) == 1 else []
    return pictures, sounds


def probe_jobs(group: RecordMembers, *, shard: Path) -> list[ProbeJob | None]:
    """Return what to probe of a record, a job for each of its media, at least one.

    A medium is one picture and at most one sound, or one sound; its job is None when its members are otherwise.
    """
    return [_probe_job(part, shard=shard) for part in _media_groups(group)]


def _probe_job(group: RecordMembers, *, shard: Path) -> ProbeJob | None:
    pictures, sounds = _media_members(group)
    if len(pictures) > 1 or len(sounds) > 1 or not (pictures or sounds):
        return None
    main, *rest = [
        Extent(path=shard, name=member.name, offset=member.offset, size=member.size) for member in (*pictures, *sounds)
    ]
    return ProbeJob(main=main, sound=rest[0] if rest else None)


def record_media(
    group: RecordMembers, *, record: Mapping[str, Any], probed: Sequence[Probed | MediaError | None]
) -> RecordMedia:
    """Return where the record's media lie and what probing found, in the order of `probe_jobs`."""
    parts = tuple(
        _one_medium(part, record=record, probed=result)
        for part, result in zip(_media_groups(group), probed, strict=True)
    )
    if len(parts) == 1:
        return parts[0]
    facts = MediaFacts(
        duration=sum(part.facts.duration for part in parts),
        has_video=any(part.facts.has_video for part in parts),
        sound_samples=sum(part.facts.sound_samples for part in parts),
    )
    digest = hashlib.sha256(b"".join(part.digest for part in parts)).digest()
    return replace(parts[0], digest=digest, facts=facts, parts=parts)


def _one_medium(group: RecordMembers, *, record: Mapping[str, Any], probed: Probed | MediaError | None) -> RecordMedia:
    pictures, sounds = _media_members(group)
    types = VIDEO | IMAGE | AUDIO
    if isinstance(probed, MediaError) and (pictures or sounds)[0].extension not in types:
        if record.get("text_only") is True:
            return RecordMedia()
        raise RecordError("no_media", f"{probed.detail}; types that are known: {known_types()}")
    if not pictures and not sounds:
        if record.get("text_only") is True:
            return RecordMedia()
        other = ", ".join(member.name for member in group.members if member.extension != "json")
        if not other:
            raise RecordError("no_media", 'no media file; say "text_only": true when that is meant')
        raise RecordError("no_media", f"{other}: no known type of media; {known_types()}")
    if len(pictures) > 1 or len(sounds) > 1 or any(numbered(member.extension) for member in group.members):
        names = ", ".join(member.name for member in group.members if member.extension != "json")
        detail = "several media are numbered: KEY.0.mp4, KEY.1.jpg"
        raise RecordError("several_media", f"more than one picture or sound: {names}; {detail}")
    assert probed is not None
    if isinstance(probed, MediaError):
        raise probed
    sound = sounds[0] if probed.uses_sound else None
    return RecordMedia(main=(pictures or sounds)[0], sound=sound, digest=probed.digest, facts=probed.facts)


def known_types() -> str:
    """Return the extensions of media, for a message."""
    return "; ".join(
        f"{name} {' '.join(sorted(types))}" for name, types in (("video", VIDEO), ("sound", AUDIO), ("picture", IMAGE))
    )
