"""The output head, which can score targets by itself: no logits of all targets and all words ever exist.

Words are taken a block at a time. A block's logits are in fp32, and what a softmax needs of them is carried from block
to block: the highest logit, the sum of exponentials and, if asked for, sums for the figures. The backward computes each
block's logits anew, gives its rows of the weight their whole gradient at once, and adds up that of the hidden states in
fp32. Blocks of targets instead would read and write the weight's gradient, which is larger than a block, once for
each of them.

Shapes: T targets, D text width, V vocabulary, W words of a block.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from arcvideo.objectives.scores import Ask, score_logits

AT_ONCE = 1 << 25
"""Logits that exist at one time, in fp32: 128 MiB."""
WIDE_PRODUCTS = ("cuda", "meta")
"""Devices that multiply half-precision matrices into fp32; elsewhere the factors are turned to fp32, block by block.
Meta stands for CUDA."""


class Head(nn.Linear):
    """Hidden states to logits or, with `ask`, to what is asked about targets."""

    def forward(self, input: Tensor, ask: Ask | None = None) -> Tensor:  # nn.Linear's own name
        """Return (..., V) logits, or the (1 + n, T) rows of `Scores.of` for hidden states (T, D).

        One call of the module does all of it, so that ZeRO-3 gathers the weight once. A forward hook that changes
        logits does not reach those behind scores; give the layer a bias, or another class.
        """
        if ask is None:
            return super().forward(input)
        rows: Tensor = _Scored.apply(input, self.weight, self.bias, ask, _dtype(input))
        return rows


def as_head(module: Any) -> Any:
    """Return a plain linear layer without bias as a `Head` over the same weight, anything else as it is."""
    if type(module) is not nn.Linear or module.bias is not None:
        return module
    with torch.device("meta"):
        head = Head(module.in_features, module.out_features, bias=False)
    head.weight = module.weight
    # What transformers notes on a layer: whether its weight has its values already.
    vars(head).update({name: value for name, value in vars(module).items() if name.startswith("_is_hf")})
    return head.train(module.training)


def score(head: nn.Module, hidden: Tensor, *, ask: Ask, words: int) -> Tensor:
    """Return the (1 + n, T) rows of `Scores.of` from any head: of one that is not `Head`, or no longer holds a plain
    weight (adapters, quantised ones), logits are asked some targets at a time, and again in the backward.

    Args:
        head: (T, D) -> (T, V).
        hidden: (T, D).
        ask: about these T targets.
        words: V.
    """
    if type(head) is Head and type(head.weight) is nn.Parameter:
        rows: Tensor = head(hidden, ask=ask)
        return rows

    def part(hidden: Tensor, ids: Tensor) -> Tensor:
        return score_logits(head(hidden), ask=replace(ask, ids=ids))

    size = max(AT_ONCE // words, 1)
    if len(hidden) <= size:
        return part(hidden, ask.ids)
    parts = zip(hidden.split(size), ask.ids.split(size), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([part(*inputs) for inputs in parts], dim=1)
    return torch.cat([checkpoint(part, *inputs, use_reentrant=False) for inputs in parts], dim=1)


def exact_logits(head: nn.Module, hidden: Tensor) -> Tensor:
    """Return (T, V) logits of (T, D) hidden states in at least fp32, from the products that `score` makes: what is
    sampled from them is compared with what it says.

    Only a head that `score` asks for logits rounds them to the type of its products, for both alike.
    """
    dtype = _dtype(hidden)
    if dtype.itemsize >= 4 or type(head) is not Head or type(head.weight) is not nn.Parameter:
        logits: Tensor = head(hidden)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))
    with _as_written(hidden):
        factors = _Factors(hidden, head.weight, head.bias, dtype=dtype, temperature=1.0)
        # Where the weight is turned to fp32 first, a block of words at a time: no such copy of all of it exists.
        blocks = [slice(0, len(head.weight))] if factors.wide else _blocks(len(hidden), head.weight)
        parts = [factors.logits(words) for words in blocks]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """What the words so far have told, each (T,)."""

    top: Tensor
    """The highest logit."""
    target: Tensor
    """The target's, -inf while it has not come."""
    exps: Tensor
    """Sum of exp(logit - top)."""
    leaning: Tensor | None
    """Sum of (logit - top) exp(logit - top), for the entropy."""
    plain: Tensor | None
    """Sum of logits."""

    def joined(self, other: _Seen) -> _Seen:
        """Return what both have told."""
        top = torch.maximum(self.top, other.top)
        parts = [(part, part.top - top) for part in (self, other)]
        leaning, plain = None, None
        if self.leaning is not None:
            leaning = sum((part.leaning + down * part.exps) * down.exp() for part, down in parts)  # type: ignore[operator]
        if self.plain is not None and other.plain is not None:
            plain = self.plain + other.plain
        return _Seen(
            top=top, target=torch.maximum(self.target, other.target), leaning=leaning, plain=plain,  # type: ignore[arg-type]
            exps=sum(part.exps * down.exp() for part, down in parts),  # type: ignore[arg-type]
        )  # fmt: skip

    def rows(self, ask: Ask, *, words: int) -> Tensor:
        """Return the rows of `Scores.of`."""
        logs = self.exps.log()
        rows = [self.target - self.top - logs]
        for name in ask.figures:
            if name == "right":
                rows.append((self.target >= self.top).to(logs.dtype))
            elif name == "entropy":
                assert self.leaning is not None
                rows.append(logs - self.leaning / self.exps)
            else:
                assert self.plain is not None
                rows.append(self.plain * (ask.temperature / words))
        return torch.stack(rows)


class _Scored(torch.autograd.Function):
    """(hidden (T, D), weight (V, D), bias (V,) or None, ask, dtype of the products) -> (1 + n, T).

    Only the first row has a gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, ask: Ask, dtype: torch.dtype) -> Tensor:
        blocks, seen, exps = _blocks(len(hidden), weight), None, None
        with _as_written(hidden):
            factors = _Factors(hidden, weight, bias, dtype=dtype, temperature=ask.temperature)
            for words in blocks:
                block, exps = _look(factors.logits(words), ask=ask, words=words)
                seen = block if seen is None else seen.joined(block)
            assert seen is not None
            rows = seen.rows(ask, words=len(weight))
        # Where all words are one block its exponentials are kept; else each block is made anew in the backward.
        whole = len(blocks) == 1
        normaliser = seen.exps if whole else seen.top + seen.exps.log()
        ctx.save_for_backward(hidden, weight, bias, ask.ids, normaliser, exps if whole else None)
        ctx.temperature, ctx.dtype = ask.temperature, dtype
        return rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, ids, normaliser, exps = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        pull, to_hidden = grad[0] / ctx.temperature, None
        to_weight = torch.empty_like(weight) if wanted[1] else None
        to_bias = torch.empty_like(bias) if wanted[2] else None
        with _as_written(hidden):
            factors = _Factors(hidden, weight, bias, dtype=ctx.dtype, temperature=ctx.temperature)
            for words in _blocks(len(hidden), weight):
                if exps is not None:
                    slope = exps * (-pull / normaliser)[:, None]
                else:
                    slope = factors.logits(words).sub_(normaliser[:, None]).exp_().mul_(-pull[:, None])
                _add_at(slope, ids - words.start, pull)
                if to_bias is not None:
                    to_bias[words] = slope.sum(0)
                slope = slope.to(factors.hidden.dtype)
                if wanted[0]:
                    part = factors.product(slope, factors.rows(words))
                    to_hidden = part if to_hidden is None else to_hidden.add_(part)
                if to_weight is not None:
                    factors.product_into(to_weight[words], slope.t(), factors.hidden)
        return None if to_hidden is None else to_hidden.to(hidden.dtype), to_weight, to_bias, None, None


class _Factors:
    """Hidden states and rows of the weight, as they are multiplied."""

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype, temperature: float
    ) -> None:
        self.exact = torch.promote_types(dtype, torch.float32)
        self.wide = hidden.device.type in WIDE_PRODUCTS and dtype != self.exact
        self.dtype, self.weight, self.bias, self.temperature = dtype, weight, bias, temperature
        self.hidden = self._factor(hidden)

    def _factor(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        return x if self.wide else x.to(self.exact)

    def rows(self, words: slice) -> Tensor:
        """Return (W, D) rows of the weight."""
        return self._factor(self.weight[words])

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a @ b, added up and returned in at least fp32."""
        return torch.mm(a, b, out_dtype=self.exact) if self.wide else torch.mm(a, b)

    def product_into(self, out: Tensor, a: Tensor, b: Tensor) -> None:
        """Write a @ b, rounded once."""
        if out.dtype == a.dtype:
            torch.mm(a, b, out=out)
        else:
            out.copy_(self.product(a, b))

    def logits(self, words: slice) -> Tensor:
        """Return (T, W) logits over the temperature."""
        logits = self.product(self.hidden, self.rows(words).t())
        if self.bias is not None:
            logits += self.bias[words]
        return logits if self.temperature == 1 else logits.div_(self.temperature)


def _blocks(targets: int, weight: Tensor) -> list[slice]:
    """Return the blocks of words; neither a block's logits nor its rows of the weight are more than `AT_ONCE`."""
    words, width = weight.shape
    size = max(AT_ONCE // max(targets, width), 1)
    return [slice(first, min(first + size, words)) for first in range(0, words, size)]


def _look(logits: Tensor, *, ask: Ask, words: slice) -> tuple[_Seen, Tensor]:
    """Return what a block's (T, W) logits tell, and their exponentials; the logits are spent."""
    top = logits.amax(dim=1)
    place, inside = _places(ask.ids - words.start, logits)
    target = torch.where(inside, logits.gather(1, place)[:, 0], -torch.inf)
    plain = logits.sum(1) if "mean_logit" in ask.figures else None
    lower = logits.sub_(top[:, None])
    if "entropy" in ask.figures:
        exps = lower.exp()
        leaning = lower.mul_(exps).sum(1)
    else:
        exps, leaning = lower.exp_(), None
    return _Seen(top=top, target=target, exps=exps.sum(1), leaning=leaning, plain=plain), exps


def _places(ids: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """Return (T, 1) columns of the targets in a block, and (T,) whether they are there at all."""
    last = block.shape[1] - 1
    return ids.clamp(0, last)[:, None], (ids >= 0) & (ids <= last)


def _add_at(block: Tensor, ids: Tensor, values: Tensor) -> None:
    """Add (T,) values at the targets that are in a block; one a row, so that the order is nobody's choice."""
    place, inside = _places(ids, block)
    there = block.gather(1, place)[:, 0]
    block.scatter_(1, place, (there + torch.where(inside, values, 0.0))[:, None])


def _dtype(hidden: Tensor) -> torch.dtype:
    """Return the type in which a linear layer would multiply here."""
    kind = hidden.device.type
    if kind != "meta" and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


def _as_written(hidden: Tensor) -> AbstractContextManager[Any]:
    """While entered autocast rounds nothing."""
    kind = hidden.device.type
    active = kind != "meta" and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if active else nullcontext()
