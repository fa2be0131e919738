"""Names that a recipe gives: one place for a seed and for folders, moved by one word."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcvideo import pipeline
from arcvideo.composing.recipe import load_recipe, planned_stages


def test_one_seed_moves_clips_base_weights_and_every_stage() -> None:
    recipe = load_recipe("tiny_shorts", given={"seed": "3"})
    by_name = {step.name: step.command for step in recipe.prepare}
    assert by_name["data"].endswith("--seed 3")
    assert by_name["base"].endswith("--seed 3")
    assert [stage.config.runner.seed for stage in planned_stages(recipe)] == [3] * 6


def test_folders_move_together_in_a_recipe_that_extends_another() -> None:
    recipe = load_recipe("ablation_tiny", given={"run": "elsewhere", "data": "clips"})
    assert [step.makes.split("/")[0] for step in recipe.prepare] == ["clips", "clips", "elsewhere"]
    for stage in planned_stages(recipe):
        assert stage.folder.parts[0] == "elsewhere"
        assert all(source.shards.startswith("clips/") for source in stage.config.data.sources.values())


def test_controls_start_where_grpo_starts() -> None:
    parents = {stage.name: stage.config.stage.parent for stage in planned_stages(load_recipe("ablation_tiny"))}
    assert parents["more_sft"] == parents["more_sft_fast"] == parents["final_without_grpo"] == parents["grpo"]


def test_more_sft_makes_as_many_updates_as_grpo() -> None:
    steps = {stage.name: stage.config.runner.steps for stage in planned_stages(load_recipe("ablation_tiny"))}
    assert steps["more_sft"] == steps["more_sft_fast"] == steps["grpo"]


def test_an_unknown_name_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"given.sed: the recipe has no such name.*seed"):
        pipeline.main(["recipe=tiny_shorts", "given.sed=3"])


def test_other_dollar_signs_stay(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("name: own\ngiven: {run: here}\nrun_dir: $run\nabout: '${data_dir} costs $5, $other'\n")
    recipe = load_recipe(str(path))
    assert (recipe.run_dir, recipe.about) == ("here", "${data_dir} costs $5, $other")
