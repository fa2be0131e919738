"""MediaLayout: the shapes that decoding, rendering and the towers must agree on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MediaLayout:
    """The shapes a model reads of a clip."""

    image_size: int = 640
    """Side of a square frame in pixels, a multiple of 64."""
    mel_bins: int = 128
    """Mel bins of the audio encoder: 80 or 128."""
    audio_positions: int = 1500
    """Positions of the audio encoder per chunk, 50 a second (its max_source_positions)."""
    audio_pooling: int = 1
    """Audio rows averaged into one before they are added onto a frame."""
    max_frames: int = 150
    """Frames a clip has at most; longer clips are covered by as many wider intervals."""

    def __post_init__(self) -> None:
        if self.image_size < 64 or self.image_size % 64:
            raise ValueError(f"image_size={self.image_size}: must be a positive multiple of 64")
        if self.audio_positions < 50 or self.audio_positions % 50:
            raise ValueError(f"audio_positions={self.audio_positions}: must be a positive multiple of 50 (50 a second)")
        if self.mel_bins not in (80, 128):
            raise ValueError(f"mel_bins={self.mel_bins}: Whisper's filters exist for 80 and 128 bins")
        if self.max_frames < 1 or self.audio_pooling < 1:
            raise ValueError("max_frames and audio_pooling must be at least 1")

    @property
    def grid(self) -> int:
        """Cells along one side of a frame."""
        return self.image_size // 64

    @property
    def tokens_per_frame(self) -> int:
        """Placeholders per frame: rows with their newline, begin and end vectors; `<img>` and `</img>` not counted."""
        return self.grid * (self.grid + 1) + 2

    @property
    def max_seconds(self) -> int:
        """Seconds of sound that count at most: two a frame as released, less where a frame's tokens cannot carry two;
        of longer sound, pieces are taken."""
        carried = self.max_frames * self.tokens_per_frame * self.audio_pooling // 50
        return min(2 * self.max_frames, max(self.max_frames, carried))

    @property
    def chunk_seconds(self) -> int:
        """Seconds of audio in one chunk."""
        return self.audio_positions // 50
