"""The formulas against torch's own counter on a small model, and against the published 7B figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from arcvideo.flops import ForwardFlops, Segment, decoder_flops, decoder_weights, media_flops, peak_flops
from arcvideo.model.settings import ModelSettings
from arcvideo.runner.settings import MODULES
from tests.model.small import SETTINGS, Row, clip, prefix, small_model, text

RELEASED = ModelSettings()


def counted(*, train: bool) -> tuple[float, ForwardFlops]:
    """Torch's count and ours of a row with a clip and a question; attention at whole squares on both sides."""
    model, row = small_model(), Row()
    row.add(torch.cat([prefix(frames=3), text(9, seed=1)]))
    length = row.starts[-1]
    targets = torch.arange(5, length - 1, 3)
    model.vision_model.vit.requires_grad_(False)
    model.speech_encoder.requires_grad_(False)
    # Of attention on a CPU torch counts the plain kernel only, and that one computes what causality hides.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.set_grad_enabled(train):
        logits = model(**row.inputs(), media=[clip(frames=3)], target_positions=targets).logits
        if train:
            logits.sum().backward()
    ours = decoder_flops(SETTINGS.text, [Segment(length=length)], targets=len(targets))
    ours = replace(ours, attention=ours.attention * 2 * length / (length + 1))
    return counter.get_total_flops(), ours + media_flops(SETTINGS, frames=3, seconds=3, chunks=2)


def test_the_forward_of_a_row_costs_what_torch_counts() -> None:
    theirs, ours = counted(train=False)
    assert theirs == ours.total


def test_training_costs_what_torch_counts() -> None:
    theirs, ours = counted(train=True)
    # The first layer of a projector needs no gradient of its input; the rule of thumb counts it.
    assert ours.training(["llm", "vision_projector", "audio_projector"]) == pytest.approx(theirs, rel=0.03)


def test_segments_with_a_parent_pay_for_what_they_see() -> None:
    lone = Segment(length=10).pairs
    family = Segment(length=6).pairs + Segment(length=4, prefix=6).pairs
    assert family == lone == 55


def test_the_released_model_has_its_published_figures() -> None:
    assert decoder_weights(RELEASED.text) == pytest.approx(6.979e9, rel=1e-3)
    row = decoder_flops(RELEASED.text, [Segment(length=7300)], targets=400)
    media = media_flops(RELEASED, frames=60, seconds=60, chunks=2)
    assert row.total == pytest.approx(116e12, rel=0.01)
    assert row.attention / row.total == pytest.approx(0.12, abs=0.005)
    assert media.vit + media.vision_projector == pytest.approx(60 * 1.658e12, rel=0.01)
    assert media.whisper == pytest.approx(2 * 2.274e12, rel=0.01)
    assert media.audio_projector == pytest.approx(2 * 0.066e12, rel=0.01)
    assert (row + media).training(["llm"]) == pytest.approx(453e12, rel=0.01)
    long = decoder_flops(RELEASED.text, [Segment(length=17700)], targets=500)
    long += media_flops(RELEASED, frames=150, seconds=150, chunks=5)
    assert long.training(["llm"]) == pytest.approx(1250e12, rel=0.01)


def test_cached_towers_cost_nothing_and_more_training_costs_more() -> None:
    cached = media_flops(SETTINGS, frames=4, seconds=4, chunks=2, seen=0, heard=0)
    assert (cached.vit, cached.whisper) == (0.0, 0.0)
    assert cached.vision_projector > 0
    whole = decoder_flops(SETTINGS.text, [Segment(length=64)], targets=8)
    whole += media_flops(SETTINGS, frames=4, seconds=4, chunks=2)
    costs = [whole.training(MODULES[:count]) for count in range(len(MODULES) + 1)]
    assert costs == sorted(costs)
    assert costs[-1] == pytest.approx(3 * whole.total)


@pytest.mark.parametrize(
    ("device", "peak"),
    [("NVIDIA H20", 148e12), ("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("Some other card", None)],
)
def test_peaks_are_found_by_the_name_of_the_device(device: str, peak: float | None) -> None:
    assert peak_flops(device) == peak
