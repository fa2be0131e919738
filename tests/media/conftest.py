"""Small media made on the spot: a video whose frames tell their number, tones, stills."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

_FIXTURES = Path(__file__).parents[1] / "fixtures" / "preproc"


@dataclass(frozen=True)
class Layout:
    image_size: int = 128
    mel_bins: int = 80
    audio_positions: int = 400
    max_frames: int = 150
    middle_sound: bool = False

    @property
    def max_seconds(self) -> int:
        return 2 * self.max_frames


@pytest.fixture(scope="session")
def layout() -> Layout:
    return Layout()


@pytest.fixture(scope="session")
def layout_of() -> type[Layout]:
    return Layout


@pytest.fixture(scope="session")
def goldens() -> dict[str, Any]:
    """Numbers from the reference preprocessing code."""
    return json.loads((_FIXTURES / "dev_preproc.json").read_text())


@pytest.fixture(scope="session")
def golden_tensors() -> dict[str, Any]:
    return load_file(_FIXTURES / "dev_preproc.safetensors")


@pytest.fixture(scope="session")
def media_folder() -> Path:
    root = Path(os.environ.get("ARCVIDEO_TEST_MEDIA", Path(__file__).parents[3] / "shared"))
    if not (root / "data" / "media").is_dir():
        pytest.skip(f"no real media: {root}/data is absent (set ARCVIDEO_TEST_MEDIA to a folder that has it)")
    return root / "data"


def tone(seconds: float, *, rate: int = 16_000, channels: int = 1) -> np.ndarray:
    """(channels, N) float32: 440 Hz at 0.25 in every channel."""
    wave = 0.25 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    return np.tile(wave.astype(np.float32), (channels, 1))


def grey_frames(count: int, *, size: tuple[int, int] = (64, 96)) -> list[np.ndarray]:
    """Frames whose grey level is 16 + 4 x their number; size is (width, height)."""
    return [np.full((size[1], size[0], 3), 16 + 4 * number, dtype=np.uint8) for number in range(count)]


def make_media(
    frames: list[np.ndarray] | None = None,
    *,
    fps: int = 4,
    sound: np.ndarray | None = None,
    rate: int = 16_000,
    container: str = "mp4",
    codec: str = "libx264",
    audio_codec: str = "aac",
    options: dict[str, str] | None = None,
    sound_first_pts: int = 0,
) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as out:
        video = audio = None
        if frames is not None:
            video = out.add_stream(codec, rate=fps, options=options or {"preset": "medium", "crf": "10"})
            video.height, video.width = frames[0].shape[:2]
            video.pix_fmt = "yuv420p"
        if sound is not None:
            layout = {1: "mono", 2: "stereo"}[sound.shape[0]]
            audio = out.add_stream(audio_codec, rate=rate, layout=layout)
        if video is not None:
            for number, frame in enumerate(frames):
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                picture.pts = number
                out.mux(video.encode(picture))
            out.mux(video.encode())
        if audio is not None:
            heard = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound), format="fltp", layout=layout)
            heard.sample_rate, heard.pts = rate, sound_first_pts
            out.mux(audio.encode(heard))
            out.mux(audio.encode())
    return buffer.getvalue()


@pytest.fixture(scope="session")
def make() -> Callable[..., bytes]:
    return make_media


@pytest.fixture(scope="session")
def short_video() -> bytes:
    """10 s, 4 fps, B-frames, mono tone: 40 frames of 64 x 96."""
    return make_media(grey_frames(40), sound=tone(10))


def picture(kind: str = "jpeg", *, size: tuple[int, int] = (96, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (200, 40, 40)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def still() -> Callable[..., bytes]:
    return picture


@pytest.fixture(scope="session")
def media_with_rotation() -> bytes:
    """Stored lying, left half dark and right half bright, with a display matrix of a quarter turn."""
    frame = np.full((64, 96, 3), 40, dtype=np.uint8)
    frame[:, 48:] = 200
    return with_display_matrix(make_media([frame] * 8), matrix=(0, 1, -1, 0))


def with_display_matrix(made: bytes, *, matrix: tuple[int, int, int, int]) -> bytes:
    """The MP4 with (a, b, c, d) as the display matrix of its first track."""
    data = bytearray(made)
    at = (
        data.index(b"tkhd") + 4 + 4 + 4 * 4 + 4 + 8 + 8
    )  # version and flags, times, id, reserved, duration, ..., volume
    a, b, c, d = (0x10000 * number for number in matrix)
    numbers = (a, b, 0, c, d, 0, 0, 0, 0x40000000)
    data[at : at + 36] = b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)
    return bytes(data)
