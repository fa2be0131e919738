"""A PNG of predicted against true spans, drawn with Pillow: one panel a question, one bar a completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from arcvideo.files import whole
from arcvideo.tasks.spans import clock, temporal_iou

Span = tuple[float, float]

_WIDTH, _LEFT, _RIGHT = 900, 36, 190
_HEAD, _BAR, _GAP, _FOOT = 26, 12, 4, 34
_INK, _FAINT, _TRUE, _NONE = (30, 30, 30), (205, 205, 205), (60, 60, 60), (150, 150, 150)
_BAD, _GOOD = (200, 70, 50), (50, 140, 70)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One question and what was answered."""

    question: str
    key: str
    true: Span
    """Seconds."""
    said: Sequence[Span | None]
    """A span for each completion; None where none could be read."""
    texts: Sequence[str]
    """The answers themselves, shown where no span could be read."""
    seconds: float
    """Length of the axis."""


def draw(panels: Sequence[Asked], *, title: str, path: Path) -> None:
    """Write the panels one below the other; the file appears complete or not at all."""
    heights = [_HEAD + (len(panel.said) + 1) * (_BAR + _GAP) + _FOOT for panel in panels]
    image = Image.new("RGB", (_WIDTH, 24 + sum(heights)), "white")
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=12)
    canvas.text((_LEFT, 6), f"{title}: true span dark, predicted spans by overlap (IoU)", fill=_INK, font=font)
    top = 24
    for panel, height in zip(panels, heights, strict=True):
        _panel(canvas, panel, top=top, font=font)
        top += height
    with whole(path) as partial:
        image.save(partial, "PNG")


def _panel(
    canvas: ImageDraw.ImageDraw, panel: Asked, *, top: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont
) -> None:
    canvas.text((_LEFT, top + 6), _cut(f"{panel.question}   [{panel.key}]", 130), fill=_INK, font=font)
    scale = (_WIDTH - _LEFT - _RIGHT) / panel.seconds

    def bar(span: Span, *, row: int, colour: tuple[int, int, int]) -> None:
        first, last = (min(max(second, 0.0), panel.seconds) * scale + _LEFT for second in span)
        y = top + _HEAD + row * (_BAR + _GAP)
        canvas.rectangle((first, y, max(last, first + 2), y + _BAR), fill=colour)

    bottom = top + _HEAD + (len(panel.said) + 1) * (_BAR + _GAP)
    for second in _ticks(panel.seconds):
        x = _LEFT + second * scale
        canvas.line((x, top + _HEAD, x, bottom), fill=_FAINT)
        canvas.text((x, bottom + 2), clock(second), fill=_INK, font=font, anchor="mt")
    bar(panel.true, row=0, colour=_TRUE)
    for row, (span, text) in enumerate(zip(panel.said, panel.texts, strict=True), start=1):
        y = top + _HEAD + row * (_BAR + _GAP) + _BAR // 2
        if span is None:
            canvas.text((_LEFT, y), _cut(f"unreadable: {text}", 100), fill=_NONE, font=font, anchor="lm")
            continue
        overlap = temporal_iou(span, panel.true)
        mixed = [round(bad + overlap * (good - bad)) for bad, good in zip(_BAD, _GOOD, strict=True)]
        bar(span, row=row, colour=(mixed[0], mixed[1], mixed[2]))
        label = f"{span[0]:g} - {span[1]:g} s   IoU {overlap:.2f}"
        canvas.text((_WIDTH - _RIGHT + 12, y), label, fill=_INK, font=font, anchor="lm")


def _ticks(seconds: float) -> list[float]:
    """About eight whole seconds along the axis."""
    step = next((step for step in (1, 2, 5, 10, 15, 30, 60, 120, 300, 600) if seconds / step <= 9), 1200)
    return [float(second) for second in range(0, int(seconds) + 1, step)]


def _cut(text: str, most: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
