"""The real model at a few thousand parameters, and rows of text, pictures, sound and video for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.runner.trainable import train_only
from arcvideo.types import Batch, Media, StepData
from tests.model.small import SPECIAL, Row, clip, prefix, small_model, text

KINDS = ("text", "image", "audio", "video", "both")
TRAIN = ("llm", "vision_projector", "audio_projector")
UNITS = 8
"""Samples of a step."""


def real_model() -> ArcVideoForConditionalGeneration:
    """The model with its towers frozen; its weights are a function of nothing."""
    model = small_model()
    with torch.no_grad():
        # The loud embeddings of `small_model` saturate the softmax.
        model.get_input_embeddings().weight.div_(20)
    train_only(model, TRAIN)
    return model


def media_of(number: int, *, kind: str) -> Media | None:
    """A clip of this kind; its content is a function of `number`."""
    if kind == "text":
        return None
    frames = 1 if kind == "image" else 1 + number % 2
    whole = clip(frames=frames, seed=number)
    heard, seen = kind in ("audio", "both"), kind != "audio"
    return Media(
        key=whole.key,
        frame_count=frames,
        seconds=frames,
        has_video=seen,
        has_audio=heard,
        pixels=whole.pixels if seen else None,
        mel=whole.mel if heard else None,
    )


def packed(units: Sequence[tuple[int, str]], *, tokens: int = 5) -> Batch:
    """One packed row of samples.

    Args:
        units: number and kind of each; equal pairs mean equal samples.
        tokens: length of an answer, one to four more of them by number.
    """
    row, media, targets, weights, keys = Row(), [], [], [], []
    for number, kind in units:
        item = media_of(number, kind=kind)
        answer = text(tokens + number % 4, seed=number)
        before = torch.tensor([SPECIAL.start]) if item is None else prefix(frames=item.frame_count)
        media += [] if item is None else [item]
        start = row.starts[-1] + len(before)
        row.add(torch.cat([before, answer]))
        targets += [(start + place - 1, int(token)) for place, token in enumerate(answer)]
        weights.append(torch.rand(len(answer), generator=torch.Generator().manual_seed(number)) + 0.5)
        keys += [f"{kind}-{number}"] * len(answer)
    names = tuple(dict.fromkeys(keys))
    return Batch(
        **row.inputs(),
        media=tuple(media),
        target_positions=torch.tensor([place for place, _ in targets]),
        target_ids=torch.tensor([token for _, token in targets]),
        target_weights=torch.cat(weights),
        target_samples=torch.tensor([names.index(key) for key in keys]),
        keys=names,
        tasks=("qa",) * len(names),
    )


class Cut:
    """A source: the same samples every step, cut into micro-batches in one way or another and dealt to the ranks."""

    def __init__(self, *, rows: int, rank: int = 0, ranks: int = 1) -> None:
        """Prepare.

        Args:
            rows: packed rows of a step, over all ranks; UNITS of samples are dealt to them.
            rank: this one.
            ranks: how many there are.
        """
        self.rows, self.rank, self.ranks = rows, rank, ranks

    def batches(self, step: int) -> StepData:
        """This rank's rows of the step."""
        units = [(step * UNITS + place, KINDS[(step + place) % len(KINDS)]) for place in range(UNITS)]
        size = UNITS // self.rows
        rows = [units[start : start + size] for start in range(0, UNITS, size)]
        return StepData(batches=[packed(row) for row in rows[self.rank :: self.ranks]])
