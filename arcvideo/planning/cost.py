"""How long a pack takes, in tokens' worth of work, so that the ranks of a step finish together."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from arcvideo.flops import ForwardFlops, Segment, decoder_flops, media_flops
from arcvideo.model.settings import ModelSettings


@dataclass(frozen=True, kw_only=True)
class PackCost:
    """Work of the parts of a pack; the unit is the work of the linear layers on one token."""

    pair: float = 0.0
    """Of one query-key pair of attention."""
    frame: float = 0.0
    """Of one frame in the vision tower and its projector."""
    chunk: float = 0.0
    """Of one chunk in the audio tower and its projector."""
    chunk_seconds: int = 30
    """Seconds of a chunk."""


def pack_cost(model: ModelSettings, *, trained: Collection[str], towers: bool = True) -> PackCost:
    """Return the costs of a training step of a model, forward and backward, from `arcvideo.flops`.

    Args:
        model: sizes.
        trained: module names of the settings that are trained.
        towers: False when the towers' outputs come from the feature cache, so that only the projectors work.
    """
    token = decoder_flops(model.text, [Segment(length=1)], targets=0).decoder
    unit = ForwardFlops(decoder=token).training(trained)
    # One segment of one token has exactly one pair.
    pair = ForwardFlops(attention=decoder_flops(model.text, [Segment(length=1)], targets=0).attention)
    seconds = model.audio.max_source_positions // 50
    none = None if towers else 0
    frame = media_flops(model, frames=1, seconds=0, chunks=0, seen=none)
    chunk = media_flops(model, frames=0, seconds=seconds, chunks=1, heard=none)
    return PackCost(
        pair=pair.training(trained) / unit,
        frame=frame.training(trained) / unit,
        chunk=chunk.training(trained) / unit,
        chunk_seconds=seconds,
    )
