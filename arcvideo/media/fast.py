"""torchcodec as a second picture decoder (`data.decoder=torchcodec`): the same frames, found by the same time stamps.

PyAV still reads the packets, chooses the frames and decodes the sound. Where torchcodec sees the stream otherwise than
its packets say (edit lists, mirrored pictures, codecs it does not know), PyAV decodes the picture too, so that the
decoder never decides which frames are seen. Pixels may differ by rounding in the conversion to RGB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from arcvideo.media.picture import Selection, Timeline
from arcvideo.media.settings import DECODERS, MediaLimits
from arcvideo.media.streams import check_pixels, in_seconds

if TYPE_CHECKING:
    from av.video.stream import VideoStream

_AT_A_TIME = 8
"""Whole frames that are held at once."""


def check_decoder(name: str) -> None:
    """Refuse a decoder that is unknown or cannot work here.

    Raises:
        ValueError: with what to install.
    """
    if name not in DECODERS:
        raise ValueError(f"data.decoder={name!r}: choose one of {', '.join(DECODERS)}")
    if name == "torchcodec":
        try:
            import torchcodec.decoders  # noqa: F401 - slow, and links to FFmpeg when imported
        except (ImportError, OSError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"data.decoder=torchcodec cannot be loaded ({reason}): install the extra `torchcodec` and FFmpeg's "
                "libraries (apt-get install ffmpeg), or set data.decoder=pyav"
            ) from error


def fast_frames(
    data: bytes, stream: VideoStream, *, timeline: Timeline, chosen: Selection, name: str, limits: MediaLimits
) -> list[np.ndarray] | None:
    """Return the chosen frames, finished, one per slot; None where torchcodec would show others than the packets say.

    Raises:
        MediaError: a frame over the pixel limit.
    """
    from torchcodec.decoders import VideoDecoder

    try:
        decoder = VideoDecoder(
            data, stream_index=stream.index, dimension_order="NHWC", num_ffmpeg_threads=limits.decode_threads
        )
    except (RuntimeError, ValueError):
        return None
    if len(decoder) != len(timeline.ticks):
        return None
    frames: list[np.ndarray] = []
    half = float(stream.time_base or 0) / 2
    for first in range(0, len(chosen.indices), _AT_A_TIME):
        indices = list(chosen.indices[first : first + _AT_A_TIME])
        try:
            decoded = decoder.get_frames_at(indices)
        except (RuntimeError, ValueError, IndexError):
            return None
        wanted = [in_seconds(stream, timeline.ticks[index]) for index in indices]
        if np.abs(decoded.pts_seconds.numpy() - wanted).max() > half:
            return None
        for slot, pixels in enumerate(decoded.data.numpy(), start=first):
            check_pixels(pixels.shape[1], pixels.shape[0], name=name, limits=limits)
            frames.append(chosen.finish(pixels, slot, pixels.shape[:2]))
    return frames
