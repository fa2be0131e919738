"""A reward that asks a judge about all completions side by side, and reads a field that only these items have."""

from __future__ import annotations

import asyncio
import re
from typing import Any


async def counts_nearly(
    completions: list[str], *, count: list[int | None], tolerance: list[int | None], **columns: Any
) -> list[float | None]:
    """Return 1.0 for a number within the item's own `tolerance`; None for other tasks."""
    judged = [_judge(*row) for row in zip(completions, count, tolerance, strict=True)]
    return list(await asyncio.gather(*judged))


async def _judge(text: str, count: int | None, tolerance: int | None) -> float | None:
    await asyncio.sleep(0)  # a server would be asked here
    if count is None:
        return None
    numbers = [int(number) for number in re.findall(r"\d{1,9}", text)]
    return float(bool(numbers) and abs(numbers[-1] - count) <= (tolerance or 0))
