"""What the index needs to know of a record's media before training: length, picture or not, sound or not."""

from __future__ import annotations

from dataclasses import dataclass

from arcvideo.media.decode import decode
from arcvideo.media.errors import MediaError
from arcvideo.media.picture import Selection, VideoFacts
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


def probe(data: bytes, *, name: str, limits: MediaLimits | None = None) -> MediaFacts:
    """The facts that decoding the file will find, from the same code; the sound is decoded, pictures are only counted.

    Raises:
        MediaError: the file cannot be read.
    """
    found = decode(data, name=name, choose=_no_frames, limits=limits or MediaLimits())
    samples = 0 if found.waveform is None else found.waveform.size
    if found.facts is not None:
        duration = found.facts.duration
    elif samples:
        duration = samples / SAMPLE_RATE
    else:
        raise MediaError("no_media", f"{name}: its sound stream holds no samples")
    return MediaFacts(duration=duration, has_video=found.facts is not None, sound_samples=samples)


def _no_frames(facts: VideoFacts) -> Selection:
    return Selection(indices=())
