"""A script as media bytes: real H.264, AAC, WAV and JPEG files, the same bytes for the same script."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Literal

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream
from PIL import Image

from arcvideo.synthetic import draw, sound
from arcvideo.synthetic.script import Script

_X264 = {"preset": "ultrafast", "crf": "23", "threads": "1"}
_AAC = {"aac_coder": "fast", "aac_tns": "0", "aac_pns": "0", "cutoff": "5000"}
"""Four times faster than the encoder's defaults; nothing that is said or heard lies above 5 kHz."""
_AAC_BIT_RATE = 40_000


def encode(script: Script) -> tuple[str, bytes]:
    """Return (file extension, bytes): mp4, m4a or wav for speech alone, jpg for a still."""
    if script.kind == "image":
        return "jpg", _jpeg(draw.still(script))
    if script.kind == "speech":
        container = "wav" if script.seed % 4 == 0 else "m4a"
        return container, _movie(container, picture=None, waveform=sound.waveform(script))
    if script.kind not in ("full", "silent"):
        raise ValueError(f"clip kind {script.kind!r}: encode.py knows full, silent, speech and image")
    waveform = sound.waveform(script) if script.kind == "full" else None
    return "mp4", _movie("mp4", picture=draw.frames(script), waveform=waveform)


def movie(frames: Iterable[np.ndarray], *, waveform: np.ndarray, width: int, height: int, fps: int) -> bytes:
    """Return an mp4 of frames (H, W, 3) uint8 RGB and of (n,) float32 sound at 16 kHz."""
    return _movie("mp4", picture=frames, waveform=waveform, size=(width, height), fps=fps)


def _jpeg(frame: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "jpeg", quality=90)
    return buffer.getvalue()


def _movie(
    extension: str,
    *,
    picture: Iterable[np.ndarray] | None,
    waveform: np.ndarray | None,
    size: tuple[int, int] = (draw.WIDTH, draw.HEIGHT),
    fps: int = draw.FPS,
) -> bytes:
    buffer = io.BytesIO()
    muxer = {"mp4": "mp4", "m4a": "ipod", "wav": "wav"}[extension]
    # bitexact: no encoder version, no creation time, so equal scripts give equal bytes.
    with av.open(buffer, "w", format=muxer, options={"fflags": "+bitexact"}) as container:
        video = _video_stream(container, size=size, fps=fps) if picture is not None else None
        audio = _audio_stream(container, "pcm_s16le" if extension == "wav" else "aac") if waveform is not None else None
        if video is not None and picture is not None:
            _encode_picture(container, video, picture)
        if audio is not None and waveform is not None:
            heard = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
            heard.sample_rate, heard.pts = sound.SAMPLE_RATE, 0
            container.mux(audio.encode(heard))
            container.mux(audio.encode())
    return buffer.getvalue()


def _video_stream(container: OutputContainer, *, size: tuple[int, int], fps: int) -> VideoStream:
    stream = container.add_stream("libx264", rate=fps, options=dict(_X264))
    (stream.width, stream.height), stream.pix_fmt = size, "yuv420p"
    return stream


def _audio_stream(container: OutputContainer, codec: Literal["aac", "pcm_s16le"]) -> AudioStream:
    options = dict(_AAC) if codec == "aac" else {}
    stream = container.add_stream(codec, rate=sound.SAMPLE_RATE, layout="mono", options=options)
    if codec == "aac":
        stream.bit_rate = _AAC_BIT_RATE
    return stream


def _encode_picture(container: OutputContainer, stream: VideoStream, picture: Iterable[np.ndarray]) -> None:
    drawn, shown = None, None
    for number, frame in enumerate(picture):
        if shown is None or frame is not drawn:
            drawn = frame
            shown = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="yuv420p", threads=1)
        shown.pts = number
        container.mux(stream.encode(shown))
    container.mux(stream.encode())
