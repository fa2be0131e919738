"""Settings of shards that lie elsewhere; no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ShardCacheSettings:
    """How remote shards are read, and what of them is kept here."""

    path: str | None = None
    """Folder, best on a local disk; null refuses URLs. Runs, ranks and workers may share it."""
    max_gib: float = 200.0
    """Size of what is kept of shards in it; the longest unused goes first, and never what a living process reads."""
    ahead: int = 16
    """Clips of remote shards that a rank reads at once, ahead of need; 0 reads each when it is needed."""
    stall_seconds: float = 60.0
    """An answer that brings less than a kilobyte a second for so long is given up, and asked for again."""
    retries: int = 8
    """How often what failed is asked for again, after 1, 2, 4, ... 30 seconds, each told; it counts anew once it goes
    on."""
    deadline_seconds: float = 600.0
    """Seconds without progress after which no further try is made and the run stops."""

    def __post_init__(self) -> None:
        if self.max_gib <= 0:
            raise ValueError(f"data.shard_cache.max_gib={self.max_gib}: must be above 0")
        if self.stall_seconds <= 0 or self.deadline_seconds <= 0 or self.retries < 0 or self.ahead < 0:
            raise ValueError(
                "data.shard_cache: stall_seconds and deadline_seconds must be above 0, retries and ahead 0 or more"
            )
