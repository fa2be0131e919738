"""A reward for the torture of pipelines: it varies in most groups, not in all, so that steps draw refills."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any


def drawn(completions: Sequence[str], **columns: Any) -> list[float | None]:
    """1 for about a third of all texts."""
    return [float(zlib.crc32(text.encode()) % 3 == 0) for text in completions]
