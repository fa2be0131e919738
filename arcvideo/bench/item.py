"""What a public benchmark is to us: questions about media files, and the questions that cannot be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class BenchItem:
    """One question of a benchmark."""

    id: str
    """The benchmark's own id, unique inside the benchmark."""
    clip: Path
    """Media file, absolute."""
    task: str
    """A name in `arcvideo.tasks.TASKS`."""
    fields: Mapping[str, Any]
    """The item of a record as tasks read it (`question`, `options`, `answer`, `span`, ...), `task` included."""
    tags: tuple[str, ...] = ()
    """Dimension, class of length, ...: scores are given per tag."""
    subtitles: str | None = None
    """Text of the subtitles, when the benchmark has them and they are asked for."""
    window: tuple[float, float] | None = None
    """Seconds of the file that are the clip, when the benchmark asks about a part of it."""


@dataclass(frozen=True, kw_only=True)
class BenchHole:
    """A question that cannot be asked."""

    id: str
    """The benchmark's own id."""
    reason: str
    """A short name to count by: `no_media`, `bad_options`, `span_outside`, `duplicate_id`, ..."""
    detail: str
    """What is wrong, with the file or field."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A benchmark as it lies on disk."""

    name: str
    items: tuple[BenchItem, ...]
    holes: tuple[BenchHole, ...]
    source: str
    """Paper or page that defines it."""
    notes: tuple[str, ...] = ()
    """What is uncertain or was decided on the way; printed beside the scores."""


ReadBench = Callable[[Path, Mapping[str, str]], Bench]
"""Called with the folder of the benchmark and options.

Raises:
    ValueError: the folder is incomplete or an option is wrong; one line that says what is missing.
"""


@dataclass(frozen=True, kw_only=True)
class Reader:
    """How one benchmark is read, and what its figures are."""

    read: ReadBench
    metrics: tuple[str, ...] = ()
    """Metrics that its papers report, the main one first."""
    published: str = ""
    """Name in `arcvideo.bench.published`, without size or split (`Bench.name` has them); empty when none is known."""
    layout: str = ""
    """The folder that is wanted, in one line."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Name of an option -> what it does."""
