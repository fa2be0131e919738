"""A picture of what the towers get of a clip: its stamped frames, and the log-mel under a clock."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from arcvideo.media.frames import FONT
from arcvideo.types import Media

_WIDTH = 1280
_GAP = 8
_LABEL = 22
_MEL_HEIGHT = 220
_INK, _PAPER, _FAINT = (30, 30, 30), (255, 255, 255), (150, 150, 150)
_HEAT = np.array([(0, 0, 30), (70, 10, 110), (190, 50, 80), (250, 150, 40), (255, 250, 190)], dtype=float)
"""Colours from quiet to loud."""


def contact_sheet(media: Media, *, title: str) -> Image.Image:
    """RGB picture, 1280 pixels wide: frames row by row in order of time, then the log-mel of all chunks.

    Args:
        media: with pixels and mel, not with tower outputs.
        title: printed at the top, for example the key.
    """
    parts = [_label(title)]
    if media.pixels is None:
        parts.append(_label(f"no picture: {media.frame_count} frames of zeros"))
    else:
        parts.append(_frames(media.pixels.permute(0, 2, 3, 1).numpy()))
    if media.mel is None:
        parts.append(_label("no sound: zeros"))
    else:
        mel = media.mel.numpy()
        parts += [
            _label(f"log-mel, {mel.shape[1]} bins; {media.seconds} s are added to frames"),
            _spectrogram(mel, media.seconds),
        ]
    sheet = Image.new("RGB", (_WIDTH, sum(part.height + _GAP for part in parts) + _GAP), _PAPER)
    top = _GAP
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height + _GAP
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONT), size)


def _label(text: str) -> Image.Image:
    strip = Image.new("RGB", (_WIDTH, _LABEL), _PAPER)
    ImageDraw.Draw(strip).text((_GAP, 0), text, fill=_INK, font=_font(16))
    return strip


def _frames(pixels: np.ndarray) -> Image.Image:
    """Return (F, S, S, 3) uint8 -> a grid, as large as fits, never enlarged by fractions."""
    count, side = pixels.shape[:2]
    columns = min(count, max(4, math.ceil(math.sqrt(count * 2))))
    room = (_WIDTH - _GAP) // columns - _GAP
    shown = side * (room // side) if room >= side else room
    rows = math.ceil(count / columns)
    grid = Image.new("RGB", (_WIDTH, rows * (shown + _GAP) - _GAP), _PAPER)
    for number, frame in enumerate(pixels):
        scale = Image.Resampling.NEAREST if shown >= side else Image.Resampling.LANCZOS
        picture = Image.fromarray(frame).resize((shown, shown), scale)
        place = (_GAP + number % columns * (shown + _GAP), number // columns * (shown + _GAP))
        grid.paste(picture, place)
    return grid


def _spectrogram(mel: np.ndarray, seconds: int) -> Image.Image:
    """Return (C, M, T) log-mel -> chunks side by side, low bins at the bottom, a tick a second (sparser when many)."""
    bins = np.concatenate(list(mel), axis=1)[::-1]
    low, high = float(bins.min()), float(bins.max())
    level = (bins - low) / (high - low if high > low else 1.0) * (len(_HEAT) - 1)
    below = np.minimum(level.astype(int), len(_HEAT) - 2)
    share = (level - below)[..., None]
    colours = _HEAT[below] * (1 - share) + _HEAT[below + 1] * share
    picture = Image.fromarray(colours.astype(np.uint8)).resize((_WIDTH - 2 * _GAP, _MEL_HEIGHT))
    strip = Image.new("RGB", (_WIDTH, _MEL_HEIGHT + _LABEL), _PAPER)
    strip.paste(picture, (_GAP, 0))
    draw = ImageDraw.Draw(strip)
    per_second = picture.width / (bins.shape[1] / 100)  # 100 mel frames a second
    step = max(1, math.ceil(40 / per_second))
    for second in range(0, math.ceil(bins.shape[1] / 100), step):
        left = _GAP + second * per_second
        draw.line((left, _MEL_HEIGHT, left, _MEL_HEIGHT + 5), fill=_INK)
        draw.text((left + 2, _MEL_HEIGHT + 4), f"{second} s", fill=_FAINT if second >= seconds else _INK,
                  font=_font(12))  # fmt: skip
    return strip
