"""A callback that leaks, for the test of the soak: a mebibyte and a descriptor at every step."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


class Leaking:
    """Keeps what it should let go."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.files: list[int] = []

    def step(self, values: Mapping[str, Any]) -> None:
        """Hear of a step."""
        self.kept.append(b"x" * (1 << 20))
        self.files.append(os.open(os.devnull, os.O_RDONLY))
