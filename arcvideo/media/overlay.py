"""The time stamp in the top right corner of every frame (spec 2.2).

The released model was trained with Arial, which is not free; the bundled DejaVu Sans is a little wider. Give the
path of an Arial file as `font` to feed the released weights the very same pixels.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

VERSION = 1
"""Part of a clip's key: raise it when a change here alters pixels."""
FONT = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"
_MARGIN, _PAD = 20, 10
_FONT_SHARE = 0.05


def stamp(frame: np.ndarray, *, text: str, font: str | None = None) -> None:
    """Draws `text` in white on a black box into `frame`, (H, W, 3) uint8, in place, before any resizing."""
    height, width = frame.shape[:2]
    patch, left, top = _patch(text, width, height, font or str(FONT))
    frame[top : top + patch.shape[0], left : left + patch.shape[1]] = patch


@lru_cache(maxsize=4096)
def _patch(text: str, width: int, height: int, font: str) -> tuple[np.ndarray, int, int]:
    """The box with its text, clipped to the frame, and where its top left corner goes."""
    face = _face(font, max(1, int(_FONT_SHARE * height)))
    x0, y0, x1, y1 = (round(side) for side in face.getbbox(text))
    text_width, text_height = x1 - x0, y1 - y0
    x, y = width - text_width - _MARGIN, _MARGIN
    left, top = max(0, x - _PAD), y - _PAD
    # PIL fills both corners inclusively; the text is drawn at (x, y) though its ink starts y0 lower, so it may pass
    # the box edge by a pixel or two on tall frames, as in the reference.
    right, bottom = min(width, x + text_width + _PAD + 1), min(height, y + text_height + _PAD + 1)
    ink_bottom = min(height, max(bottom, y + y1 + 1))
    canvas = Image.new("RGB", (right - left, max(0, ink_bottom - top)))
    draw = ImageDraw.Draw(canvas)
    draw.text((x - left, y - top), text, font=face, fill=(255, 255, 255))
    patch = np.asarray(canvas)
    rows = max(bottom - top, _last_ink_row(patch) + 1)
    return patch[:rows], left, top


def _last_ink_row(patch: np.ndarray) -> int:
    inked = np.flatnonzero(patch.any(axis=(1, 2)))
    return int(inked[-1]) if inked.size else -1


@lru_cache(maxsize=64)
def _face(font: str, size: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(font, size)
    except OSError as error:
        raise ValueError(f"stamp font {font}: cannot be read ({error}); give a TrueType file") from error
