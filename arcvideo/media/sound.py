"""The sound stream: packets -> one 16 kHz waveform in which every sample lies at its time."""

from __future__ import annotations

from dataclasses import dataclass, field

import av
import numpy as np
from av.audio.stream import AudioStream

from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits
from arcvideo.media.streams import check_tail, in_seconds

SAMPLE_RATE = 16_000
_PACKED = "flt"
"""Format of resampled frames: all channels in one plane. Of more than eight planes PyAV does not see the end."""
_TOLERATED_OFFSET = 0.02
"""Seconds between the starts of sound and picture that are left as they are: less than a video frame's time."""
_TOLERATED_GAP = 0.1
"""Seconds that time stamps may jump inside the sound: muxers round them, and drift slowly, without any being lost."""


@dataclass
class _Run:
    """Samples without a gap."""

    start: float | None
    """Seconds; None when the file does not say."""
    pieces: list[np.ndarray] = field(default_factory=list)
    """(channels, n) float32 at 16 kHz."""

    def waveform(self) -> np.ndarray:
        """Return (n,) float32. Channels are averaged here: the resampler's own downmix does not divide by their
        number.
        """
        if not self.pieces:
            return np.zeros(0, dtype=np.float32)
        return np.concatenate(self.pieces, axis=1).mean(axis=0, dtype=np.float32)


def decode_sound(
    packets: list[av.Packet], stream: AudioStream, *, origin: float | None, name: str, limits: MediaLimits
) -> np.ndarray | None:
    """Return (N,) float32 in [-1, 1]: every channel resampled, then averaged; None when the stream holds no sample.

    Gaps in the time stamps become silence, and so does a late start; what sounds before the picture starts is cut.

    Args:
        origin: seconds at which the picture starts, None without one.
    """
    stream.codec_context.thread_count = limits.decode_threads
    waveforms = []
    for run in _runs(packets, stream, name=name, limits=limits):
        waveforms.append((run.start, run.waveform()))
    if not any(waveform.size for _, waveform in waveforms):
        return None
    waveform = _placed(waveforms, origin=origin, name=name, limits=limits)
    if not np.isfinite(waveform).all():
        raise MediaError("corrupt", f"{name}: the sound has samples that are not numbers")
    return np.clip(waveform, -1.0, 1.0) if waveform.size else None


def _runs(packets: list[av.Packet], stream: AudioStream, *, name: str, limits: MediaLimits) -> list[_Run]:
    """Return the sound, cut where its time stamps jump ahead."""
    resampler = av.AudioResampler(format=_PACKED, rate=SAMPLE_RATE)
    runs: list[_Run] = []
    end, clock, room = 0.0, 0.0, int(limits.max_seconds * SAMPLE_RATE)
    for packet in packets:
        if packet.pts is not None:
            end = max(end, in_seconds(stream, packet.pts + (packet.duration or 0)))
        for frame in packet.decode():
            assert isinstance(frame, av.AudioFrame)
            if not runs or (frame.time is not None and frame.time > clock + _TOLERATED_GAP):
                if runs:
                    runs[-1].pieces += [_channels(resampled) for resampled in resampler.resample(None)]
                    resampler = av.AudioResampler(format=_PACKED, rate=SAMPLE_RATE)
                runs.append(_Run(start=frame.time))
                clock = frame.time or 0.0
            clock += frame.samples / frame.sample_rate
            for resampled in resampler.resample(frame):
                runs[-1].pieces.append(_channels(resampled))
                room -= resampled.samples
        if room < 0:
            raise MediaError("too_long", f"{name}: more than {limits.max_seconds} s of sound")
    if runs:
        runs[-1].pieces += [_channels(resampled) for resampled in resampler.resample(None)]
    check_tail(stream, name=name, end=end)
    return runs


def _channels(frame: av.AudioFrame) -> np.ndarray:
    """Return (C, n) float32, contiguous, of a packed frame."""
    return np.ascontiguousarray(frame.to_ndarray().reshape(frame.samples, -1).T)


def _placed(
    waveforms: list[tuple[float | None, np.ndarray]], *, origin: float | None, name: str, limits: MediaLimits
) -> np.ndarray:
    """Return the runs one after the other, each at its time, from `origin` (or the start of the first run)."""
    first = waveforms[0][0]
    start = origin if origin is not None and first is not None else first
    placed: list[np.ndarray] = []
    at = 0
    for number, (time, waveform) in enumerate(waveforms):
        offset = 0.0 if time is None or start is None else time - start
        if offset > limits.max_seconds:
            raise MediaError("too_long", f"{name}: sound at {offset:.1f} s, the limit is {limits.max_seconds} s")
        if number == 0 and offset < -_TOLERATED_OFFSET:
            waveform = waveform[round(-offset * SAMPLE_RATE) :]
        elif offset > _TOLERATED_OFFSET and (missing := round(offset * SAMPLE_RATE) - at) > 0:
            placed.append(np.zeros(missing, dtype=np.float32))
        placed.append(waveform)
        at = sum(piece.size for piece in placed)
    return np.concatenate(placed)
