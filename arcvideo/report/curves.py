"""Curves and dots as inline SVG: no library, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT, LEFT, RIGHT, BOTTOM, TOP = 270, 158, 40, 6, 22, 30
POINTS = 120
"""A longer curve is thinned to about this many chunks: their mean as the line, their range as the band behind it."""

Point = tuple[float, float]


def thinned(points: Sequence[Point], *, count: int = POINTS) -> list[Point]:
    """At most `count` points: means of equal chunks."""
    return [
        (sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in _cut(points, count)
    ]


def curve(points: Sequence[Point], *, title: str) -> str:
    """Return an SVG of y over x; points that are not finite are left out, an empty string when none is left."""
    finite = [point for point in points if math.isfinite(point[1])]
    if not finite:
        return ""
    left, right = finite[0][0], max(finite[-1][0], finite[0][0] + 1)
    kept = thinned(finite)
    low, high = _range(finite, kept=kept)
    marks = _marks(low, high)
    frame = _Frame(left=left, right=right, low=marks[0], high=marks[-1])
    drawn = _band(finite, frame=frame) if len(finite) > POINTS else ""
    line = f'<polyline class="line" points="{" ".join(frame.place(point) for point in kept)}"/>'
    if len(kept) == 1:
        line = '<circle class="dot" r="3" cx="{}" cy="{}"/>'.format(*frame.place(kept[0]).split(","))
    ends = _text(LEFT, HEIGHT - 5, f"{left:.0f}") + _text(WIDTH - RIGHT, HEIGHT - 5, f"step {right:.0f}", anchor="end")
    head = _text(0, 13, title, kind="name") + _text(
        WIDTH - RIGHT, 13, f"{_tail(finite):.4g}", anchor="end", kind="last"
    )
    return _svg(title, _grid(marks, frame=frame) + drawn + line + ends + head)


def scatter(points: Sequence[Point], *, title: str, labels: Sequence[str] | None = None) -> str:
    """Return an SVG of single points; an empty string without points.

    Args:
        points: (x, y).
        title: what it shows.
        labels: names of x = 0, 1, ...; None writes the x values that occur.
    """
    if not points:
        return ""
    marks = _marks(min(y for _, y in points), max(y for _, y in points))
    xs = sorted({x for x, _ in points})
    left, right = (0.0, max(len(labels) - 1.0, 1.0)) if labels else (xs[0], xs[-1] if xs[-1] > xs[0] else xs[0] + 1)
    frame = _Frame(left=left, right=right, low=marks[0], high=marks[-1], inset=26)
    dots = "".join(
        '<circle class="dot" r="4" cx="{}" cy="{}"/>'.format(*frame.place(point).split(",")) for point in points
    )
    named = [(float(place), name) for place, name in enumerate(labels)] if labels else [(x, f"{x:g}") for x in xs]
    shown, last = "", -math.inf
    for x, name in named:
        across = frame.across(x)
        if across - last >= 7 * min(len(name), 12):  # names that would run into each other are left out
            shown += _text(across, HEIGHT - 5, name, anchor="middle")
            last = across
    return _svg(title, _grid(marks, frame=frame) + dots + shown + _text(0, 13, title, kind="name"))


class _Frame:
    """From values to places inside the drawing."""

    def __init__(self, *, left: float, right: float, low: float, high: float, inset: int = 0) -> None:
        self.left, self.right, self.low, self.high, self.inset = left, right, low, high, inset

    def across(self, x: float) -> float:
        inner = WIDTH - LEFT - RIGHT - 2 * self.inset
        return LEFT + self.inset + (x - self.left) / (self.right - self.left) * inner

    def height(self, y: float) -> float:
        inside = min(max(y, self.low), self.high)
        return HEIGHT - BOTTOM - (inside - self.low) / (self.high - self.low) * (HEIGHT - BOTTOM - TOP)

    def place(self, point: Point) -> str:
        return f"{self.across(point[0]):.1f},{self.height(point[1]):.1f}"


def _cut(points: Sequence[Point], count: int = POINTS) -> list[Sequence[Point]]:
    size = max(1, math.ceil(len(points) / count))
    return [points[start : start + size] for start in range(0, len(points), size)]


def _tail(points: Sequence[Point]) -> float:
    """Return mean of the last twentieth: the last step alone says little."""
    last = points[-max(1, len(points) // 20) :]
    return sum(y for _, y in last) / len(last)


def _range(points: Sequence[Point], *, kept: Sequence[Point]) -> tuple[float, float]:
    """Return all means, and the values without the outermost two of a hundred at either end, which would flatten the
    rest.
    """
    values = sorted(y for _, y in points)
    cut = len(values) // 50
    means = [y for _, y in kept]
    return min(values[cut], *means), max(values[-1 - cut], *means)


def _band(points: Sequence[Point], *, frame: _Frame) -> str:
    chunks = _cut(points)
    upper = [(sum(x for x, _ in chunk) / len(chunk), max(y for _, y in chunk)) for chunk in chunks]
    lower = [(x, min(y for _, y in chunk)) for (x, _), chunk in zip(upper, chunks, strict=True)]
    return f'<polygon class="band" points="{" ".join(frame.place(point) for point in [*upper, *reversed(lower)])}"/>'


def _grid(marks: Sequence[float], *, frame: _Frame) -> str:
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        + _text(LEFT - 6, y + 3, _short(mark), anchor="end")
        for mark in marks
        for y in [frame.height(mark)]
    )


def _short(mark: float) -> str:
    """Return few characters: 0.25, 8e-4, 2e9."""
    plain = f"{mark:.3g}"
    return plain if len(plain) <= 5 else f"{mark:.0e}".replace("e-0", "e-").replace("e+0", "e")


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "tick") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, inside: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">{inside}</svg>'


def _marks(low: float, high: float, *, count: int = 4) -> list[float]:
    """Round numbers that enclose [low, high]."""
    spread = (high - low) or abs(high) or 1.0
    raw = spread / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [number * step for number in range(first, last + 1)]
