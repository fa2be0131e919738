"""Curves as inline SVG: no library, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 190, 52, 24, 26
POINTS = 300
"""A longer curve is thinned to about this many points, each the mean of its neighbours."""

Point = tuple[float, float]


def thinned(points: Sequence[Point], *, count: int = POINTS) -> list[Point]:
    """At most `count` points: means of equal chunks."""
    size = max(1, math.ceil(len(points) / count))
    chunks = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def curve(points: Sequence[Point], *, title: str) -> str:
    """An SVG of y over x; points that are not finite are left out, an empty string when none is left."""
    finite = [point for point in points if math.isfinite(point[1])]
    if not finite:
        return ""
    left, right = finite[0][0], max(finite[-1][0], finite[0][0] + 1)
    kept = thinned(finite)
    marks = _marks(min(y for _, y in kept), max(y for _, y in kept))
    low, high = marks[0], marks[-1]

    def place(point: Point) -> str:
        x = LEFT + (point[0] - left) / (right - left) * (WIDTH - LEFT - 12)
        return f"{x:.1f},{_height(point[1], low=low, high=high):.1f}"

    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        f'<text x="{LEFT - 6}" y="{y + 3:.1f}" class="tick" text-anchor="end">{mark:.3g}</text>'
        for mark in marks
        for y in [_height(mark, low=low, high=high)]
    )
    ends = (
        f'<text x="{LEFT}" y="{HEIGHT - 6}" class="tick">{left:.0f}</text>'
        f'<text x="{WIDTH - 12}" y="{HEIGHT - 6}" class="tick" text-anchor="end">step {right:.0f}</text>'
    )
    line = f'<polyline class="line" points="{" ".join(map(place, kept))}"/>'
    name = f'<text x="{LEFT}" y="15" class="name">{escape(title)}</text>'
    last = f'<text x="{WIDTH - 12}" y="15" class="tick" text-anchor="end">last {kept[-1][1]:.4g}</text>'
    label = f'role="img" aria-label="{escape(title, quote=True)}"'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" {label}>{grid}{ends}{name}{last}{line}</svg>'


def _height(value: float, *, low: float, high: float) -> float:
    return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - BOTTOM - TOP)


def _marks(low: float, high: float, *, count: int = 4) -> list[float]:
    """Round numbers that enclose [low, high]."""
    spread = (high - low) or abs(high) or 1.0
    raw = spread / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [number * step for number in range(first, last + 1)]


def scatter(points: Sequence[Point], *, title: str, labels: Sequence[str] | None = None) -> str:
    """An SVG of single points; an empty string without points.

    Args:
        points: (x, y).
        labels: names of x = 0, 1, ...; None writes the smallest and largest x.
    """
    if not points:
        return ""
    marks = _marks(min(y for _, y in points), max(y for _, y in points))
    low, high = marks[0], marks[-1]
    left = 0.0 if labels else min(x for x, _ in points)
    right = max(len(labels) - 1.0, 1.0) if labels else max(x for x, _ in points)
    inner = WIDTH - LEFT - 40

    def across(x: float) -> float:
        return LEFT + 14 + ((x - left) / (right - left) if right > left else 0.5) * inner

    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
        f'<text x="{LEFT - 6}" y="{y + 3:.1f}" class="tick" text-anchor="end">{mark:.3g}</text>'
        for mark in marks
        for y in [_height(mark, low=low, high=high)]
    )
    dots = "".join(
        f'<circle cx="{across(x):.1f}" cy="{_height(y, low=low, high=high):.1f}" r="4" class="dot"/>' for x, y in points
    )
    named = list(enumerate(labels)) if labels else [(x, f"{x:g}") for x in dict.fromkeys((left, right))]
    ticks = "".join(
        f'<text x="{across(x):.1f}" y="{HEIGHT - 6}" class="tick" text-anchor="middle">{escape(str(text))}</text>'
        for x, text in named
    )
    name = f'<text x="{LEFT}" y="15" class="name">{escape(title)}</text>'
    label = f'role="img" aria-label="{escape(title, quote=True)}"'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" {label}>{grid}{dots}{ticks}{name}</svg>'
