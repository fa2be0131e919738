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


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("data_dir=other", "data_dir=other moves the stages alone, the recipe's `prepare` keeps data=data/tiny_shorts; "
         "given.data=other moves both"),
        ("run_dir=other", "run_dir=other moves the stages alone, the recipe's `prepare` keeps run=runs/tiny_shorts; "
         "given.run=other moves both"),
        ("runner.seed=3", "runner.seed=3 moves the stages alone, the recipe's `prepare` keeps seed=0; "
         "given.seed=3 moves both"),
        ("data_dir=data/tiny_shorts/", ""),
        ("runner.steps=3", ""),
    ],
)  # fmt: skip
def test_a_word_that_moves_the_stages_but_not_what_is_prepared_says_so(
    word: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.main(["recipe=tiny_shorts", "status", word])
    assert capsys.readouterr().err == (f"note: {told}\n" if told else "")


def test_a_word_beside_its_given_that_says_the_same_is_no_contradiction(capsys: pytest.CaptureFixture[str]) -> None:
    pipeline.main(["recipe=ablation_tiny", "status", "given.data=other", "data_dir=other"])
    assert capsys.readouterr().err == ""


def test_an_unknown_name_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"given.sed: the recipe has no such name.*seed"):
        pipeline.main(["recipe=tiny_shorts", "given.sed=3"])


def test_other_dollar_signs_stay(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("name: own\ngiven: {run: here}\nrun_dir: $run\nabout: '${data_dir} costs $5, $other'\n")
    recipe = load_recipe(str(path))
    assert (recipe.run_dir, recipe.about) == ("here", "${data_dir} costs $5, $other")
