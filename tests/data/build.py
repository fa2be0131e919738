"""Small shards that the tests of the data room write themselves: real media files, all tasks, a tokenizer."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from arcvideo.layout import MediaLayout
from arcvideo.model.disk.tokenizer import build_tiny_tokenizer
from arcvideo.planning.settings import DataSettings, SourceSettings
from arcvideo.shards.write import Record, write_shards

LAYOUT = MediaLayout(image_size=64, mel_bins=80, audio_positions=400, audio_pooling=10, max_frames=150)


@cache
def tokenizer() -> Any:
    return build_tiny_tokenizer(["what is shown? Describe the video content. red blue green white 0123456789"])


@cache
def mp4(seconds: float = 2.0, *, sound: bool = True, shade: int = 128) -> bytes:
    """An H.264 + AAC file of one grey, 8 frames a second."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        picture = container.add_stream("libx264", rate=8, options={"preset": "ultrafast"})
        picture.width = picture.height = 64
        picture.pix_fmt = "yuv420p"
        tone = container.add_stream("aac", rate=16_000, layout="mono") if sound else None
        for number in range(round(seconds * 8)):
            pixels = np.full((64, 64, 3), (shade + number) % 256, dtype=np.uint8)
            container.mux(picture.encode(av.VideoFrame.from_ndarray(pixels)))
        container.mux(picture.encode(None))
        if tone is not None:
            waveform = np.sin(np.arange(int(seconds * 16_000)) * 0.1 + shade).astype(np.float32) * 0.3
            frame = av.AudioFrame.from_ndarray(waveform[None], format="fltp", layout="mono")
            frame.sample_rate = 16_000
            container.mux(tone.encode(frame))
            container.mux(tone.encode(None))
    return target.getvalue()


@cache
def wav(seconds: float = 2.0) -> bytes:
    target = io.BytesIO()
    with wave.open(target, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes((np.sin(np.arange(int(seconds * 16_000)) * 0.05) * 9000).astype("<i2").tobytes())
    return target.getvalue()


@cache
def png() -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (80, 60), (200, 30, 30)).save(target, "PNG")
    return target.getvalue()


def items(seed: int) -> list[dict[str, Any]]:
    """One item of each task, with think texts where the seed is even."""
    think = {"think": "it is shown"} if seed % 2 == 0 else {}
    options = ["red", "blue", "green", "white"]
    return [
        {"task": "asr", "answer": f"red blue {seed}", "tags": ["needs:audio"]},
        {"task": "caption", "answer": "a red video" * (1 + seed % 3), "tags": ["needs:video"]},
        {"task": "qa", "question": "what is shown?", "answer": f"number {seed}", **think},
        {"task": "mcq", "question": "what is shown?", "options": options, "answer": "ABCD"[seed % 4], **think},
        {"task": "grounding", "question": "when is red shown?", "span": [0.0, 1.0 + seed % 2], **think},
        {"task": "summary", "title": "red", "answer": "it is red", **think},
        {"task": "chapters", "events": [[0, 1, "red"], [0.6, 1.4, "blue"]], **think},
    ]


def records(count: int, *, start: int = 0) -> Iterator[Record]:
    """Clips of four kinds in turn: picture and sound, silent, sound only, still."""
    for number in range(start, start + count):
        media = [
            {"mp4": mp4(1.0 + number % 3, shade=number)},
            {"mp4": mp4(2.0, sound=False)},
            {"wav": wav()},
            {"png": png()},
        ][number % 4]
        yield Record(key=f"clip-{number:05d}", content={"items": items(number)}, media=media)


def shards(folder: Path, *, count: int = 12, per_shard: int = 5) -> str:
    """Writes shards and returns their pattern."""
    write_shards(records(count), out=folder, per_shard=per_shard)
    return str(folder / "shard-*.tar")


def settings(pattern: str, **changes: Any) -> DataSettings:
    """One source named `tiny`; keyword arguments of the source start with `source_`."""
    source = {key.removeprefix("source_"): value for key, value in changes.items() if key.startswith("source_")}
    other = {key: value for key, value in changes.items() if not key.startswith("source_")}
    return DataSettings(
        sources={"tiny": SourceSettings(shards=pattern, **source)}, **{"wording": "brief", "token_budget": 512, **other}
    )
