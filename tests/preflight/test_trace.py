"""Tracing a row counts what its operators hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from arcvideo.preflight.row import Row, fullest_row
from arcvideo.preflight.trace import META, Held, Traced, fused_attention, trace_row
from tests.compose import settings

WIDTH, ROWS = 64, 10


def held_by(run: Callable[[], Tensor]) -> tuple[int, int]:
    """(bytes held once `run` has returned, peak)."""
    held = Held()
    with held:
        result = run()
        now = held.now
    del result
    assert held.now == 0
    return now, held.peak


def test_what_a_backward_needs_is_held_and_the_rest_is_freed() -> None:
    with META:
        layer = nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        rows = torch.empty(ROWS, WIDTH)

    def run() -> Tensor:
        return nn.functional.gelu(layer(rows * 2))

    # The doubled rows and the layer's output for the backward, and the result.
    assert held_by(run) == (4 * ROWS * (WIDTH + 2 * WIDTH + 2 * WIDTH),) * 2
    with torch.no_grad():
        now, peak = held_by(run)
    assert now == 4 * ROWS * 2 * WIDTH
    assert peak == 4 * ROWS * (2 * WIDTH + 2 * WIDTH)


def test_weights_inputs_and_views_of_them_are_not_counted() -> None:
    with META:
        weight = torch.empty(ROWS, WIDTH)
    assert held_by(lambda: weight.t()[3:].unsqueeze(0)) == (0, 0)


def test_real_indices_pick_from_what_is_only_traced_and_come_back_from_it() -> None:
    with META:
        rows = torch.empty(ROWS, WIDTH)
    order = torch.tensor([2, 0, 1])
    with Held():
        assert rows.index_select(0, order).shape == (3, WIDTH)
        assert order.to(META).cpu().tolist() == [2, 0, 1]


@pytest.mark.parametrize("causal", [True, False])
def test_attention_holds_what_a_fused_kernel_holds(causal: bool) -> None:
    with META:
        q, kv = torch.empty(1, 4, 9, 8, requires_grad=True), torch.empty(1, 2, 12, 8, requires_grad=True)
        mask = None if causal else torch.empty(1, 1, 9, 12)

    def run() -> Tensor:
        return nn.functional.scaled_dot_product_attention(q, kv, kv, attn_mask=mask, is_causal=causal, enable_gqa=True)

    with fused_attention():
        assert held_by(run)[0] == 4 * (4 * 9 * 8 + 4 * 9)


def traced(*words: str, row: Row | None = None) -> Traced:
    config = settings("stage=sft", "feature_cache=false", *words)
    return trace_row(config, row=row or Row(frames=8, text=200, branches=(20, 30), targets=40))


def test_recomputing_holds_less_and_calls_more() -> None:
    none, full = (traced(f"model.activation_checkpointing={how}") for how in ("none", "full"))
    assert full.held < none.held
    assert full.peak <= none.peak
    assert full.calls > none.calls
    assert none.tokens == full.tokens


def test_a_longer_row_holds_more() -> None:
    few = traced()
    assert traced(row=Row(frames=8, text=400, branches=(20, 30), targets=40)).held > few.held
    twice = traced(row=Row(frames=8, text=200, branches=(20, 30), targets=40, families=2))
    assert 1.9 * few.held < twice.held <= 2 * few.held, "what both families share is held once"


@pytest.mark.parametrize("stage", ["audio_warmup", "sft", "grpo"])
def test_the_fullest_row_of_every_kind_of_stage_is_traced(stage: str) -> None:
    config = settings(f"stage={stage}")
    row = fullest_row(config)
    found = trace_row(config, row=row)
    assert found.peak >= found.held > 0
    if stage != "grpo":
        assert found.tokens == config.data.token_budget
    else:
        assert row.targets == config.grpo.num_generations * config.grpo.max_completion_length
