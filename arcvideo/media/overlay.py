"""The time stamp in the top right corner of every frame.

The released model was trained with Arial, which is not free; the bundled DejaVu Sans is a little wider. Give the
path of an Arial file as `font` to feed the released weights the very same pixels.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

VERSION = 2
"""Part of a clip's key: raise it when a change of pixels comes from here or from how still pictures are read, so that
no cache gives back the pictures of before. 2: pictures of 16 bits are grey where they were white."""
FONT = Path(__file__).parent / "fonts" / "DejaVuSans.ttf"
_MARGIN, _PAD = 20, 10
_FONT_SHARE = 0.05


def stamp(frame: np.ndarray, *, text: str, font: str | None = None) -> None:
    """Draw `text` in white on a black box into `frame`, (H, W, 3) uint8, in place, before any resizing."""
    height, width = frame.shape[:2]
    patch, left, top = _patch(text, width, height, font or str(FONT))
    frame[top : top + patch.shape[0], left : left + patch.shape[1]] = patch


def stamp_scaled(frame: np.ndarray, *, text: str, size: tuple[int, int], font: str | None = None) -> None:
    """Draw as `stamp` does into a frame that was resized already.

    Args:
        frame: (S, S, 3) uint8, written into.
        size: (height, width) that it had.
    """
    patch, left, top = _scaled_patch(text, size, len(frame), font or str(FONT))
    frame[top : top + patch.shape[0], left : left + patch.shape[1]] = patch


def check_font(font: str | None) -> None:
    """Refuse a font file that cannot be drawn with."""
    _face(font or str(FONT), 12)


@lru_cache(maxsize=4096)
def _patch(text: str, width: int, height: int, font: str) -> tuple[np.ndarray, int, int]:
    """Return the box with its text, clipped to the frame, and where its top left corner goes."""
    face = _face(font, max(1, int(_FONT_SHARE * height)))
    x0, y0, x1, y1 = (round(side) for side in face.getbbox(text))
    # + 1: the reference's box includes both of its corners.
    box_width, box_height = x1 - x0 + 2 * _PAD + 1, y1 - y0 + 2 * _PAD + 1
    canvas = Image.new("RGB", (box_width, max(box_height, _PAD + y1 + 1)))
    # As in the reference the text starts at the inner corner although its ink starts y0 lower, so that on tall
    # frames it may pass the lower edge of the box by a pixel or two.
    ImageDraw.Draw(canvas).text((_PAD, _PAD), text, font=face, fill=(255, 255, 255))
    patch = np.asarray(canvas)
    inked = np.flatnonzero(patch.any(axis=(1, 2)))
    rows = max(box_height, int(inked[-1]) + 1 if inked.size else 0)
    left, top = width - (x1 - x0) - _MARGIN - _PAD, _MARGIN - _PAD
    return patch[: min(rows, max(0, height - top)), max(0, -left) :], max(0, left), top


@lru_cache(maxsize=4096)
def _scaled_patch(text: str, size: tuple[int, int], side: int, font: str) -> tuple[np.ndarray, int, int]:
    """Return the box as it looks in the resized frame, to whole pixels, and where its top left corner goes."""
    height, width = size
    patch, left, top = _patch(text, width, height, font)
    x0, x1 = (round(x * side / width) for x in (left, left + patch.shape[1]))
    y0, y1 = (round(y * side / height) for y in (top, top + patch.shape[0]))
    if not patch.size or x0 == x1 or y0 == y1:
        return np.empty((0, 0, 3), np.uint8), 0, 0
    return np.asarray(Image.fromarray(patch).resize((x1 - x0, y1 - y0), Image.Resampling.BICUBIC)), x0, y0


@lru_cache(maxsize=64)
def _face(font: str, size: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(font, size)
    except OSError as error:
        raise ValueError(f"stamp font {font}: cannot be read ({error}); give a TrueType file") from error
