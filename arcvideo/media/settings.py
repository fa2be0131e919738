"""Settings of the media room, and the layout it needs to know; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

DECODERS = ("pyav", "torchcodec")
"""Decoders of the picture."""
RESIZERS = ("pillow", "swscale")
"""Who makes frames of the model's size."""
FORMS = ("jpeg", "raw")
"""Forms of stored frames."""


class Layout(Protocol):
    """The part of the model's media layout that decoding depends on."""

    @property
    def image_size(self) -> int: ...
    @property
    def mel_bins(self) -> int: ...
    @property
    def audio_positions(self) -> int: ...
    @property
    def max_frames(self) -> int: ...
    @property
    def max_seconds(self) -> int: ...
    @property
    def middle_sound(self) -> bool: ...


@dataclass(frozen=True, kw_only=True)
class MediaLimits:
    """What a single file may cost; more is a MediaError, never a silent cut."""

    max_bytes: int = 2 << 30
    """Size of the encoded file."""
    max_pixels: int = 8192 * 8192
    """Width times height of a frame."""
    max_seconds: float = 4 * 3600.0
    """Duration of the picture or of the sound."""
    deadline_seconds: float = 120.0
    """Wall time for one file in a killable worker."""
    max_memory_bytes: int = 8 << 30
    """Address space of a killable worker; 0 sets no limit."""
    decode_threads: int = 1
    """Decoder threads; one per clip is best when many clips are decoded at a time."""

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_seconds", "deadline_seconds", "decode_threads"):
            if getattr(self, name) <= 0:
                raise ValueError(f"media limit {name}={getattr(self, name)}: must be above 0")
        if self.max_memory_bytes < 0:
            raise ValueError(f"media limit max_memory_bytes={self.max_memory_bytes}: must be 0 (no limit) or more")


@dataclass(frozen=True, kw_only=True)
class FrameCacheSettings:
    """Keep decoded frames on disk, for runs that meet a clip more than once and train its towers."""

    path: str | None = None
    """Folder, best on a local disk; null decodes every time. Runs, ranks and workers may share it."""
    max_gib: float = 50.0
    """Size of the folder; the clips that were not read for longest are removed first."""
    form: str = "jpeg"
    """How frames are stored: jpeg (small; a little is lost) or raw (the very pixels, read several times faster, and
    about ten times as large: 1.2 MB a frame of 640 px)."""
    quality: int = 90
    """JPEG quality of the stored frames, at half the colour resolution, as video has it."""
    candidates: int = 4
    """With data.frames=random, frames kept of each interval, evenly spaced; every visit draws among them. A clip takes
    so many times the room."""

    def __post_init__(self) -> None:
        if self.max_gib <= 0 or not 1 <= self.quality <= 100 or self.candidates < 1:
            raise ValueError("data.frame_cache: max_gib must be above 0, quality in 1..100, candidates 1 or more")
        if self.form not in FORMS:
            raise ValueError(f"data.frame_cache.form={self.form!r}: choose one of {', '.join(FORMS)}")
