"""Trace a rollout at full shapes, without memory: clips are encoded, prompts prefilled, completions decoded.

It is the sampler's own code on torch's meta device, with what it would take on CUDA: a static cache, flash kernels. Of
decoding two tokens are drawn, the first from the prompts' logits and one from a turn: a static cache has room for all
from its start, and every turn makes what the one before let go.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor

from arcvideo.composing.config import RunConfig
from arcvideo.feed.prompts import Prompt
from arcvideo.model.special import default_ids
from arcvideo.preflight.made import media_of, model_of
from arcvideo.preflight.row import Row
from arcvideo.preflight.trace import META, Held, fused_attention, traced_attention
from arcvideo.sampling import forked
from arcvideo.sampling.decode import Decoding
from arcvideo.sampling.encode import with_features
from arcvideo.sampling.forked import HALF, ForkedCache
from arcvideo.sampling.prefill import prefill_all
from arcvideo.sampling.settings import grpo_sampling
from arcvideo.sampling.step import step_of
from arcvideo.tasks import DEFAULT_TASK
from arcvideo.types import Sample


@dataclass(frozen=True, kw_only=True)
class TracedRollout:
    """Most bytes above the weights at one time."""

    encoding: int
    """Of the clips, pictures on the device included."""
    prefill: int
    """Of the prompts, with the towers' outputs, which stay for the updates."""
    decoding: int
    """Of the completions, with what stays of both."""
    features: int
    """Bytes of the towers' outputs among all of these."""

    @property
    def peak(self) -> int:
        """At the worst moment."""
        return max(self.encoding, self.prefill, self.decoding)


def trace_rollout(config: RunConfig, *, row: Row, prompts: int) -> TracedRollout:
    """Trace the rollout of a rank.

    Args:
        config: of a stage that samples.
        row: the group that holds most: its prompt and the length of its completions.
        prompts: how many of them the rank has.
    """
    model, grpo, held = model_of(config, device=META).eval(), config.grpo, Held()
    asked = [_prompt(config, row=row, number=number) for number in range(prompts)]
    rows, room = prompts * grpo.num_generations, grpo.max_completion_length
    with torch.no_grad(), held, _as_on_cuda(rows):
        asked = with_features([_loaded(prompt) for prompt in asked], model=model)
        features, encoding = held.now, held.restart()
        ready = prefill_all(model, asked)
        firsts, positions = (x.repeat_interleave(grpo.num_generations, 0) for x in (ready.logits, ready.positions))
        filling = held.restart()
        cache = ForkedCache(ready.runs, width=grpo.num_generations, room=room, static=True)
        step = step_of(model, cache=cache, end=asked[0].length + room)
        del ready
        decoding = Decoding(
            cache=cache, step=step, positions=positions, noise=torch.zeros(rows, room, dtype=torch.float64),
            banned=torch.zeros(0, dtype=torch.int64, device=META), decode="static",
            settings=replace(grpo_sampling(grpo), check_every=2),
        )  # fmt: skip
        decoding.run(firsts, stop=torch.zeros(0, dtype=torch.int64), says=None)
    return TracedRollout(encoding=encoding, prefill=filling, decoding=held.peak, features=features)


def _prompt(config: RunConfig, *, row: Row, number: int) -> Prompt:
    """Return a prompt with a clip of its own, as long as the row's."""
    special, pictures = default_ids(config.model.family), config.layout.placeholders(row.frames)
    prefix = np.full(1 + pictures if pictures else 0, special.image, dtype=np.int64)
    if pictures:
        prefix[0] = 0
    ahead = config.feature_cache
    clips = [media_of(config, frames=row.frames, device=META, ahead=ahead)] if row.frames else []
    return Prompt(
        prefix_ids=prefix,
        question_ids=np.zeros(max(row.text, 1) + (0 if pictures else 1), dtype=np.int64),
        media=tuple(replace(clip, key=f"{number}") for clip in clips),
        sample=Sample(key=f"{number}", task=DEFAULT_TASK, turns=(), media_key=f"{number}"),
        source="traced",
        specials=special,
    )


def _loaded(prompt: Prompt) -> Prompt:
    """Return the prompt with stored outputs of towers, if it has any, brought to the device."""

    def copy(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.clone()

    media = (replace(clip, patches=copy(clip.patches), speech=copy(clip.speech)) for clip in prompt.media)
    return replace(prompt, media=tuple(media))


@contextmanager
def _as_on_cuda(rows: int) -> Iterator[None]:
    """Let the sampler take CUDA's kernels on meta; the host, which can read nothing there, sees that all rows are
    done at its first look.
    """

    def takes(q: Tensor) -> bool:
        return q.dtype in HALF

    def everything(q: Tensor, k: Tensor, v: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
        return traced_attention(q, k, v)

    def done(decoding: Decoding, *arguments: Any, **more: Any) -> Tensor:
        return torch.zeros(rows, dtype=torch.bool)

    def last(decoding: Decoding, logits: Tensor) -> Tensor:
        return torch.zeros((), dtype=torch.int64, device=META)

    with (
        fused_attention(),
        patch.object(forked, "flash_takes", takes),
        patch.object(forked, "attend_all", everything),
        patch.object(forked, "attend_filled", everything),
        patch.object(Decoding, "_look", done),
        patch.object(Decoding, "_last_allowed", last),
    ):
        yield
