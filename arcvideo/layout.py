"""MediaLayout: the shapes that decoding, rendering and the towers must agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

N = TypeVar("N", int, npt.NDArray[np.int64])


@dataclass(frozen=True, kw_only=True)
class MediaLayout:
    """The shapes a model reads of a clip; a model's settings give its own."""

    image_size: int = 640
    """Side of a square frame in pixels, a multiple of `cell`."""
    mel_bins: int = 128
    """Mel bins of the audio encoder: 80 or 128."""
    audio_positions: int = 1500
    """Positions of the audio encoder per chunk, 50 a second (its max_source_positions)."""
    audio_pooling: int = 1
    """Audio rows averaged into one before they are added onto a frame."""
    max_frames: int = 150
    """Frames a clip has at most; longer clips are covered by as many wider intervals."""
    cell: int = 64
    """Side in pixels of the square that becomes one token."""
    row_ends: bool = True
    """Whether a row of cells ends with a token of its own."""
    edges: int = 2
    """Tokens of a group beside its rows."""
    marks: int = 2
    """Ids around the tokens of a group."""
    frames_per_group: int = 1
    """Frames that become tokens together; the last one of a clip is repeated where one is missing."""
    middle_sound: bool = False
    """Of sound too long to be kept whole, the middle second of each part is kept; else its first two."""

    def __post_init__(self) -> None:
        if self.image_size < self.cell or self.image_size % self.cell:
            raise ValueError(f"image_size={self.image_size}: must be a positive multiple of {self.cell}")
        if self.audio_positions < 50 or self.audio_positions % 50:
            raise ValueError(f"audio_positions={self.audio_positions}: must be a positive multiple of 50 (50 a second)")
        if self.mel_bins not in (80, 128):
            raise ValueError(f"mel_bins={self.mel_bins}: Whisper's filters exist for 80 and 128 bins")
        if self.max_frames < 1 or self.audio_pooling < 1:
            raise ValueError("max_frames and audio_pooling must be at least 1")

    @property
    def grid(self) -> int:
        """Cells along one side of a frame."""
        return self.image_size // self.cell

    @property
    def tokens_per_group(self) -> int:
        """Placeholders of a group of frames: its rows with their ends, begin and end; marks around it not counted."""
        return self.grid * (self.grid + self.row_ends) + self.edges

    @property
    def tokens_per_frame(self) -> int:
        """Placeholders of a frame; of a group's, each frame's share, rounded up."""
        return -(-self.tokens_per_group // self.frames_per_group)

    @property
    def one_pair(self) -> bool:
        """Whether one `<vid>` and `</vid>` stand around all media of a conversation, text between them included, as in
        the released code; where frames have no marks of their own, every medium has its own pair."""
        return self.marks > 0

    def groups(self, frames: N) -> N:
        """Return how many groups so many frames are: one number or an array."""
        return -(-frames // self.frames_per_group)

    def placeholders(self, frames: N) -> N:
        """Return how many tokens so many frames give the model."""
        return self.groups(frames) * self.tokens_per_group

    @property
    def max_seconds(self) -> int:
        """Seconds of sound that count at most: two a frame as released, less where a frame's tokens cannot carry two;
        one a frame where the middle of each part is kept. Of longer sound, pieces are taken."""
        if self.middle_sound:
            return self.max_frames
        carried = self.max_frames * self.tokens_per_group * self.audio_pooling // (50 * self.frames_per_group)
        return min(2 * self.max_frames, max(self.max_frames, carried))

    @property
    def chunk_seconds(self) -> int:
        """Seconds of audio in one chunk."""
        return self.audio_positions // 50
