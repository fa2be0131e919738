"""Still pictures, read by Pillow, as a browser shows them on a white page."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits
from arcvideo.media.streams import check_pixels

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")
_WHITE = 255


def is_still(data: bytes) -> bool:
    """Return whether the first bytes are those of a JPEG, PNG, BMP, TIFF or WebP."""
    return data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def read_still(data: bytes, *, name: str, limits: MediaLimits) -> np.ndarray:
    """Return the picture, upright, as (H, W, 3) uint8 RGB; an animation's first one.

    Raises:
        MediaError: it is broken, too large, or its levels are of a kind whose range is not known.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_pixels(image.width, image.height, name=name, limits=limits)
            return _rgb(ImageOps.exif_transpose(image), name=name)
    except Image.DecompressionBombError as error:
        raise MediaError("too_large", f"{name}: {error}") from error
    except (OSError, SyntaxError, ValueError) as error:
        reason = "truncated" if "truncated" in str(error).lower() else "unreadable"
        raise MediaError(reason, f"{name}: {error}") from error


def on_white(rgba: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) uint8: what shows of (H, W, 4) uint8 RGBA, not premultiplied, in front of white.

    Dropping the opacity instead would show colours that nobody was meant to see, black for most drawings.
    """
    opacity = rgba[..., 3:].astype(np.uint16)
    blended = rgba[..., :3] * opacity + _WHITE * (255 - opacity)
    return ((blended + 127) // 255).astype(np.uint8)


def _rgb(image: Image.Image, *, name: str) -> np.ndarray:
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts every level above 255 instead of scaling 65535 to 255.
        levels = np.asarray(image)
        grey = (levels >> 8).astype(np.uint8)
        if isinstance(hidden := image.info.get("transparency"), int):
            grey[levels == hidden] = _WHITE
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise MediaError("unreadable", f"{name}: levels of 32 bits, whose range is not known; save it with 8 or 16")
    if image.has_transparency_data:
        return on_white(np.asarray(image.convert("RGBA")))
    return np.array(image.convert("RGB"))
