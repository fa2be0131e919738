"""Decoding: rows that draw one token a turn, with the host asking only now and then who has finished.

The noise of a token depends on (seed, key of the prompt, generation, position) only, never on what else is in the batch
or on how many ranks there are, so a rollout can be reproduced alone.

A turn feeds the tokens drawn last and draws the next ones; all it reads and writes lies on the device at places that do
not move, so a turn can be a CUDA graph. Every few turns the host reads the new tokens, notes what has ended, and takes
the rows that are done out once that pays.
Shapes: B prompts, W rows of each, R = B * W, N tokens a completion may have, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from arcvideo.sampling.forked import ForkedCache
from arcvideo.sampling.graph import Graphs
from arcvideo.sampling.settings import Sampling
from arcvideo.sampling.step import Step

SHRINK_BELOW = {"dynamic": 0.75, "static": 0.5, "cuda_graph": 0.5}
"""Rows are taken out when at most this share stays: every new number of rows is another graph."""
CHECK_TURNS = 8
"""Turns between two looks at what was drawn on a device that the host would have to wait for."""


def uniforms(*, seed: int, key: str, generation: int, count: int) -> Tensor:
    """Return (count,) float64 in [0, 1): the noise of one completion, one number a position."""
    digest = hashlib.sha256(f"{seed}\x00{key}\x00{generation}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.rand(count, generator=generator, dtype=torch.float64)


def seed_at(place: int, *, seed: int) -> int:
    """Return the seed of the prompt at a place of the stream: a prompt that comes again draws other completions."""
    return (seed << 48) + place


def filtered(logits: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """Return logits with everything outside the top k and the nucleus at -inf; at least the most likely token stays."""
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, float("-inf"))
    if top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        outside = probabilities.cumsum(dim=-1) - probabilities >= top_p
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))
    return logits


def draw(logits: Tensor, *, noise: Tensor, last: Tensor | None = None) -> Tensor:
    """Return (R,) int64 tokens by inverting the distribution function, in float64 so that large vocabularies do not
    round.

    Args:
        logits: (R, V) float32, filtered.
        noise: (R,) float64 in [0, 1).
        last: the largest id that has any probability, where the caller knows it for all rows.
    """
    distribution = logits.softmax(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    points = noise.to(logits.device) * distribution[:, -1]
    tokens = torch.searchsorted(distribution, points[:, None], right=True).squeeze(-1)
    # noise can round up to the total; fall back to the last token that has any probability
    if last is None:
        last = logits.shape[-1] - 1 - torch.isfinite(logits).flip(-1).int().argmax(dim=-1)
    return torch.minimum(tokens, last)


@dataclass(kw_only=True)
class Answers:
    """What all rows have drawn, on the host."""

    ids: Tensor
    """(R, N) int64."""
    logprobs: Tensor
    """(R, N) float32."""
    lengths: Tensor
    """(R,) int64."""
    finished: Tensor
    """(R,) bool."""

    @classmethod
    def none(cls, rows: int, *, room: int) -> Answers:
        """Return the answers of rows that have drawn nothing."""
        return cls(
            ids=torch.zeros(rows, room, dtype=torch.int64),
            logprobs=torch.zeros(rows, room),
            lengths=torch.zeros(rows, dtype=torch.int64),
            finished=torch.zeros(rows, dtype=torch.bool),
        )


class Decoding:
    """Rows of several prompts, from their first token to their last."""

    def __init__(
        self,
        *,
        cache: ForkedCache,
        step: Step,
        positions: Tensor,
        noise: Tensor,
        banned: Tensor,
        settings: Sampling,
        decode: str,
        graphs: Graphs | None = None,
    ) -> None:
        """Lay out the state of a turn.

        Args:
            cache: forked prompts.
            step: of the model, over this cache.
            positions: (R,) int64 of the first new tokens.
            noise: (R, N) float64 in [0, 1), one number a token.
            banned: ids that are never drawn.
            settings: temperature and filters.
            decode: dynamic, static or cuda_graph.
            graphs: captures turns; None runs them kernel by kernel.
        """
        self.cache, self.settings, self.decode = cache, settings, decode
        self._step, self._graphs, self._banned = step, graphs, banned
        rows, device = len(positions), positions.device
        self._positions, self._noise = positions, noise.to(device)
        self._tokens = torch.zeros(rows, dtype=torch.int64, device=device)
        self._ids = torch.zeros(noise.shape, dtype=torch.int64, device=device)
        self._logprobs = torch.zeros(noise.shape, dtype=torch.float32, device=device)
        self._numbers = torch.arange(rows)
        """(R,): which row of the answers each row here is."""
        self._last: Tensor | None = None

    def run(self, logits: Tensor, *, stop: Tensor, says: Callable[[Tensor], bool] | None) -> Answers:
        """Return the answers of all rows.

        Args:
            logits: (R, V) float32 of the first tokens.
            stop: ids that end an answer, on the CPU.
            says: whether the end of an answer (n,) holds a text that ends it; None asks for none.
        """
        settings, room = self.settings, self.settings.max_new_tokens
        answers = Answers.none(len(logits), room=room)
        self._draw(logits)
        drawn, looked = 1, 0
        every = settings.check_every or (1 if logits.device.type == "cpu" else CHECK_TURNS)
        while True:
            if drawn - looked >= every or drawn == room:
                live = self._look(answers, looked, drawn, stop=stop, says=says)
                looked = drawn
                if drawn == room or not bool(live.any()):
                    return answers
                self._shrink(live)
            if self._graphs is not None:
                self._graphs.turn(self._turn)
            else:
                self._turn()
            self.cache.length += 1
            drawn += 1

    def _turn(self) -> None:
        """Feed one token of each row and draw the next. No host state changes here: it may be replayed as a graph."""
        logits = self._step(self._tokens, self._positions)
        self.cache.advance()
        self._positions += 1
        self._draw(logits)

    def _draw(self, logits: Tensor) -> None:
        """Draw the token of the cache's slot: the token that is fed from there."""
        settings, at = self.settings, self.cache.end
        scaled = logits / settings.temperature if settings.temperature not in (0.0, 1.0) else logits
        allowed = scaled.index_fill(1, self._banned, float("-inf"))
        if settings.temperature > 0:
            noise = self._noise.index_select(1, at).squeeze(1)
            kept = filtered(allowed, top_k=settings.top_k, top_p=settings.top_p)
            tokens = draw(kept, noise=noise, last=self._last_allowed(logits) if kept is allowed else None)
        else:
            tokens = allowed.argmax(dim=-1)
        tokens = tokens.unsqueeze(1)
        # Of the unfiltered model, as the trainer will compute them.
        logprobs = scaled.gather(1, tokens) - scaled.logsumexp(-1, keepdim=True)
        self._ids.index_copy_(1, at, tokens)
        self._logprobs.index_copy_(1, at, logprobs)
        self._tokens.copy_(tokens.squeeze(1))

    def _last_allowed(self, logits: Tensor) -> Tensor:
        """Return the largest id that may be drawn, kept for all turns: the noise may round up to the end."""
        if self._last is None:
            ids = torch.ones(logits.shape[1], dtype=torch.bool, device=logits.device).index_fill(0, self._banned, False)
            self._last = ids.nonzero().max()
        return self._last

    def _look(
        self, answers: Answers, first: int, last: int, *, stop: Tensor, says: Callable[[Tensor], bool] | None
    ) -> Tensor:
        """Note the tokens first..last of rows that go on; return (R,) bool, which rows still do."""
        ids, logprobs = (x[:, first:last].cpu() for x in (self._ids, self._logprobs))
        going = ~answers.finished[self._numbers]
        numbers = self._numbers[going]
        answers.ids[numbers, first:last] = ids[going]
        answers.logprobs[numbers, first:last] = logprobs[going]
        stops = torch.isin(ids[going], stop)
        ended = stops.any(1)
        lengths = torch.where(ended, first + 1 + stops.int().argmax(1), last)
        for index, number in enumerate(numbers.tolist() if says is not None else ()):
            assert says is not None
            for length in range(first + 1, int(lengths[index]) + 1):
                if says(answers.ids[number, :length]):
                    ended[index], lengths[index] = True, length
                    break
        answers.finished[numbers], answers.lengths[numbers] = ended, lengths
        return ~answers.finished[self._numbers]

    def _shrink(self, live: Tensor) -> None:
        """Take out prompts that are done, and as many rows of each as the prompt with most live rows can spare."""
        table = live.view(self.cache.prompts, -1)
        counts = table.sum(1)
        width = int(counts.max())
        kept = counts > 0
        if int(kept.sum()) * width > SHRINK_BELOW[self.decode] * len(live):
            return
        # Live rows first, in their order; finished ones fill up.
        order = (~table[kept]).long().argsort(dim=1, stable=True)[:, :width].sort(dim=1).values
        rows = (kept.nonzero() * table.shape[1] + order).flatten()
        here = rows.to(self._positions.device)
        self.cache.keep(here, width=width)
        self._numbers = self._numbers[rows]
        for name in ("_positions", "_noise", "_tokens", "_ids", "_logprobs"):
            setattr(self, name, getattr(self, name)[here])
        if self._graphs is not None:
            self._graphs.forget()
