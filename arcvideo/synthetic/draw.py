"""The picture of a TinyShorts clip: coloured shapes and a word on a dark background, 128 x 192 pixels."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from arcvideo.media.frames import FONT
from arcvideo.synthetic.script import Script, Shape

WIDTH, HEIGHT, FPS = 128, 192, 4
RGB = {
    "red": (214, 40, 40),
    "green": (44, 170, 60),
    "blue": (46, 90, 226),
    "yellow": (240, 212, 44),
    "purple": (158, 56, 190),
    "white": (240, 240, 240),
}
_TOP = 38
"""Rows at the top that the time stamp will cover; shapes live below."""
_TRAVEL = 0.08
"""Share of the width that a moving shape crosses while it is visible."""
_SUPERSAMPLING = 4
_TEXT_CENTRE = 0.845
_COLOR_JITTER = 12
_Layer = tuple[tuple[int, int, int], Image.Image, tuple[int, int]]
"""Colour, coverage mask, top left corner."""


def frames(script: Script) -> Iterator[np.ndarray]:
    """Yield (H, W, 3) uint8 frames, FPS a second, from the script alone; an unchanged picture is the same array
    again.
    """
    rng = np.random.default_rng([script.seed, 2])
    background = _background(rng)
    styles = [(shape, _style(shape, rng)) for shape in script.shapes]
    texts = [(word, _text(word.text, int(rng.integers(30, 37)), int(rng.integers(-6, 7)))) for word in script.words]
    shown, frame = None, np.asarray(background)
    for number in range(script.duration * FPS):
        time = number / FPS
        pasted = [_placed(shape, time, *style) for shape, style in styles if shape.start <= time < shape.end]
        pasted += [layer for word, layers in texts if word.start <= time < word.end for layer in layers]
        if pasted != shown:
            shown, frame = pasted, _composed(background, pasted)
        yield frame


def still(script: Script) -> np.ndarray:
    """Return (H, W, 3) uint8: the first frame."""
    return next(frames(script))


def _background(rng: np.random.Generator) -> Image.Image:
    """Smooth dark blotches; no two clips have the same."""
    base = rng.integers(14, 46, size=3)
    blotches = base + rng.integers(-14, 30, size=(9, 6, 3))
    small = Image.fromarray(np.clip(blotches, 0, 255).astype(np.uint8))
    return small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)


def _style(shape: Shape, rng: np.random.Generator) -> tuple[int, tuple[int, int, int]]:
    jitter = rng.integers(-_COLOR_JITTER, _COLOR_JITTER + 1, size=3)
    red, green, blue = (int(value) for value in np.clip(np.add(RGB[shape.color], jitter), 0, 255))
    return int(rng.integers(26, 31)), (red, green, blue)


def _placed(shape: Shape, time: float, radius: int, color: tuple[int, int, int]) -> _Layer:
    progress = (time - shape.start) / max(1, shape.end - shape.start) - 0.5
    shift = {"still": 0.0, "left": -1.0, "right": 1.0}[shape.motion] * progress * _TRAVEL
    x = round(min(max((shape.x + shift) * WIDTH, radius), WIDTH - radius))
    y = round(min(max(_TOP + shape.y * (HEIGHT - _TOP), _TOP + radius), HEIGHT - radius))
    return color, _shape_mask(shape.kind, radius), (x - radius, y - radius)


def _composed(background: Image.Image, layers: list[_Layer]) -> np.ndarray:
    canvas = background.copy()
    for color, mask, corner in layers:
        canvas.paste(color, corner, mask)
    return np.asarray(canvas)


@lru_cache(maxsize=256)
def _shape_mask(kind: str, radius: int) -> Image.Image:
    """Return coverage 0..255 of a shape that fills a square of twice the radius, drawn large and shrunk."""
    side = 2 * radius * _SUPERSAMPLING
    last, third = side - 1, side // 3
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    if kind == "circle":
        draw.ellipse((0, 0, last, last), fill=255)
    elif kind == "square":
        inset = side // 14
        draw.rectangle((inset, inset, last - inset, last - inset), fill=255)
    elif kind == "triangle":
        draw.polygon(((side // 2, 0), (last, last - side // 10), (0, last - side // 10)), fill=255)
    elif kind == "cross":
        draw.rectangle((third, 0, last - third, last), fill=255)
        draw.rectangle((0, third, last, last - third), fill=255)
    else:
        raise ValueError(f"shape kind {kind!r}: draw.py knows circle, square, triangle and cross")
    return mask.resize((2 * radius, 2 * radius), Image.Resampling.LANCZOS)


@lru_cache(maxsize=2048)
def _text(text: str, size: int, shift: int) -> tuple[_Layer, _Layer]:
    """Return two layers (colour, mask, corner): a dark outline and the white letters on it."""
    font = ImageFont.truetype(str(FONT), size)
    layers: list[_Layer] = []
    for color, stroke in (((0, 0, 0), 3), ((250, 250, 250), 1)):
        x0, y0, x1, y1 = (round(side) for side in font.getbbox(text, stroke_width=stroke))
        mask = Image.new("L", (x1 - x0, y1 - y0))
        ImageDraw.Draw(mask).text((-x0, -y0), text, font=font, fill=255, stroke_width=stroke)
        corner = ((WIDTH - (x1 - x0)) // 2 + shift, round(_TEXT_CENTRE * HEIGHT) - (y1 - y0) // 2)
        layers.append((color, mask, corner))
    return layers[0], layers[1]
