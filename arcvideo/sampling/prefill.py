"""Prefilling prompts: every clip once, then every question behind its clip, in a cache that is written in place.

Rows of different length are padded on the right and masked; positions are given explicitly, so padding changes nothing.
Shapes: B prompts, U distinct prefixes, P and Q padded tokens of prefixes and questions, V vocabulary; in the cache R
rows, H key-value heads, N cached tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from arcvideo.feed.prompts import Prompt
from arcvideo.model.arc_hunyuan.head import exact_logits
from arcvideo.model.positions import next_position, replace_newlines, xd_positions
from arcvideo.model.special import SpecialIds
from arcvideo.render import Ids
from arcvideo.sampling.forked import PromptRun

PREFILL_TOKENS = 32_768
"""Padded tokens that one forward takes: enough to fill a GPU, and memory that does not grow with the prompts."""


class RowsLayer(DynamicLayer):
    """Keys and values of one layer inside a buffer with room for the tokens to come."""

    def __init__(self, *, keys: Tensor, values: Tensor, room: int) -> None:
        """Copy (R, H, N, D) keys and values into buffers of N + room tokens."""
        super().__init__()
        self.dtype, self.device = keys.dtype, keys.device
        self.is_initialized = True
        self._keys, self._values = _with_room(keys, room=room), _with_room(values, room=room)
        self._length = keys.shape[-2]
        self._expose()

    def _expose(self) -> None:
        self.keys = self._keys[:, :, : self._length]
        self.values = self._values[:, :, : self._length]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Append (R, H, n, D) and return views of everything cached."""
        end = self._length + key_states.shape[-2]
        assert end <= self._keys.shape[-2], "the cache was made with too little room"
        self._keys[:, :, self._length : end] = key_states
        self._values[:, :, self._length : end] = value_states
        self._length = end
        self._expose()
        return self._keys[:, :, :end], self._values[:, :, :end]


def _with_room(states: Tensor, *, room: int) -> Tensor:
    rows, heads, length, width = states.shape
    buffer = states.new_zeros(rows, heads, length + room, width)  # zeros: masked slots must not hold NaN
    buffer[:, :, :length] = states
    return buffer


def fork(cache: Cache, *, rows: Tensor, room: int) -> Cache:
    """Return a cache whose row i is a copy of row `rows[i]`, with room for `room` more tokens; the given one is used
    up.

    For several questions about one clip; the completions of a question share its row by reference (`ForkedCache`).
    """
    layers: list[Any] = list(cache.layers)
    cache.layers.clear()
    for number, layer in enumerate(layers):  # in place of the old one: no more than a layer lies there twice
        layers[number] = RowsLayer(keys=layer.keys[rows], values=layer.values[rows], room=room)
    return Cache(layers=layers)


@dataclass(frozen=True, kw_only=True)
class Prefilled:
    """Prompts ready to be continued."""

    cache: Cache
    """B rows of P + Q tokens, padding included."""
    logits: Tensor
    """(B, V) float32 of the first new token."""
    mask: Tensor
    """(B, P + Q) bool, False on padding."""
    next_positions: Tensor
    """(B,) int64: the position of the first new token, on all axes."""


def prefill(model: Any, prompts: Sequence[Prompt], *, features: Any = None) -> Prefilled:
    """Run the prompts through the model; prompts with the same clip and prefix share the first of two passes.

    Args:
        model: an `ArcVideoForConditionalGeneration`.
        prompts: with or without media.
        features: a `FeatureStore` of tower outputs, or None.
    """
    device = next(model.parameters()).device
    special = prompts[0].specials
    prefixes, owner = _distinct(prompts)
    cache: Cache = DynamicCache()
    questions = _rows(
        [prompt.question_ids for prompt in prompts],
        offsets=[next_position(torch.from_numpy(prompt.prefix_ids), special) for prompt in prompts],
        special=special,
        device=device,
    )
    mask = questions.mask
    if any(len(prompt.prefix_ids) for prompt in prefixes):
        first = _rows(
            [prompt.prefix_ids for prompt in prefixes], offsets=[0] * len(prefixes), special=special, device=device
        )
        model(
            input_ids=first.ids,
            position_ids=first.positions,
            attention_mask=first.mask.long(),
            media=tuple(media for prompt in prefixes for media in prompt.media),
            past_key_values=cache,
            logits_to_keep=1,
            features=features,
        )
        rows = torch.tensor(owner).to(device)
        cache = fork(cache, rows=rows, room=mask.shape[1])
        mask = torch.cat([first.mask[rows], mask], dim=1)
    output = model(
        input_ids=questions.ids,
        position_ids=questions.positions,
        attention_mask=mask.long(),
        past_key_values=cache,
        logits_to_keep=1,
    )
    # The rows end at different places, and only there is a token drawn.
    last = output.last_hidden_state[torch.arange(len(prompts), device=device), questions.mask.sum(dim=1) - 1]
    logits = exact_logits(model.language_model.lm_head, last).float()
    return Prefilled(cache=cache, logits=logits, mask=mask, next_positions=questions.nexts)


def parts_of(prompts: Sequence[Prompt], *, tokens: int = PREFILL_TOKENS) -> list[list[int]]:
    """Return numbers of prompts to prefill together: those about a clip stay together, similar lengths come together.

    Args:
        prompts: in any order.
        tokens: most padded tokens of a part, unless one clip alone has more.
    """
    prefixes, owner = _distinct(prompts)
    by_prefix: list[list[int]] = [[] for _ in prefixes]
    for number, prefix in enumerate(owner):
        by_prefix[prefix].append(number)
    lengths = [max(prompts[number].length for number in numbers) for numbers in by_prefix]
    parts: list[list[int]] = []
    longest = rows = 0
    for clip in sorted(range(len(by_prefix)), key=lambda clip: -lengths[clip]):
        if not parts or (rows + 1) * longest > tokens:
            parts.append([])
            longest, rows = lengths[clip], 0
        parts[-1] += by_prefix[clip]
        rows += 1
    return parts


def runs_of(prefilled: Prefilled, *, padded: bool) -> list[PromptRun]:
    """Return the keys and values of prompts as what one call of the kernel reads; the cache is used up.

    Args:
        prefilled: B prompts.
        padded: prompts of different length stay side by side, padding hidden by a mask; else each stands alone, without
            padding, for kernels that take no mask.
    """
    layers: list[Any] = list(prefilled.cache.layers)
    mask = prefilled.mask
    prefilled.cache.layers.clear()
    if padded or bool(mask.all()):
        like = layers[0].keys
        hidden = (
            None if bool(mask.all()) else like.new_zeros(mask.shape).masked_fill(~mask, float("-inf"))[:, None, None]
        )
        keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
        return [PromptRun(keys=keys, values=values, mask=hidden)]
    places = [row.nonzero().squeeze(1) for row in mask]
    runs = [PromptRun(keys=[], values=[], mask=None) for _ in places]
    for number, layer in enumerate(layers):
        for row, (run, place) in enumerate(zip(runs, places, strict=True)):
            run.keys.append(layer.keys[row : row + 1].index_select(2, place))
            run.values.append(layer.values[row : row + 1].index_select(2, place))
        layers[number] = None  # before the next layer is copied
    return runs


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Prompts of any number, prefilled a part at a time."""

    runs: list[PromptRun]
    """Of all prompts, in the order of `order`."""
    logits: Tensor
    """(B, V) float32 of each prompt's first new token."""
    positions: Tensor
    """(B,) int64 of the same."""
    order: list[int]
    """Which prompt each of these is."""


def prefill_all(model: Any, prompts: Sequence[Prompt], *, features: Any = None) -> Ready:
    """Prefill prompts in the parts of `parts_of`; arguments as of `prefill`."""
    runs: list[PromptRun] = []
    logits, positions, order = [], [], []
    for part in parts_of(prompts):
        prefilled = prefill(model, [prompts[number] for number in part], features=features)
        logits.append(prefilled.logits)
        positions.append(prefilled.next_positions)
        order += part
        # CUDA's flash takes no mask; on the CPU one padded call is faster than one a prompt.
        runs += runs_of(prefilled, padded=prefilled.logits.device.type == "cpu")
    return Ready(runs=runs, logits=torch.cat(logits), positions=torch.cat(positions), order=order)


def _distinct(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[int]]:
    """Return one prompt for each distinct prefix, and for each prompt the number of its prefix."""
    numbers: dict[tuple[Any, ...], int] = {}
    chosen: list[Prompt] = []
    owner = []
    for prompt in prompts:
        clips = tuple((media.key, media.has_video, media.has_audio) for media in prompt.media)
        identity = (clips, prompt.prefix_ids.tobytes())
        if identity not in numbers:
            numbers[identity] = len(chosen)
            chosen.append(prompt)
        owner.append(numbers[identity])
    return chosen, owner


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Padded rows as the model reads them."""

    ids: Tensor
    """(B, L) int64."""
    positions: Tensor
    """(B, 4, L) int64."""
    mask: Tensor
    """(B, L) bool."""
    nexts: Tensor
    """(B,) int64: the position behind each row."""


def _rows(rows: Sequence[Ids], *, offsets: Sequence[int], special: SpecialIds, device: torch.device) -> _Rows:
    """Pad rows that start at the given positions."""
    longest = max(len(row) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int64)
    positions = torch.zeros(len(rows), 4, longest, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    nexts = torch.zeros(len(rows), dtype=torch.int64)
    for index, (row, offset) in enumerate(zip(rows, offsets, strict=True)):
        ids[index, : len(row)] = torch.from_numpy(row)
        positions[index, :, : len(row)] = xd_positions(torch.from_numpy(row), special, offset=offset)
        mask[index, : len(row)] = True
        nexts[index] = next_position(torch.from_numpy(row), special, offset=offset)
    return _Rows(
        ids=replace_newlines(ids, special=special).to(device),
        positions=positions.to(device),
        mask=mask.to(device),
        nexts=nexts.to(device),
    )
