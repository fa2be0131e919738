"""The table of objectives: one row says all that the rest of the house asks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from arcvideo.objectives import FEEDS, OBJECTIVES, load_objective, objective_row
from arcvideo.structured import SettingsError
from tests.compose import settings

PACKAGE = Path(__file__).resolve().parents[2] / "arcvideo"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_row_leads_to_its_class_and_its_settings(name: str) -> None:
    page = {"grpo": "grpo", "dpo": "dpo"}.get(name, "sft")
    config = settings(f"stage={page}", f"stage.objective={name}")
    row = OBJECTIVES[name]
    assert config.objective == row
    made = load_objective(name)(config.objective_settings)
    assert made.settings is getattr(config, row.settings)
    assert row.feed in FEEDS


def test_settings_of_every_objective_can_be_given() -> None:
    assert not settings("stage=sft", "next_token.log_accuracy=false").objective_settings.log_accuracy


def test_without_beta_no_reference_is_needed() -> None:
    assert settings("stage=grpo").keeps_reference
    assert not settings("stage=grpo", "grpo.beta=0").keeps_reference
    assert not settings("stage=sft").keeps_reference


@pytest.mark.parametrize(
    ("feed", "like"), [("", "next_token"), ("answers", "next_token"), ("pairs", "dpo"), ("rollouts", "grpo")]
)
def test_a_class_of_ones_own_is_fed_like_ours(feed: str, like: str) -> None:
    row, ours = objective_row("mine.losses:Mine", feed=feed), OBJECTIVES[like]
    assert row.loss == "mine.losses:Mine"
    assert (row.settings, row.feed, row.reference) == (ours.settings, ours.feed, ours.reference)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["stage.objective=kto"],
            r"stage\.objective='kto' is unknown.*next_token, grpo, dpo, or package",
        ),
        (["stage.objective=mine:"], r"stage\.objective='mine:' is unknown"),
        (["stage.objective=m:C", "stage.feed=videos"], r"stage\.feed='videos' is unknown: choose one of answers"),
        (["stage.feed=rollouts"], r"stage\.feed=rollouts is for a class of your own; .*next_token trains on answers"),
        (["stage.options.gamma=2"], r"stage\.options is for a class of your own; .*next_token are next_token\."),
    ],
)
def test_what_cannot_be_is_told_with_the_key(words: list[str], message: str) -> None:
    with pytest.raises((ValueError, SettingsError), match=message):
        settings("stage=sft", *words)


def test_no_code_outside_the_table_compares_the_name_of_an_objective() -> None:
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Compare):
                continue
            parts = [node.left, *node.comparators]
            texts = {one.value for part in parts for one in ast.walk(part) if isinstance(one, ast.Constant)}
            asked = any("objective" in ast.unparse(part) for part in parts)
            if asked and texts & set(OBJECTIVES):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert found == []
