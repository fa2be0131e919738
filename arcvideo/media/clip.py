"""Bytes -> Clip -> Media: the room's front door."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from arcvideo.media.audio import fit_waveform, mel_chunks, silent_seconds
from arcvideo.media.frames import plan_frames, stamp, stamp_text
from arcvideo.media.picture import keeps_to
from arcvideo.media.read import ClipArrays, Reading, read_arrays, read_request, resize
from arcvideo.media.settings import Layout, MediaLimits
from arcvideo.media.sound import SAMPLE_RATE
from arcvideo.types import Clip, Media


def read_clip(
    data: bytes,
    *,
    name: str,
    layout: Layout,
    sidecar_audio: bytes | None = None,
    limits: MediaLimits | None = None,
    **how: Unpack[Reading],
) -> Clip:
    """Decode a video, a sound file or a still picture in this process.

    Args:
        name: file name, for messages only.
        layout: frame side and frame limit of the model.
        sidecar_audio: a second file whose sound is used instead of the file's own.
        limits: of the file; None takes the usual ones.
        how: as in `ReadRequest`.

    Raises:
        MediaError: the file is broken, empty or over a limit.
    """
    request = read_request(name=name, layout=layout, **how)
    return as_clip(read_arrays(data, request=request, limits=limits or MediaLimits(), sidecar_audio=sidecar_audio))


def as_clip(arrays: ClipArrays) -> Clip:
    """Return the same clip with tensors, in the same memory."""
    return Clip(
        key=arrays.key,
        frames=None if arrays.frames is None else torch.from_numpy(arrays.frames),
        frame_times=torch.from_numpy(arrays.spans),
        waveform=None if arrays.waveform is None else torch.from_numpy(arrays.waveform),
        duration=arrays.duration,
    )


def clip_of_frames(
    frames: np.ndarray | Sequence[np.ndarray],
    *,
    fps: float | None = None,
    times: Sequence[float] | None = None,
    waveform: np.ndarray | None = None,
    layout: Layout,
    font: str | None = None,
) -> Clip:
    """Return the clip that a video of these frames is: the same ones are taken, stamped and resized.

    Args:
        frames: (H, W, 3) uint8 RGB each, in order; all frames of a video, or those that were extracted from one.
        fps: frames a second, where they come at a constant rate.
        times: second of each, ascending, in place of `fps`; they count from the first, as in a file. Each is shown
            until the next one, the last for as long as the one before it, a second where it is alone.
        waveform: (n,) float32 mono at 16 kHz; None without sound.

    Raises:
        ValueError: frames of another form, or times that do not fit them.
    """
    if not len(frames) or any(
        picture.ndim != 3 or picture.shape[-1] != 3 or picture.dtype != np.uint8 for picture in frames
    ):
        raise ValueError("frames must be (H, W, 3) uint8 RGB, at least one")
    if (fps is None) == (times is None):
        raise ValueError("decoded frames need fps, their frames a second, or times, the second of each")
    when = None if times is None else np.array(times, dtype=np.float64)
    if when is not None and (when.shape != (len(frames),) or when[0] < 0 or (np.diff(when) <= 0).any()):
        raise ValueError(f"times must be {len(frames)} ascending seconds, one for each frame, got {when.tolist()}")
    if when is not None:
        when -= when[0]
        duration = float(2 * when[-1] - when[-2]) if len(when) > 1 else 1.0
        fps = len(frames) / duration
        when = None if keeps_to(fps, seconds=when) else when
    else:
        assert fps is not None
        duration = len(frames) / fps
    plan = plan_frames(frame_count=len(frames), fps=fps, times=when, duration=duration, max_frames=layout.max_frames)
    seen = []
    for index, span in zip(plan.indices, plan.spans, strict=True):
        frame = np.array(frames[index])
        stamp(frame, text=stamp_text(span), font=font)
        seen.append(resize(frame, size=layout.image_size).transpose(2, 0, 1))
    digest = hashlib.sha256(repr((fps, None if times is None else list(times), layout, font)).encode())
    for part in (*frames, *(() if waveform is None else (waveform,))):
        digest.update(repr(part.shape).encode() + np.ascontiguousarray(part).tobytes())
    return as_clip(
        ClipArrays(
            key=digest.hexdigest(),
            frames=np.stack(seen),
            spans=np.asarray(plan.spans, dtype=np.float32),
            waveform=waveform,
            duration=duration,
        )
    )


def to_media(clip: Clip, *, layout: Layout) -> Media:
    """Return what the towers read. An absent half is None and has its flag off; the model feeds zeros for it.

    Absent sound is not silence: silence has its own log-mel, absence is an all-zero encoder input (paper 3.2.2).

    Args:
        layout: the one that the clip was read with.
    """
    limit, frame_count = layout.max_frames, int(clip.frame_times.shape[0])
    if frame_count > limit:
        raise ValueError(f"clip {clip.key[:12]}: {frame_count} frames, max_frames is {limit}; read it with that limit")
    if clip.waveform is None:
        mel, seconds = (
            None,
            silent_seconds(
                frame_count=frame_count, duration=clip.duration, max_frames=limit, max_seconds=layout.max_seconds
            ),
        )
    else:
        mel, seconds = _mel(clip, clip.waveform, frame_count=frame_count, layout=layout)
    return Media(
        key=clip.key,
        frame_count=frame_count,
        seconds=seconds,
        has_video=clip.frames is not None,
        has_audio=mel is not None,
        pixels=clip.frames,
        mel=mel,
    )


def _mel(clip: Clip, waveform: Tensor, *, frame_count: int, layout: Layout) -> tuple[Tensor, int]:
    video_seconds = clip.duration if clip.frames is not None else None
    span = fit_waveform(
        waveform,
        frame_count=frame_count,
        video_seconds=video_seconds,
        max_frames=layout.max_frames,
        max_seconds=layout.max_seconds,
        middle=layout.middle_sound,
    )
    chunk_seconds = layout.audio_positions // 50
    mel = mel_chunks(
        span.waveform,
        mel_bins=layout.mel_bins,
        chunk_samples=chunk_seconds * SAMPLE_RATE,
        chunks=math.ceil(span.seconds / chunk_seconds),
    )
    return mel, span.seconds
