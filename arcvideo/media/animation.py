"""Animated PNG and WebP files: pictures that move are videos, whatever their type is called.

libav reads animated PNG as it is. It has no decoder for animated WebP, so Pillow composes those pictures and they
become a video in memory.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits
from arcvideo.media.still import on_white, video_of_stills
from arcvideo.media.streams import check_pixels

_PNG = b"\x89PNG\r\n\x1a\n"
_ANIMATION = 0x02
"""Flag of a VP8X chunk (WebP container specification)."""
_LEAST, _USUAL = 10, 100
"""Milliseconds up to which a picture states no time worth the name, and how long browsers show it then."""


def is_animated_webp(data: bytes) -> bool:
    """Return whether the first bytes are those of a WebP file of several pictures."""
    return data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and bool(data[20:21]) and bool(data[20] & _ANIMATION)


def is_animated_png(data: bytes) -> bool:
    """Return whether a PNG file says before its first picture that it has several."""
    at = len(_PNG)
    while data.startswith(_PNG) and at + 12 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"acTL":
            return int.from_bytes(data[at + 8 : at + 12], "big") > 1
        if kind == b"IDAT":
            return False
        at += 12 + size
    return False


def video_of_webp(data: bytes, *, name: str, limits: MediaLimits) -> bytes:
    """Return an animated WebP as a QuickTime file of PNG pictures, in front of white where it is transparent.

    Raises:
        MediaError: it is broken, too large or too long.
    """
    pictures, times, now = [], [], 0
    try:
        with Image.open(io.BytesIO(data)) as image:
            check_pixels(image.width, image.height, name=name, limits=limits)
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                image.load()
                png = io.BytesIO()
                Image.fromarray(on_white(np.asarray(image.convert("RGBA")))).save(png, "PNG", compress_level=1)
                pictures.append(png.getvalue())
                times.append(now / 1000)
                lasts = int(image.info.get("duration", 0))
                now += lasts if lasts > _LEAST else _USUAL
                if now > 1000 * limits.max_seconds:
                    raise MediaError("too_long", f"{name}: more than the limit of {limits.max_seconds} s")
    except Image.DecompressionBombError as error:
        raise MediaError("too_large", f"{name}: {error}") from error
    except (OSError, EOFError, SyntaxError, ValueError) as error:
        raise MediaError("unreadable", f"{name}: an animated WebP that cannot be read: {error}") from error
    return video_of_stills(pictures, times=times, end=now / 1000)
