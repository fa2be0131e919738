"""Waveform rules and the log-mel that the audio encoder reads. The only media file that imports whisper."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arcvideo.media.sound import SAMPLE_RATE

_SAMPLES_PER_POSITION = 320  # hop 160 and a stride of two in the encoder
_TOLERATED_DRIFT = 1.0
"""Seconds by which sound and picture may differ in length before the sound is fitted to the picture."""


@dataclass(frozen=True, kw_only=True)
class AudioSpan:
    """The waveform that is encoded, and how many of its seconds count."""

    waveform: Tensor
    """(N,) float32."""
    seconds: int


def fit_waveform(
    waveform: Tensor,
    *,
    frame_count: int,
    video_seconds: float | None,
    max_frames: int,
    max_seconds: int | None = None,
    middle: bool = False,
) -> AudioSpan:
    """Cut and pads a waveform so that its seconds match the frames.

    The released code's rules: above 2 * max_frames seconds, `max_frames` pieces of two seconds are kept; below one
    second, zeros are appended; up to max_frames seconds there is one second per frame. Where released training
    stopped with an error (sound much shorter or longer than the picture), the sound is first fitted to the picture.

    Args:
        waveform: (N,) at 16 kHz.
        frame_count: frames of the clip.
        video_seconds: duration of the picture, None when there is none.
        max_frames: the layout's limit.
        max_seconds: above so many seconds pieces are kept; None is the released 2 * max_frames.
        middle: keep the middle of each part, not its beginning.
    """
    if video_seconds is not None and video_seconds > max_frames:
        drift = waveform.numel() / SAMPLE_RATE - video_seconds
        if abs(drift) > _TOLERATED_DRIFT:
            waveform = _resized(waveform, samples=math.ceil(video_seconds) * SAMPLE_RATE)
    elif video_seconds is not None:
        return AudioSpan(waveform=_at_least_a_second(waveform), seconds=frame_count)
    waveform = cut_waveform(waveform, pieces=max_frames, seconds=max_seconds or 2 * max_frames, middle=middle)
    waveform = _at_least_a_second(waveform)
    seconds = math.ceil(waveform.numel() / SAMPLE_RATE)
    return AudioSpan(waveform=waveform, seconds=seconds if seconds > max_frames else frame_count)


def cut_waveform(waveform: Tensor, *, pieces: int, seconds: int, middle: bool = False) -> Tensor:
    """Return the whole signal up to this many seconds; beyond, equally much from the start (or the middle) of each of
    `pieces` parts.
    """
    if waveform.numel() <= seconds * SAMPLE_RATE:
        return waveform
    length = seconds * SAMPLE_RATE // pieces
    part = waveform.numel() // pieces
    first = part // 2 - length // 2 if middle else 0
    return torch.cat([waveform[i * part + first : i * part + first + length] for i in range(pieces)])


def silent_seconds(*, frame_count: int, duration: float, max_frames: int, max_seconds: int | None = None) -> int:
    """Return seconds that count for a clip without sound."""
    return frame_count if duration <= max_frames else min(math.ceil(duration), max_seconds or 2 * max_frames)


def mel_chunks(waveform: Tensor, *, mel_bins: int, chunk_samples: int, chunks: int | None = None) -> Tensor:
    """Return (C, M, chunk_samples // 160) float32 Whisper log-mel, chunk by chunk, the last one zero-padded.

    Args:
        waveform: (N,) float32 at 16 kHz.
        mel_bins: 80 or 128.
        chunk_samples: samples of a chunk, 320 per position of the audio encoder.
        chunks: how many chunks to return (zeros beyond the end, a cut before it); None covers the waveform.
    """
    from whisper.audio import log_mel_spectrogram  # slow to import

    if chunk_samples % _SAMPLES_PER_POSITION:
        raise ValueError(f"chunk_samples={chunk_samples}: must be a multiple of {_SAMPLES_PER_POSITION}")
    count = chunks or max(1, math.ceil(waveform.numel() / chunk_samples))
    padded = _resized(waveform, samples=count * chunk_samples)
    # One call per chunk: the clamp to (maximum - 8) is per chunk in the released feature extractor.
    return torch.stack([log_mel_spectrogram(chunk, n_mels=mel_bins) for chunk in padded.split(chunk_samples)])


class Whisper:
    """Speech recognition by openai-whisper, from a local checkpoint."""

    def __init__(self, checkpoint: Path) -> None:
        """Load the weights.

        Raises:
            ValueError: no checkpoint of openai-whisper.
        """
        from whisper import load_model  # slow to import

        if not checkpoint.is_file():
            raise ValueError(f"{checkpoint}: no such file; name a checkpoint of openai-whisper")
        try:
            self._model = load_model(str(checkpoint))
        except Exception as error:  # a file that is none can make its reader raise anything
            kind = type(error).__name__
            raise ValueError(f"{checkpoint}: no checkpoint of openai-whisper ({kind} while it was loaded)") from error

    def segments(self, waveform: Tensor) -> list[dict[str, Any]]:
        """`{"start", "end", "text"}` of each stretch of speech in (N,) float32 at 16 kHz; seconds, greedy decoding."""
        transcript = self._model.transcribe(waveform.float(), temperature=0.0, fp16=self._model.device.type == "cuda")
        return [
            {"start": round(float(part["start"]), 2), "end": round(float(part["end"]), 2), "text": text}
            for part in transcript["segments"]
            if (text := part["text"].replace("\ufffd", "").strip())
        ]


def _at_least_a_second(waveform: Tensor) -> Tensor:
    return waveform if waveform.numel() >= SAMPLE_RATE else _resized(waveform, samples=SAMPLE_RATE)


def _resized(waveform: Tensor, *, samples: int) -> Tensor:
    missing = samples - waveform.numel()
    return torch.nn.functional.pad(waveform, (0, missing)) if missing > 0 else waveform[:samples]
