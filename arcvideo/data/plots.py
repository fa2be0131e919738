"""`stats --plot`: a PNG of how long clips and items are, what they ask, and how full packs get; drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_PANEL = (640, 360)
_MARGIN = (70, 40, 20, 50)
"""Left, top, right, bottom of the bars inside a panel."""
_INK, _FAINT, _BAR = (30, 30, 30), (200, 200, 200), (70, 110, 180)
_BINS = 40
_NAME = 14
"""Letters of a name below a bar."""


@dataclass(frozen=True, kw_only=True)
class Bars:
    """One panel: bars with what stands below them."""

    title: str
    heights: Sequence[float]
    labels: Sequence[str]
    """One per bar, or the two ends of the axis."""


def histogram(values: np.ndarray, *, title: str, unit: str) -> Bars:
    """Return how often values occur; the highest percent share the last bar, so that one long clip does not hide the
    rest.
    """
    if not len(values):
        return Bars(title=f"{title}: none", heights=[], labels=["", ""])
    # A value that occurs, not one between two: the axis of tokens ends at whole ones.
    low, high = float(values.min()), float(np.quantile(values, 0.99, method="lower"))
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    heights = np.histogram(np.clip(values, edges[0], edges[-1]), bins=edges)[0]
    middle = float(np.median(values))
    return Bars(
        title=f"{title} (median {middle:.4g}, max {float(values.max()):.4g} {unit})",
        heights=heights.tolist(),
        labels=[f"{edges[0]:.4g}", f"{edges[-1]:.4g} {unit}{' and more' if values.max() > edges[-1] else ''}"],
    )


def counts(occurrences: Mapping[str, int], *, title: str, most: int = 12) -> Bars:
    """Return the most frequent names."""
    top = sorted(occurrences.items(), key=lambda row: (-row[1], row[0]))[:most]
    return Bars(title=title, heights=[count for _, count in top], labels=[name for name, _ in top])


def draw(panels: Sequence[Bars], *, path: Path) -> None:
    """Write the panels as a PNG, two in a row."""
    width, height = _PANEL
    rows = -(-len(panels) // 2)
    image = Image.new("RGB", (2 * width, rows * height), "white")
    for number, panel in enumerate(panels):
        _panel(ImageDraw.Draw(image), panel, left=number % 2 * width, top=number // 2 * height)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG")


def _panel(canvas: ImageDraw.ImageDraw, panel: Bars, *, left: int, top: int) -> None:
    font = ImageFont.load_default(size=14)
    x0, y0 = left + _MARGIN[0], top + _MARGIN[1]
    x1, y1 = left + _PANEL[0] - _MARGIN[2], top + _PANEL[1] - _MARGIN[3]
    canvas.text((x0, top + 12), panel.title, fill=_INK, font=font)
    highest = max(panel.heights, default=0) or 1
    for tick in _ticks(highest):
        y = y1 - tick / highest * (y1 - y0)
        canvas.line((x0, y, x1, y), fill=_FAINT)
        canvas.text((x0 - 8, y), f"{tick:,}", fill=_INK, font=font, anchor="rm")
    slot = (x1 - x0) / max(1, len(panel.heights))
    for number, count in enumerate(panel.heights):
        x = x0 + number * slot
        canvas.rectangle((x + 0.5, y1 - count / highest * (y1 - y0), max(x + 1, x + slot - 1.5), y1), fill=_BAR)
    canvas.line((x0, y1, x1, y1), fill=_INK)
    if len(panel.labels) == len(panel.heights):
        names = [label if len(label) <= _NAME else f"{label[: _NAME - 2]}.." for label in panel.labels]
        crowded = any(font.getlength(name) + 6 > slot for name in names)
        for number, name in enumerate(names):
            down = 18 * (number % 2) if crowded else 0  # neighbours on two lines, so that long names do not meet
            canvas.text((x0 + (number + 0.5) * slot, y1 + 20 + down), name, fill=_INK, font=font, anchor="ms")
    else:
        canvas.text((x0, y1 + 20), panel.labels[0], fill=_INK, font=font, anchor="ls")
        canvas.text((x1, y1 + 20), panel.labels[1], fill=_INK, font=font, anchor="rs")


def _ticks(highest: float) -> list[int]:
    """Return 0 and up to four round numbers below the highest bar, whole because bars are counts."""
    power = 10 ** max(0, math.floor(math.log10(highest)))
    step = next(step for part in (1, 2, 5, 10) if highest / (step := max(1, part * power // 2)) <= 4 or part == 10)
    return list(range(0, int(highest) + 1, step))
