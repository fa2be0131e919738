"""Conversations as transformers writes them: which clip a conversation talks about, and where its file comes from."""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np

from arcvideo.media.sound import SAMPLE_RATE

PARTS = {
    "video": ("video", "url", "path"),
    "image": ("image", "url", "path", "base64", "image_url"),
    "audio": ("audio", "url", "path", "base64"),
}
"""Type of a part -> the keys under which its file may stand."""
OTHER_NAMES = {"image_url": "image", "video_url": "video", "input_audio": "audio"}
"""Types of parts as other libraries write them."""

PLAIN_OPTIONS = {"padding": (True, "longest", False), "truncation": (False, None), "add_special_tokens": (True, False),
                 "return_tensors": ("pt", None), "sampling_rate": (None, 16_000), "return_mm_token_type_ids": (False,),
                 "return_attention_mask": (True, None), "max_length": (None,), "do_sample_frames": (None,)}  # fmt: skip
"""Options that transformers' users give and that change nothing here, with the values for which that is true."""


@dataclass(frozen=True, kw_only=True)
class Attached:
    """The clip of one conversation: a picture, a sound, or a picture that is heard with that sound."""

    picture: Any = None
    """Of a video or a still picture: a path, the bytes of a file, a PIL picture, or (N, H, W, 3) uint8 frames."""
    sound: Any = None
    """A path, the bytes of a file, or (n,) float32 samples at 16 kHz; used in place of the video's own."""
    fps: float | None = None
    """Frames a second of decoded frames."""


def messages_of(conversation: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages with every part as a mapping of type image, video, audio or text.

    Raises:
        ValueError: a part of another type.
    """
    return [{**message, "content": _content(message.get("content"))} for message in conversation]


def _content(content: Any) -> Any:
    if isinstance(content, str):
        return content
    parts = []
    for part in content or ():
        part = {"type": "text", "text": part} if isinstance(part, str) else dict(part)
        part["type"] = {"image_url": "image", "video_url": "video", "input_audio": "audio"}.get(
            part["type"], part["type"]
        )
        if part["type"] not in (*PARTS, "text"):
            raise ValueError(f"a part of type {part['type']!r}: this model reads text, image, video and audio")
        parts.append(part)
    return parts


def attach(image: Any, video: Any, sound: Any, *, fps: float | None) -> Attached | None:
    """Return the clip of one question; None when nothing is given.

    Raises:
        ValueError: an image beside a video.
    """
    if image is not None and video is not None:
        raise ValueError("a question has one picture: give an image or a video")
    if image is None and video is None and sound is None:
        return None
    return Attached(picture=video if image is None else image, sound=sound, fps=fps)


def attached(conversation: Sequence[Mapping[str, Any]]) -> Attached | None:
    """Return the clip of a conversation from `messages_of`; None when it talks about none.

    Raises:
        ValueError: several pictures or sounds, media behind the first question, or a part without its file.
    """
    found: dict[str, list[Mapping[str, Any]]] = {name: [] for name in PARTS}
    for number, message in enumerate(conversation):
        for part in () if isinstance(message["content"], str) else message["content"]:
            if part["type"] == "text":
                continue
            if number:
                raise ValueError(f"a part of type {part['type']} in message {number + 1}: media stand in the first one")
            found[part["type"]].append(part)
    pictures, sounds = found["video"] + found["image"], found["audio"]
    if len(pictures) > 1 or len(sounds) > 1:
        raise ValueError(
            f"{len(pictures)} pictures and {len(sounds)} sounds: a conversation has one clip, a video or an image, "
            "whose sound an audio part may replace"
        )
    if not pictures and not sounds:
        return None
    fps = pictures[0].get("fps") if pictures else None
    return Attached(
        picture=_file(pictures[0]) if pictures else None, sound=_file(sounds[0]) if sounds else None, fps=fps
    )


def _file(part: Mapping[str, Any]) -> Any:
    keys = [key for key in PARTS[part["type"]] if part.get(key) is not None]
    if len(keys) != 1:
        raise ValueError(f"a part of type {part['type']} needs one of {', '.join(PARTS[part['type']])}")
    value = part[keys[0]]
    if keys[0] == "base64":
        return base64.b64decode(value)
    return value["url"] if isinstance(value, Mapping) else value


def file_bytes(source: Any) -> bytes:
    """Return the bytes of a path, of a file's bytes, of a `data:` or `file:` address, of a PIL picture or of samples.

    Raises:
        ValueError: an address on the network, or an object of another kind.
        OSError: a file that cannot be read.
    """
    if isinstance(source, (bytes, bytearray)):
        return bytes(source)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ValueError(f"{source}: download the file first and give its path")
    if isinstance(source, str) and source.startswith("data:"):
        return base64.b64decode(source.partition(",")[2])
    if isinstance(source, str) and source.startswith("file://"):
        source = unquote(urlparse(source).path)
    if isinstance(source, (str, Path)):
        return Path(source).read_bytes()
    if hasattr(source, "save") and hasattr(source, "mode"):  # a PIL picture
        written = io.BytesIO()
        source.save(written, format="PNG")
        return written.getvalue()
    samples = np.asarray(source)
    if samples.dtype.kind == "f" and samples.ndim == 1:
        return _wav(samples)
    if samples.dtype == np.uint8 and samples.ndim == 3:
        from PIL import Image

        return file_bytes(Image.fromarray(samples if samples.shape[-1] in (3, 4) else samples.transpose(1, 2, 0)))
    raise ValueError(f"media of type {type(source).__name__}: give a path, bytes, a PIL picture, or arrays")


def _wav(samples: np.ndarray) -> bytes:
    """Return a WAV file of (n,) samples at 16 kHz, float32 as they are."""
    data = samples.astype("<f4").tobytes()
    described = struct.pack("<HHIIHH", 3, 1, SAMPLE_RATE, 4 * SAMPLE_RATE, 4, 32)
    return (
        struct.pack("<4sI4s4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16)
        + described
        + struct.pack("<4sI", b"data", len(data))
        + data
    )


def check_options(options: dict[str, Any], *, padding_side: str) -> None:
    """Raise ValueError for an option that asks for something that is not done."""
    if padding_side not in ("left", "right"):
        raise ValueError(f"padding_side={padding_side!r}: left or right")
    for name, value in options.items():
        if name.endswith("_kwargs") and not value:
            continue
        if name not in PLAIN_OPTIONS:
            raise ValueError(f"{name}={value!r}: this processor has no such option")
        if value not in PLAIN_OPTIONS[name]:
            raise ValueError(f"{name}={value!r}: only {' or '.join(map(repr, PLAIN_OPTIONS[name]))} is possible here")


def per_row(value: Any, *, rows: int) -> list[Any]:
    """Return one item a row of what may be one item, a list of them, or a list of lists as chats have them."""
    if value is None:
        return [None] * rows
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(item, (list, tuple)) and len(item) > 1 for item in listed):
        raise ValueError("several images, videos or sounds for one question: a question has one clip")
    return [(item[0] if item else None) if isinstance(item, (list, tuple)) else item for item in listed]
