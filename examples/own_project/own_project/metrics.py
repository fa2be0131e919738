"""A figure over held-out answers that no task brings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def brief(text: str, truth: Mapping[str, Any]) -> float | None:
    """Return 1.0 for an answer of at most twenty letters; None for tasks that it does not concern."""
    return float(len(text) <= 20) if truth["task"] == "counting" else None
