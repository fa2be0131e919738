"""The formula of activations agrees with a trace of the model, row by row; the pages quote recorded figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from arcvideo.composing.recipe import load_recipe, planned_stages
from arcvideo.preflight import memory as memory_of_preflight
from arcvideo.preflight.machine import machine_of
from arcvideo.preflight.memory import memory
from arcvideo.preflight.row import fullest_row
from arcvideo.preflight.tracing import Tracing
from arcvideo.sampling import prefill
from benchmarks.memory import CASES, ROLLOUTS, WITHIN, compared, compared_rollout

ROOT = Path(__file__).resolve().parents[2]
QUICK = (
    "sft, 150 frames, full", "sft, four branches, none", "lora, selective", "qwen 7B sft, 206 frames, selective",
    "qwen 7B grpo, 8 x 1024, full", "qwen 3B sft, 206 frames, full",
)  # fmt: skip
RECIPES = (
    "arc_hunyuan_7b_8xh20", "arc_hunyuan_7b_8xa100", "arc_hunyuan_7b_8xh200", "arc_hunyuan_7b_1xh200",
    "arc_hunyuan_7b_1xh200_offload", "arc_hunyuan_1b", "arc_qwen_3b", "arc_qwen_7b",
)  # fmt: skip


@pytest.mark.parametrize("name", QUICK)
def test_the_formula_agrees_with_the_trace_of_two_layers(name: str) -> None:
    formula, traced = compared(CASES[name], layers=2)
    assert min(formula / traced, traced / formula) >= WITHIN


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_formula_agrees_with_the_trace_of_the_whole_model_as_recorded(name: str) -> None:
    formula, traced = compared(CASES[name])
    assert min(formula / traced, traced / formula) >= WITHIN
    if row := recorded().get(f"{name}, GiB"):
        assert (formula, traced) == pytest.approx((row["ours"], row["baseline"]), rel=0.01)


@pytest.mark.parametrize("name", ROLLOUTS)
def test_the_formula_of_a_rollout_agrees_with_the_trace_of_its_decoding(name: str) -> None:
    """At two layers the towers' work stands out, at all layers keys and values do."""
    formula, traced = compared_rollout(ROLLOUTS[name], layers=2)
    assert min(formula / traced, traced / formula) >= WITHIN


@pytest.mark.slow
@pytest.mark.parametrize("name", ROLLOUTS)
def test_the_formula_of_a_rollout_agrees_with_the_trace_of_the_whole_model_as_recorded(name: str) -> None:
    formula, traced = compared_rollout(ROLLOUTS[name])
    assert min(formula / traced, traced / formula) >= WITHIN
    row = recorded()[f"{name}, GiB"]
    assert (formula, traced) == pytest.approx((row["ours"], row["baseline"]), rel=0.01)


def test_the_formula_knows_how_many_tokens_are_prefilled_together() -> None:
    assert memory_of_preflight.PREFILL_TOKENS == prefill.PREFILL_TOKENS


def recorded() -> dict[str, dict[str, float]]:
    content = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())
    return {row["metric"]: row for row in content["rows"]}


def test_the_figures_of_the_page_are_the_recorded_ones() -> None:
    text = " ".join((ROOT / "docs" / "running.md").read_text().split())
    found = re.search(r"\((\S+) GiB by the trace, (\S+) by the formula\)", text)
    assert found is not None
    row = recorded()["sft, 150 frames, full, GiB"]
    assert found.groups() == (f"{row['baseline']:.1f}", f"{row['ours']:.1f}")


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_stage_of_a_shipped_recipe_fits_its_machine_by_trace(name: str) -> None:
    recipe, tracing = load_recipe(name), Tracing()
    devices = machine_of({}, recipe=recipe.machine)
    for stage in planned_stages(recipe):
        row = fullest_row(stage.config)
        formula = memory(stage.config, ranks=devices.gpus, row=row)
        found = tracing.memory(formula, config=stage.config, row=row, ranks=devices.gpus)
        assert found.total < devices.room, stage.name
        assert (found.rollout > 0) is stage.config.objective.sampled
        for part in ("activations", "rollout"):
            one, other = getattr(formula, part) + formula.features, getattr(found, part) + found.features
            assert one == other == 0 or min(one / other, other / one) >= WITHIN, (stage.name, part)
