"""One decoding step: a token of every row through the decoder, in as few kernels as it takes.

`TokenStep` computes what the decoder computes for one text token a row: queries and keys are rotated and
normalised together, rope is looked up instead of computed, and keys and values go to their slot in one write.
A decoder of another class, or one that somebody has hooked into, is called as it is (`PlainStep`).
Shapes: R rows, D width, H query heads, G key heads, r = H / G, h head width, V vocabulary, N positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from arcvideo.model.arc_hunyuan.head import exact_logits
from arcvideo.model.arc_hunyuan.language import Decoder, DecoderLayer, LanguageModel, rope_tables
from arcvideo.model.norms import RMSNorm
from arcvideo.sampling.forked import ForkedCache

Step = Callable[[Tensor, Tensor], Tensor]
"""(tokens (R,), positions (R,)) -> logits (R, V) float32 of the tokens behind them."""


def step_of(model: Any, *, cache: ForkedCache, end: int) -> Step:
    """Return the step of a model.

    Args:
        model: an `ArcVideoForConditionalGeneration`.
        cache: what the step reads and writes.
        end: positions stay below it.
    """
    language = getattr(model, "language_model", None)
    if type(language) is LanguageModel and type(language.model) is Decoder and not _hooked(language.model):
        return TokenStep(language, cache=cache, end=end)
    return PlainStep(model, cache=cache)


def _hooked(decoder: Decoder) -> bool:
    """Return whether a module that the lean step goes around has hooks; linear layers are called, theirs run."""
    around = (Decoder, DecoderLayer, RMSNorm, type(decoder.layers[0].self_attn), type(decoder.layers[0].mlp))
    modules = [module for module in decoder.modules() if isinstance(module, around)]
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)


class PlainStep:
    """The model as it is, with the cache in place of keys and values."""

    def __init__(self, model: Any, *, cache: ForkedCache) -> None:
        self._model, self._cache = model, cache

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        output = self._model(
            input_ids=tokens[:, None],
            position_ids=positions[:, None, None].expand(-1, 4, 1),  # a text token: same on all axes
            past_key_values=self._cache,
            logits_to_keep=tokens[:0],  # of no position: the model's own are rounded to its precision
        )
        return exact_logits(self._model.language_model.lm_head, output.last_hidden_state[:, -1]).float()


class TokenStep:
    """The decoder's layers for one text token a row."""

    def __init__(self, language: LanguageModel, *, cache: ForkedCache, end: int) -> None:
        """Look up what does not change while a rollout lasts: rope, and the norms of queries and keys.

        Args:
            language: the decoder and its head, weights in place.
            cache: what the step reads and writes.
            end: positions stay below it.
        """
        self._language, self._cache = language, cache
        decoder = language.model
        weight = decoder.embed_tokens.weight
        positions = torch.arange(end, device=weight.device).expand(4, -1)
        cos, sin = (x.squeeze(-2) for x in rope_tables(positions, settings=decoder.settings, dtype=weight.dtype))
        half = sin.shape[-1] // 2
        signed = torch.cat([-sin[:, :half], sin[:, half:]], dim=-1)  # the sign of the rolled half
        self._rope = torch.stack([cos, signed], dim=1).unsqueeze(2).unsqueeze(2)  # (N, 2, 1, 1, h)
        norms = [self._joined_norm(layer.self_attn) for layer in decoder.layers]
        self._norms = torch.stack(norms).unsqueeze(1).unsqueeze(1).unsqueeze(1)  # (layers, 1, 1, 1, r + 1, h)

    @staticmethod
    def _joined_norm(attention: Any) -> Tensor:
        """Return (r + 1, h): weights of the norms of a group's queries, then of its key."""
        query, key = attention.query_layernorm.weight, attention.key_layernorm.weight
        return torch.cat([query.expand(attention.groups, -1), key[None]])

    def __call__(self, tokens: Tensor, positions: Tensor) -> Tensor:
        decoder = self._language.model
        x = nnf.embedding(tokens, decoder.embed_tokens.weight)
        # A rotation changes no length, so queries and keys are normalised before it and weighted by its own factors.
        rope = self._norms * self._rope.index_select(0, positions)  # (layers, R, 2, 1, r + 1, h)
        layer: Any
        for number, layer in enumerate(decoder.layers):
            cos, sin = rope[number].unbind(1)
            x = _added(x, layer.self_attn.o_proj, self._attend(x, layer, number=number, cos=cos, sin=sin))
            gate_up: Tensor = layer.mlp.gate_and_up_proj(_norm(x, layer.post_attention_layernorm))
            a, b = gate_up.chunk(2, dim=-1)
            x = _added(x, layer.mlp.down_proj, a * nnf.silu(b))
        return exact_logits(self._language.lm_head, _norm(x, decoder.norm)).float()

    def _attend(self, x: Tensor, layer: nn.Module, *, number: int, cos: Tensor, sin: Tensor) -> Tensor:
        """Return (R, H * h): attention of a layer before its output projection."""
        attention: Any = layer.self_attn
        qkv = attention.qkv_proj(_norm(x, layer.input_layernorm))  # type: ignore[arg-type]
        qkv = qkv.unflatten(-1, (-1, attention.groups + 2, attention.head_dim))  # a group: its queries, key, value
        qk = qkv[:, :, :-1]
        normed = nnf.rms_norm(qk, (attention.head_dim,), None, attention.query_layernorm.eps)
        # Written where they stood, so that keys lie beside their values.
        torch.addcmul(normed * cos, normed.roll(attention.head_dim // 2, dims=-1), sin, out=qk)
        return self._cache.read(qkv[:, :, :-2], qkv[:, :, -2:], layer=number)


def _added(x: Tensor, linear: Any, y: Tensor) -> Tensor:
    """Return x + linear(y), in one product where the layer is no more than its weight (an adapter is more)."""
    plain = type(linear) is nn.Linear and linear.bias is None and not linear._forward_hooks
    if plain and x.dtype == y.dtype == linear.weight.dtype:
        return torch.addmm(x, y, linear.weight.t())
    return x + linear(y)


def _norm(x: Tensor, norm: Any) -> Tensor:
    """Return what the norm's module does; in half precision torch's kernel computes in fp32 and casts back itself."""
    if x.dtype in (torch.float32, torch.float64):
        return nnf.rms_norm(x, (x.shape[-1],), norm.weight, norm.eps)
    return nnf.rms_norm(x, (x.shape[-1],), None, norm.eps) * norm.weight
