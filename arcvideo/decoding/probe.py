"""What the index needs to know of a record's media before training: length, picture or not, sound or not, content."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from arcvideo.media.decode import decode
from arcvideo.media.errors import MediaError
from arcvideo.media.picture import Selection, VideoFacts
from arcvideo.media.read import media_digest
from arcvideo.media.settings import MediaLimits
from arcvideo.media.sound import SAMPLE_RATE


@dataclass(frozen=True, kw_only=True)
class MediaFacts:
    """Facts of one media file."""

    duration: float
    """Seconds: of the picture (frames / average rate, or by their times), else samples of the sound."""
    has_video: bool
    sound_samples: int
    """Samples at 16 kHz; 0 without sound."""


NO_MEDIA = MediaFacts(duration=0.0, has_video=False, sound_samples=0)


@dataclass(frozen=True, kw_only=True)
class Extent:
    """A media file: a file of its own, or a part of a shard."""

    path: Path
    name: str
    """For messages."""
    offset: int = 0
    size: int | None = None
    """Bytes; None reads to the end."""

    def read(self, *, most: int) -> bytes:
        """Return the bytes.

        Args:
            most: bytes that a file may have; of a larger one none is read.

        Raises:
            MediaError: `unreadable`, `truncated`, `too_large`.
        """
        try:
            with open(self.path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size - self.offset if self.size is None else self.size
                if size > most:
                    raise MediaError("too_large", f"{self.name}: {size} bytes, the limit is {most}")
                file.seek(self.offset)
                data = file.read() if self.size is None else file.read(self.size)
        except OSError as error:
            raise MediaError("unreadable", f"{self.name}: {error}") from error
        if self.size is not None and len(data) != self.size:
            raise MediaError("truncated", f"{self.name}: {self.size} bytes expected, {len(data)} read")
        return data


@dataclass(frozen=True, kw_only=True)
class ProbeJob:
    """A record's media: a picture or a sound, and a sound that is used when the first file has none."""

    main: Extent
    sound: Extent | None = None


@dataclass(frozen=True, kw_only=True)
class Probed:
    """What was found."""

    facts: MediaFacts
    uses_sound: bool
    """The job's separate sound is part of the clip."""
    digest: bytes
    """32 bytes that name the content of the files used."""


def probe(data: bytes, *, name: str, limits: MediaLimits | None = None) -> MediaFacts:
    """Return the facts that decoding the file will find, from the same code; the sound is decoded, pictures are only
    counted.

    Raises:
        MediaError: the file cannot be read.
    """
    decoded = decode(data, name=name, choose=_no_frames, limits=limits or MediaLimits())
    samples = 0 if decoded.waveform is None else decoded.waveform.size
    if decoded.facts is not None:
        duration = decoded.facts.duration
    elif samples:
        duration = samples / SAMPLE_RATE
    else:
        raise MediaError("no_media", f"{name}: its sound stream holds no samples")
    return MediaFacts(duration=duration, has_video=decoded.facts is not None, sound_samples=samples)


def examine(job: ProbeJob, *, limits: MediaLimits | None = None) -> Probed:
    """Read and probe a record's media in this process.

    Raises:
        MediaError: a file that is needed cannot be read.
    """
    limits = limits or MediaLimits()
    data = job.main.read(most=limits.max_bytes)
    facts = probe(data, name=job.main.name, limits=limits)
    if job.sound is None or facts.sound_samples:
        return Probed(facts=facts, uses_sound=False, digest=media_digest(data))
    track = job.sound.read(most=limits.max_bytes)
    samples = probe(track, name=job.sound.name, limits=limits).sound_samples
    if not samples:
        raise MediaError("no_media", f"{job.sound.name}: has no sound")
    joined = MediaFacts(duration=facts.duration, has_video=facts.has_video, sound_samples=samples)
    return Probed(facts=joined, uses_sound=True, digest=media_digest(data, sidecar_audio=track))


def _no_frames(facts: VideoFacts) -> Selection:
    return Selection(indices=())
