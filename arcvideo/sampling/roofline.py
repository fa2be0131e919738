"""What a decoding turn has to read from memory, which is what limits it. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from arcvideo.flops import decoder_weights, head_weights
from arcvideo.model.settings import TextSettings


def bytes_per_turn(text: TextSettings, *, prompts: Sequence[int], rows: int, own: float, width: int = 2) -> float:
    """Return the bytes that one token of every row needs: weights, prompts and own tokens, each read once.

    Args:
        text: the decoder.
        prompts: tokens of each prompt, shared by its rows.
        rows: answers being decoded.
        own: tokens that each has so far, on average.
        width: bytes of a number.
    """
    token = 2 * text.num_hidden_layers * text.num_key_value_heads * text.attention_head_dim
    return float(width * (decoder_weights(text) + head_weights(text) + token * (sum(prompts) + rows * own)))


def tokens_per_second(
    text: TextSettings, *, prompts: Sequence[int], rows: int, own: float, bandwidth: float, width: int = 2
) -> float:
    """Return the most tokens a second that a device of `bandwidth` bytes a second can decode."""
    return rows * bandwidth / bytes_per_turn(text, prompts=prompts, rows=rows, own=own, width=width)
