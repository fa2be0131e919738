"""A model behind an OpenAI-compatible endpoint: the same questions, frames and times, with deadlines and retries."""

from __future__ import annotations

import base64
import io
import json
import os
import sys
import time
import urllib.request
import wave
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image

from arcvideo.evaluation.answers import Answer
from arcvideo.hidden import hidden
from arcvideo.measuring.answering import plain
from arcvideo.measuring.answering.post import Unanswered, post_json
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.media.sound import SAMPLE_RATE
from arcvideo.types import Clip

KEY_VARIABLE = "OPENAI_API_KEY"
RETRIED = (408, 409, 425, 429, 500, 502, 503, 504)
"""Statuses after which the same request may succeed later."""
_QUALITY = 90
_TOGETHER = 8
"""Requests about one clip that are under way at a time."""
_MOST_PAUSE = 60.0


class EndpointError(OSError):
    """The endpoint does not answer, or refuses what it is asked."""


class Endpoint(plain.PlainModel):
    """A server that speaks `POST /chat/completions`; frames go as JPEG pictures in order, sound as WAV."""

    def __init__(self, settings: EvaluateSettings) -> None:
        """Take its address; nothing is asked yet."""
        super().__init__(settings)
        self.url = f"{settings.endpoint.rstrip('/')}/chat/completions"
        self.name, self.deadline, self.tries = settings.model, settings.deadline, settings.tries
        self.pause = 1.0
        """Seconds before the second try, doubled each time."""

    @property
    def origin(self) -> dict[str, Any]:
        """What decides the answers, besides what is asked, as far as it is known."""
        return {
            "model": self.name,
            "weights": "unknown: behind an endpoint",
            "style": self.style,
            "wording": self.wording,
            "layout": vars(self.layout),
            "decoding": {"temperature": 0, "max_new_tokens": self.max_new_tokens, "jpeg_quality": _QUALITY},
        }

    def load(self) -> None:
        """Do nothing: the server has loaded it."""

    def answers(self, asked: Iterable[plain.Told]) -> list[Answer]:
        """Return the answers to everything that is asked about a clip, some requests at a time.

        Raises:
            EndpointError: a request failed as often as it is tried; what was answered before is kept.
        """
        with ThreadPoolExecutor(_TOGETHER, "endpoint") as threads:
            return list(threads.map(self._answer, asked))

    def _answer(self, one: plain.Told) -> Answer:
        body = {
            "model": self.name,
            "messages": [{"role": "user", "content": content(one.text, clip=one.clip)}],
            "max_tokens": self.max_new_tokens,
            "temperature": 0,
        }
        reply = self._reply(json.dumps(body).encode())
        try:
            choice = reply["choices"][0]
            text = choice["message"].get("content") or ""
            tokens = int((reply.get("usage") or {}).get("completion_tokens") or 0)
            finished = choice.get("finish_reason") != "length"
        except (KeyError, IndexError, TypeError, AttributeError):
            raise EndpointError(f"{self.url}: answered no completion: {json.dumps(reply)[:200]}") from None
        return plain.answer_of(one, text=text, tokens=tokens, finished=finished)

    def _reply(self, body: bytes) -> Any:
        """Post, and again after a pause while the server is busy, silent or breaks off; every try is told."""
        reason = ""
        for number in range(self.tries):
            if number:
                pause = min(self.pause * 2 ** (number - 1), _MOST_PAUSE)
                told = f"endpoint={hidden(self.url)}: {reason}; again in {pause:g} s (try {number + 1} of {self.tries})"
                print(told, file=sys.stderr, flush=True)
                time.sleep(pause)
            try:
                return post_json(self._request(body), seconds=self.deadline)
            except Unanswered as error:
                reason = str(error)
                if error.status and error.status not in RETRIED:
                    break
        raise EndpointError(
            f"endpoint={hidden(self.url)} gave no answer ({reason}): see that it runs, or give it longer with "
            f"deadline=SECONDS (now {self.deadline:g}) or tries=N; the same command goes on from here once it does"
        )

    def _request(self, body: bytes) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {os.environ[KEY_VARIABLE]}"
        return urllib.request.Request(self.url, data=body, headers=headers)


def content(text: str, *, clip: Clip | None) -> list[dict[str, Any]]:
    """Return the parts of a message: each frame behind the time it stands for, the sound, the question."""
    parts: list[dict[str, Any]] = []
    if clip is not None and clip.frames is not None:
        for (start, end), picture in zip(clip.frame_times.tolist(), plain.pictures(clip.frames), strict=True):
            parts.append({"type": "text", "text": f"{start:g}-{end:g} s"})
            parts.append({"type": "image_url", "image_url": {"url": _data_url("image/jpeg", _jpeg(picture))}})
    if clip is not None and clip.waveform is not None:
        sound = base64.b64encode(_wav(clip.waveform.numpy())).decode()
        parts.append({"type": "input_audio", "input_audio": {"data": sound, "format": "wav"}})
    return [*parts, {"type": "text", "text": text}]


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def _jpeg(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "jpeg", quality=_QUALITY)
    return buffer.getvalue()


def _wav(waveform: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((waveform.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return buffer.getvalue()
