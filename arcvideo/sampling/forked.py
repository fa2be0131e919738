"""A key-value cache in which all completions of a prompt read the prompt's keys and values where they lie.

Attention over the prompt and over a completion's own tokens are two calls, merged by their log-sum-exp (Hydragen,
https://arxiv.org/abs/2402.05099): the prompt is stored once and read once for all its completions, in its own dtype.
Every prompt has equally many rows, finished ones among them, so that the rows of a prompt are a reshape away. The query
heads of a group lie beside each other on the axis of queries: keys and values are read as they are, once for all.
Shapes: B prompts, W rows of each, R = B * W, H query heads, G key heads, r = H / G, h head width, P tokens of a prompt,
N tokens a completion may have; in the kernels N items, Q queries (heads of a group times tokens), K keys, S slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn

HALF = (torch.bfloat16, torch.float16)


def flash_takes(q: Tensor) -> bool:
    """Return whether CUDA's flash kernel computes this dtype and width."""
    return q.is_cuda and q.dtype in HALF and q.shape[-1] % 8 == 0 and q.shape[-1] <= 256


def attend_all(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return outputs (N, G, Q, h) like q and log-sum-exp (N, G, Q), at least fp32: every query sees every key.

    On CUDA half precision without a mask is one flash call that splits long keys over the device; on the CPU one fused
    call. What is left (fp32 on CUDA, a mask there) is written out.

    Args:
        q: (N, G, Q, h).
        k: (N, G, K, h), read where it lies.
        v: like k.
        mask: (N or 1, 1, 1, K) additive, in the dtype of q.
    """
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, False, attn_mask=mask)
    if mask is None and flash_takes(q):
        return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, False, False)[:2]
    scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores + mask
    lse = scores.logsumexp(-1)
    return (scores - lse.unsqueeze(-1)).exp().to(v.dtype) @ v, lse


def attend_filled(
    q: Tensor, k: Tensor, v: Tensor, *, filled: Tensor, bounds: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the same for rows whose first `filled` slots hold keys: nothing behind them is read. CUDA, half precision.

    The numbers stay on the device, so that a CUDA graph can be replayed while they grow. TODO: unmeasured.

    Args:
        q: (R, G, r, h).
        k: (R, S, G, h).
        v: like k.
        filled: (R,) int32.
        bounds: (R + 1,) int32 of the queries, r a row, and of the slots, S a row.
    """
    rows, groups, heads, width = q.shape
    out, lse = varlen_attn(
        q.transpose(1, 2).reshape(rows * heads, groups, width), k.flatten(0, 1), v.flatten(0, 1),
        *bounds, heads, k.shape[1], return_aux=AuxRequest(lse=True), seqused_k=filled,
    )  # fmt: skip
    return out.view(rows, heads, groups, width).transpose(1, 2), lse.view(groups, rows, heads).transpose(0, 1)


@dataclass(frozen=True, kw_only=True)
class PromptRun:
    """Prompts that one call of the kernel reads."""

    keys: list[Tensor]
    """Of each layer (b, G, P, h)."""
    values: list[Tensor]
    """Like keys."""
    mask: Tensor | None
    """(b, 1, 1, P) additive, in the dtype of the keys: hides padding; None when there is none."""

    @property
    def count(self) -> int:
        """b."""
        return int(self.keys[0].shape[0])

    def only(self, prompts: Tensor) -> PromptRun:
        """Return the run of some of its prompts, by number; all of them are the run itself."""
        if len(prompts) == self.count:
            return self
        keys, values = list(self.keys), list(self.values)
        for layer in range(len(keys)):  # one after the other: the old tensors of a layer go before the next is copied
            keys[layer], values[layer] = keys[layer][prompts], values[layer][prompts]
        return replace(self, keys=keys, values=values, mask=None if self.mask is None else self.mask[prompts])


class ForkedCache:
    """What the decoder's attention layers call while completions are decoded, one new token a row."""

    def __init__(self, runs: Sequence[PromptRun], *, width: int, room: int, static: bool = False) -> None:
        """Fork every prompt.

        Args:
            runs: prefilled prompts; their tensors are kept, not copied.
            width: W; row i belongs to prompt i // W.
            room: N.
            static: shapes never change, so that a CUDA graph can be replayed.
        """
        self._runs = list(runs)
        self._width, self._room, self._static = width, room, static
        first = self._runs[0].keys[0]
        self._device = first.device
        self._longest = max(run.keys[0].shape[2] for run in self._runs)
        self.length = 0
        """Own tokens of each row so far, counted on the host."""
        self.end = torch.zeros(1, dtype=torch.int64, device=self._device)
        """The same on the device: slot of the token that comes next."""
        groups, head = first.shape[1], first.shape[3]
        shape = (self.prompts * width, room, groups, 2, head)
        # Zeros: what is not yet written must not hold NaN.
        self._own = [first.new_zeros(shape) for _ in self._runs[0].keys]
        written_out = static and not flash_takes(first)
        self._seen = first.new_full((1, 1, 1, room), float("-inf")) if written_out else None
        self._lay_out()

    @property
    def prompts(self) -> int:
        """B."""
        return sum(run.count for run in self._runs)

    @property
    def rows(self) -> int:
        """R."""
        return self.prompts * self._width

    def get_seq_length(self) -> int:
        """Return the tokens before the next one, padding included."""
        return self._longest + self.length

    def advance(self) -> None:
        """Move to the next slot, on the device only; `length` is the caller's to count."""
        self.end += 1
        if self._filled is not None:
            self._filled += 1

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, layer: int) -> Tensor:
        """Return (R, 1, H, h): what a decoder of transformers' kind calls for one new token a row.

        Args:
            q: (R, 1, H, h).
            k: (R, 1, G, h), kept for the tokens to come.
            v: like k.
            layer: number of the calling layer.
        """
        grouped = q[:, 0].unflatten(1, (k.shape[2], -1))
        return self.read(grouped, torch.stack([k[:, 0], v[:, 0]], dim=2), layer=layer).view(q.shape)

    def read(self, q: Tensor, kv: Tensor, *, layer: int) -> Tensor:
        """Return (R, H * h): attention of one new token a row over its prompt, its own tokens and itself.

        Args:
            q: (R, G, r, h).
            kv: (R, G, 2, h) keys and values of the new tokens, written into their slot.
            layer: number of the calling layer.
        """
        self._own[layer].index_copy_(1, self.end, kv.unsqueeze(1))
        if self._seen is not None and layer == 0:
            self._seen.index_fill_(3, self.end, 0.0)
        table = (self.prompts, self._width, *q.shape[1:])  # (B, W, G, r, h)
        before, before_lse = self._attend_prompts(q.view(table), layer=layer)
        after, after_lse = self._attend_own(q, layer=layer)
        after, after_lse = after.reshape(table), after_lse.reshape(table[:-1])
        gap = before_lse - after_lse
        share = torch.sigmoid(gap, out=torch.empty_like(gap, dtype=q.dtype))
        return torch.lerp(after, before, share.unsqueeze(-1)).reshape(len(q), -1)

    def _attend_prompts(self, q: Tensor, *, layer: int) -> tuple[Tensor, Tensor]:
        """Return outputs (B, W, G, r, h) and log-sum-exp (B, W, G, r) over each row's prompt; q is (B, W, G, r, h)."""
        prompts, width, groups, heads, _ = q.shape
        together = q.transpose(1, 2).flatten(2, 3)  # (B, G, W * r, h)
        parts, first = [], 0
        for run in self._runs:
            mine = together[first : first + run.count] if len(self._runs) > 1 else together
            parts.append(attend_all(mine, run.keys[layer], run.values[layer], mask=run.mask))
            first += run.count
        out, lse = parts[0] if len(parts) == 1 else (torch.cat(part) for part in zip(*parts, strict=True))
        out, lse = (x.view(prompts, groups, width, heads, *x.shape[3:]).transpose(1, 2) for x in (out, lse))
        return out, lse

    def _attend_own(self, q: Tensor, *, layer: int) -> tuple[Tensor, Tensor]:
        """Return outputs (R, G, r, h) and log-sum-exp (R, G, r) over each row's own tokens, the new one included."""
        own = self._own[layer]
        if self._filled is not None:
            return attend_filled(
                q, own[..., 0, :], own[..., 1, :], filled=self._filled, bounds=self._bounds_of(q.shape[2])
            )
        if not self._static:
            own = own[:, : self.length + 1]
        keys, values = (own.select(3, part).transpose(1, 2) for part in (0, 1))
        return attend_all(q, keys, values, mask=self._seen)

    def keep(self, rows: Tensor, *, width: int) -> None:
        """Drop all rows but these, and the prompts that no row is left of.

        Args:
            rows: numbers in order, `width` of each prompt that stays.
            width: W from now on.
        """
        prompts = (rows.view(-1, width)[:, 0] // self._width).cpu()
        runs, first = [], 0
        for run in self._runs:
            mine = prompts[(prompts >= first) & (prompts < first + run.count)] - first
            first += run.count
            if len(mine):
                runs.append(run.only(mine.to(self._device)))
        self._runs, self._width = runs, width
        for layer, own in enumerate(self._own):
            self._own[layer] = own.index_select(0, rows)
        self._lay_out()

    def _lay_out(self) -> None:
        """Count the filled slots of each row on the device, where the kernel reads their number there."""
        self._filled: Tensor | None = None
        self._bounds: tuple[Tensor, Tensor] | None = None
        if self._static and flash_takes(self._own[0]):
            self._filled = torch.full((self.rows,), self.length + 1, dtype=torch.int32, device=self._device)

    def _bounds_of(self, heads: int) -> tuple[Tensor, Tensor]:
        """Return where the queries of each row start, `heads` a row, and its slots; (R + 1,) int32 both."""
        if self._bounds is None:
            rows = torch.arange(self.rows + 1, dtype=torch.int32, device=self._device)
            self._bounds = (rows * heads, rows * self._room)
        return self._bounds
