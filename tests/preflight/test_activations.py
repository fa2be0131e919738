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
from arcvideo.preflight.trace import trace_row
from arcvideo.sampling import prefill
from benchmarks.memory import CASES, WITHIN, compared, compared_prefill

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("sft, 150 frames, full", "sft, four branches, none", "lora, selective")
RECIPES = ("8xh20", "8xa100", "8xh200", "1xh200", "1xh200_offload")


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


@pytest.mark.parametrize("prompts", [1, 3])
def test_the_formula_of_prefilling_agrees_with_the_trace(prompts: int) -> None:
    formula, traced = compared_prefill(prompts, layers=2)
    assert min(formula / traced, traced / formula) >= WITHIN


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
@pytest.mark.parametrize("machine", RECIPES)
def test_every_stage_of_a_shipped_recipe_fits_its_machine_by_trace(machine: str) -> None:
    recipe = load_recipe(f"arc_hunyuan_7b_{machine}")
    devices = machine_of({}, recipe=recipe.machine)
    known: dict[str, float] = {}
    for stage in planned_stages(recipe):
        row = fullest_row(stage.config)
        found = memory(stage.config, ranks=devices.gpus, row=row)
        kind = repr((row, sorted(stage.config.stage.train), stage.config.lora, stage.config.model))
        if kind not in known:
            known[kind] = trace_row(stage.config, row=row).peak
        total = found.total - max(found.activations, found.rollout) + max(known[kind], found.rollout)
        assert total < devices.room, stage.name
