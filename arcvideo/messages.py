"""Conversations as transformers writes them: which media they talk about, and where their files come from."""

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

from arcvideo.media.settings import MediaLimits
from arcvideo.media.sound import SAMPLE_RATE
from arcvideo.media.still import read_still

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
    """One medium of a conversation: a picture, a sound, or a picture that is heard with that sound."""

    picture: Any = None
    """Of a video or a still picture: a path, the bytes of a file, a PIL picture, (N, H, W, 3) uint8 frames, or a list
    of pictures that are frames of a video."""
    sound: Any = None
    """A path, the bytes of a file, or (n,) float32 samples at 16 kHz; used in place of the video's own."""
    fps: float | None = None
    """Frames a second of decoded frames."""
    times: Sequence[float] | None = None
    """In place of it, the second of each."""


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


def attach(images: Sequence[Any], videos: Sequence[Any], sounds: Sequence[Any], *, fps: float | None) -> list[Attached]:
    """Return the media of one question.

    Raises:
        ValueError: several of more than one kind, whose order nobody knows.
    """
    kinds = {"image": images, "video": videos, "audio": sounds}
    given = [(kind, medium) for kind, listed in kinds.items() for medium in listed]
    pictures = [*images, *videos]
    if len(pictures) == 1 and len(sounds) == 1:
        return [Attached(picture=pictures[0], sound=sounds[0], fps=fps)]
    if len({kind for kind, _ in given}) > 1:
        raise ValueError(
            "several media of different kinds for one question: give `media` in their order, or a conversation"
        )
    return [Attached(sound=medium) if kind == "audio" else Attached(picture=medium, fps=fps) for kind, medium in given]


def attached(
    conversation: Sequence[Mapping[str, Any]], *, files: bool = True
) -> tuple[list[dict[str, Any]], list[Attached]]:
    """Return a conversation from `messages_of` with one part for each medium, and the media in their order.

    Args:
        conversation: messages.
        files: name each medium's file; False gives no media, and parts need none.

    Raises:
        ValueError: media outside of a question, or a part without its file.
    """
    messages = [dict(message) for message in conversation]
    places = []
    for number, message in enumerate(messages):
        for part in () if isinstance(message["content"], str) else message["content"]:
            if part["type"] == "text":
                continue
            if message.get("role") != "user":
                raise ValueError(f"a part of type {part['type']} in message {number + 1}: media stand in questions")
            places.append((number, part))
    sounds = [part for _, part in places if part["type"] == "audio"]
    if len(places) == 2 and len(sounds) == 1 and {number for number, _ in places} == {0}:
        (picture,) = (part for _, part in places if part is not sounds[0])
        messages[0]["content"] = [part for part in messages[0]["content"] if part is not sounds[0]]
        return messages, [_medium({**picture, "sound": _file(sounds[0])})] if files else []
    return messages, [_medium(part) for _, part in places] if files else []


def _medium(part: Mapping[str, Any]) -> Attached:
    if part["type"] == "audio":
        return Attached(sound=_file(part))
    return Attached(picture=_file(part), sound=part.get("sound"), fps=part.get("fps"), times=part.get("times"))


def frames_of(picture: Any) -> np.ndarray | Sequence[np.ndarray] | None:
    """Return the frames of a video that is given as frames, (H, W, 3) uint8 RGB each; None for a file or one picture.

    Raises:
        MediaError, OSError: one that cannot be read.
    """
    if getattr(picture, "ndim", 0) == 4:
        return np.asarray(picture)
    if not isinstance(picture, (list, tuple)):
        return None
    return [
        frame
        if isinstance(frame, np.ndarray)
        else read_still(file_bytes(frame), name=str(frame)[:200], limits=MediaLimits())
        for frame in picture
    ]


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


def per_row(value: Any, *, rows: int) -> list[list[Any]]:
    """Return the items of each row, of what may be one item, a list of them, or a list of lists as chats have them."""
    if value is None:
        return [[] for _ in range(rows)]
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    if rows == 1 and len(listed) > 1 and not any(isinstance(item, (list, tuple)) for item in listed):
        listed = [listed]
    return [list(item) if isinstance(item, (list, tuple)) else [] if item is None else [item] for item in listed]
