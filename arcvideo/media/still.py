"""Still pictures, read by Pillow, as a browser shows them on a white page; and videos made of them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import av
import numpy as np
from PIL import Image, ImageOps

from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits
from arcvideo.media.streams import check_pixels

_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*")
_WHITE = 255


def is_still(data: bytes) -> bool:
    """Return whether the first bytes are those of a JPEG, PNG, BMP, TIFF, WebP or AVIF; one that moves is of type
    `avis`."""
    return data.startswith(_MAGIC) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP") or data[4:12] == b"ftypavif"


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


def video_of_stills(stills: Sequence[bytes], *, times: Sequence[float], end: float | None = None) -> bytes:
    """Return a QuickTime file that shows JPEG or PNG files at their times; their bytes are copied as they are.

    Args:
        stills: pictures of one size and one of the two types.
        times: second of each, ascending; they count from the first. Each is shown until the next one.
        end: second at which the last one ends; None shows it for as long as the one before it, a second where it is
            alone.

    Raises:
        MediaError: pictures of another type, or of several types or sizes.
    """
    kinds = {
        "mjpeg" if still.startswith(_MAGIC[0]) else "png" if still.startswith(_MAGIC[1]) else "" for still in stills
    }
    sizes = {_size(still) for still in stills} if "" not in kinds else set()
    if len(kinds) != 1 or len(sizes) != 1:
        detail = f"types {', '.join(sorted(kind or 'other' for kind in kinds))}, {len(sizes)} sizes"
        raise MediaError("unreadable", f"frames of a video must be JPEG or PNG files of one type and size: {detail}")
    (codec,), ((width, height),), target = kinds, sizes, io.BytesIO()
    last = round(1000 * (times[-1] - times[-2])) if len(times) > 1 else 1000
    last = last if end is None else round(1000 * (end - times[-1]))
    milliseconds = [round(1000 * (second - times[0])) for second in times]
    if any(earlier >= later for earlier, later in pairwise(milliseconds)):
        raise MediaError("unreadable", "times of frames must ascend by a millisecond at least")
    with av.open(target, "w", format="mov") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(1000 * len(stills), milliseconds[-1] + last))
        stream.width, stream.height, stream.time_base = width, height, Fraction(1, 1000)
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "rgb24"
        for number, still in enumerate(stills):
            packet: Any = av.Packet(still)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, 1000), True
            packet.pts = packet.dts = milliseconds[number]
            packet.duration = (
                milliseconds[number + 1] if number + 1 < len(stills) else milliseconds[-1] + last
            ) - packet.pts
            container.mux(packet)
    return target.getvalue()


def _size(still: bytes) -> tuple[int, int]:
    """Return width and height of a picture, which is not decoded."""
    try:
        with Image.open(io.BytesIO(still)) as image:
            return image.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError("unreadable", f"a frame is no picture: {error}") from error


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
