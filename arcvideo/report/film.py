"""Clips for the page: a few frames as small JPEGs and the outline of the sound, decoded anew from the shards."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

FRAMES = 8
"""Frames of a clip on the page, evenly spread."""
SIDE = 128
"""Pixels of a frame's side; larger ones are made smaller."""
QUALITY = 70
SOUND_BINS = 160
"""Points of the outline of the sound."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """A clip as the page shows it."""

    duration: float
    """Seconds."""
    frames: tuple[str, ...] = ()
    """data: URIs of stamped frames as the vision tower gets them."""
    sound: tuple[float, ...] = ()
    """Peaks of equal parts of the sound, 0 to 1."""
    trouble: str = ""
    """Why there is nothing to see."""


def films(keys: Iterable[str], *, shards: Sequence[str], config: Mapping[str, Any]) -> dict[str, Film]:
    """Record key -> film, for those that are found.

    Args:
        keys: record keys.
        shards: patterns of the tars they may be in; only indexed tars that are still there are looked into.
        config: resolved settings of a stage that read them: sizes and limits.
    """
    from arcvideo.decoding.pool import MediaWorker
    from arcvideo.media.errors import MediaError
    from arcvideo.media.read import ReadRequest
    from arcvideo.media.settings import MediaLimits

    recorded: dict[str, Film] = {}
    wanted = set(keys)
    model = config.get("model", {})
    worker = MediaWorker(limits=MediaLimits(**config.get("data", {}).get("limits", {})))
    try:
        for shard_index in _indexes(shards, data=config.get("data", {})):
            for key, row in _rows(shard_index, keys=wanted - recorded.keys()).items():
                request = ReadRequest(
                    name=key,
                    image_size=model["vision"]["force_image_size"],
                    max_frames=model["max_num_frame"],
                )
                try:
                    data, sidecar = shard_index.media_bytes(row)
                    if data:
                        recorded[key] = _film(worker.read(data, request=request, sidecar_audio=sidecar))
                except (MediaError, OSError) as error:
                    recorded[key] = Film(duration=0.0, trouble=str(error))
            if wanted <= recorded.keys():
                break
    finally:
        worker.close()
    return recorded


def _indexes(shards: Sequence[str], *, data: Mapping[str, Any]) -> Iterable[Any]:
    from arcvideo.remote.settings import ShardCacheSettings
    from arcvideo.shards.expand import expand_shards
    from arcvideo.shards.index import open_index

    cache, place = data.get("shard_cache"), data.get("index_dir") or ""
    for pattern in dict.fromkeys(shards):
        try:
            paths = expand_shards(pattern, cache=ShardCacheSettings(**cache) if cache else None, fetch=False)
        except ValueError:
            continue  # moved since: the page does without
        for path in paths:
            opened = open_index(path, place=place) if path.exists() else None
            if opened is not None:
                yield opened


def _rows(index: Any, *, keys: Iterable[str]) -> dict[str, int]:
    """Key -> row, of those that a shard holds: found in its block of keys without making a string of each."""
    block, clips = index.keys.tobytes(), index.clips
    rows = {}
    for key in keys:
        name, start = key.encode(), -1
        while (start := block.find(name, start + 1)) >= 0:
            here = np.flatnonzero((clips["key_start"] == start) & (clips["key_size"] == len(name)))
            if here.size:
                rows[key] = int(here[0])
                break
    return rows


def _film(clip: Any) -> Film:
    frames: tuple[str, ...] = ()
    if clip.frames is not None:
        count = min(FRAMES, len(clip.frames))
        chosen = [int((place + 0.5) * len(clip.frames) / count) for place in range(count)]
        frames = tuple(_jpeg(clip.frames[number].transpose(1, 2, 0)) for number in chosen)
    return Film(duration=float(clip.duration), frames=frames, sound=_peaks(clip.waveform))


def _jpeg(frame: np.ndarray) -> str:
    """Return a data: URI of a (S, S, 3) uint8 frame."""
    image = Image.fromarray(frame)
    if image.width > SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _peaks(waveform: np.ndarray | None) -> tuple[float, ...]:
    if waveform is None or waveform.size < SOUND_BINS:
        return ()
    peaks = np.array([np.abs(part).max() for part in np.array_split(waveform, SOUND_BINS)])
    return tuple(float(peak) for peak in peaks / max(float(peaks.max()), 1e-3))
