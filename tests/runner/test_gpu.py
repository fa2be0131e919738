"""On a CUDA device, in bf16: every ZeRO stage, any cut of a step, exact resume, a depth slice at real widths.

`make test-gpu` runs them; without a device they are skipped, but for the slice at a small size.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from arcvideo.model.settings import ModelSettings
from arcvideo.model.special import SpecialIds
from arcvideo.objectives.next_token import NextToken
from arcvideo.processes.ranks import World
from arcvideo.runner.gradient import repeatable
from arcvideo.types import Segments, model_inputs
from benchmarks.slice import LAYERS, TOLERANCE, batch_of, model_of, reference_loss, slice_of, step_of
from tests.model.small import SETTINGS, SPECIAL
from tests.runner.adapters import train_adapters
from tests.runner.job import build_engine, train
from tests.runner.mixed import cut_run
from tests.runner.tiny import Rows

STAGES = [0, 1, 2, 3]
ROUGH = 0.03
"""Relative difference that bf16 (8 bits of mantissa) may make in a loss after some steps."""


@pytest.mark.gpu
@pytest.mark.parametrize("stage", STAGES)
def test_bf16_follows_fp32_under_every_zero_stage(tmp_path: Path, world: World, stage: int) -> None:
    assert world.device.type == "cuda"
    half = train(tmp_path / "half", world=world, stage=stage, precision="bf16")["metrics"]
    full = train(tmp_path / "full", world=world, stage=0)["metrics"]
    assert half[-1][1] < half[0][1]
    assert [loss for _, loss, _ in half] == pytest.approx([loss for _, loss, _ in full], rel=ROUGH)


@pytest.mark.gpu
@pytest.mark.parametrize("stage", STAGES)
def test_a_bf16_forward_computes_in_bf16(world: World, stage: int) -> None:
    (batch, *_) = Rows().batches(0).batches
    engine = build_engine(world=world, stage=stage, precision="bf16")
    assert engine(**model_inputs(batch.to(world.device))).dtype == torch.bfloat16


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_is_the_same_however_it_is_cut(tmp_path: Path, world: World, stage: int, precision: str) -> None:
    curves = []
    for rows in (1, 4, 8):
        folder = tmp_path / str(rows)
        folder.mkdir()
        curves.append(cut_run(world=world, folder=str(folder), stage=stage, rows=rows, precision=precision))
    for curve in curves[1:]:
        for (_, loss, _), (_, expected, _) in zip(curve, curves[0], strict=True):
            assert loss == pytest.approx(expected, rel=1e-4 if precision == "fp32" else ROUGH)


@pytest.mark.gpu
@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_has_the_bits_of_a_straight_run(tmp_path: Path, world: World, stage: int) -> None:
    straight = train(tmp_path / "straight", world=world, stage=stage, precision="bf16")
    train(tmp_path / "cut", world=world, stage=stage, precision="bf16", die_at=5)
    assert train(tmp_path / "cut", world=world, stage=stage, precision="bf16") == straight


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [0, 3])
def test_adapters_learn_and_what_is_under_them_stays(tmp_path: Path, world: World, stage: int) -> None:
    found = train_adapters(tmp_path, world=world, stage=stage, precision="bf16")
    assert found["frozen"]
    assert found["curve"][-1][1] < found["curve"][0][1]


def _gradients_twice(settings: ModelSettings, *, special: SpecialIds, world: World, attention: str, text: int) -> bool:
    """Whether a row gives the same bits twice, forward and backward, with two branches behind its prompt."""
    model = model_of(replace(settings, attention=attention), special=special).to(world.device, torch.bfloat16)
    model.adopt(replace(settings, attention=attention))
    whole = batch_of(settings, special=special, frames=3, text=text)
    length = len(whole.input_ids)
    starts = torch.tensor([0, length - 128, length - 64, length], dtype=torch.int32)
    cut = Segments(starts=starts, parents=torch.tensor([-1, 0, 0], dtype=torch.int32))
    batch = replace(whole, segments=cut).to(world.device)
    found = []
    for _ in range(2):
        model.zero_grad()
        with repeatable(True):
            NextToken()(model(**model_inputs(batch)).logits, batch).total.backward()
        found.append([part.grad.clone() for part in model.parameters() if part.grad is not None])
    return all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_attention_at_real_widths_gives_the_same_bits_twice(world: World, attention: str) -> None:
    assert world.device.type == "cuda"
    settings = slice_of(ModelSettings(), layers=2)
    assert _gradients_twice(settings, special=SpecialIds(), world=world, attention=attention, text=6000)


def test_attention_gives_the_same_bits_twice(world: World) -> None:
    settings = replace(SETTINGS, max_num_frame=150)
    assert _gradients_twice(settings, special=SPECIAL, world=world, attention="sdpa", text=200)


@pytest.mark.gpu
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_depth_slice_at_real_widths_has_the_loss_of_the_cpu(world: World, stage: int) -> None:
    settings, special = slice_of(ModelSettings(), layers=LAYERS), SpecialIds()
    batch = batch_of(settings, special=special)
    expected = reference_loss(model_of(settings, special=special), batch)
    keys = {"zero_optimization": {"stage": stage}}
    found = step_of(model_of(settings, special=special), batch, world=world, engine=keys, steps=1)
    assert found.loss == pytest.approx(expected, rel=TOLERANCE)
    assert 0 < found.peak_gib < torch.cuda.get_device_properties(0).total_memory / (1 << 30)


@pytest.mark.parametrize("stage", [0, 2])
def test_a_small_slice_in_bf16_has_the_loss_of_fp32(world: World, stage: int) -> None:
    settings = slice_of(replace(SETTINGS, max_num_frame=150), layers=1)
    batch = batch_of(settings, special=SPECIAL, frames=3, text=40)
    expected = reference_loss(model_of(settings, special=SPECIAL), batch)
    keys = {"zero_optimization": {"stage": stage}}
    found = step_of(model_of(settings, special=SPECIAL), batch, world=world, engine=keys, steps=2)
    assert found.loss == pytest.approx(expected, rel=TOLERANCE)
    assert found.tokens == 3 + 3 * (settings.tokens_per_frame + 2) + 40
    assert found.flops > 0
