"""Settings of the TinyShorts generator; no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TinyShortsSettings:
    """Which clips are made; with the code they determine every byte of the shards."""

    clips: int = 1600
    """Training clips."""
    test_clips: int = 200
    """Held-out clips, drawn from another random stream."""
    texts: int = 400
    """Records without media, which keep a language model in practice."""
    seed: int = 0
    """Seed of all scripts."""
    clips_per_shard: int = 200
    """Clips in one tar file."""

    def __post_init__(self) -> None:
        counts = (self.clips, self.test_clips, self.texts)
        if min(counts) < 0 or sum(counts) < 1:
            raise ValueError(
                f"clips={self.clips}, test_clips={self.test_clips}, texts={self.texts}: "
                "all must be >= 0 and one of them above 0"
            )
        if self.clips_per_shard < 1:
            raise ValueError(f"clips_per_shard={self.clips_per_shard}: must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed}: must be 0 or more")
