"""Figures over the items of one tag: chosen, counted, gated, and shown as they are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from arcvideo.evaluation.answers import FULL, Answer
from arcvideo.evaluation.figures import choose, figures, lower_is_better
from arcvideo.evaluation.gates import Measured, judge_gates, plan_gates
from arcvideo.evaluation.predictions import write_predictions
from arcvideo.evaluation.settings import EvaluationSettings
from arcvideo.evaluation.targets import Target
from arcvideo.measuring.settings import EvaluateSettings
from arcvideo.report.summary import print_summary

HEARD = "mcq_accuracy[needs:audio]"
SETTINGS = EvaluationSettings(metrics=["mcq_accuracy", HEARD, "format_valid[needs:audio]"], items=0, bootstrap=50)


def answers(heard: str, seen: str) -> list[Answer]:
    """Eight clips with two questions each, one that needs the sound and one that needs the picture; B is right."""
    made = []
    for number in range(16):
        needs, text = (("needs:audio", heard), ("needs:video", seen))[number % 2]
        made.append(
            Answer(
                key=f"clip-{number // 2}/{number % 2}", number=number, clip=f"clip-{number // 2}", task="mcq",
                question="?", truth={"letter": "B", "options": ["red", "blue"]}, reference="B", tags=(needs,),
                text=f"<think></think><answer>{text}</answer>", instructed=True,
            )
        )  # fmt: skip
    return made


def measured(folder: Path, asked: list[Answer]) -> dict[str, Any]:
    chosen = choose(asked, settings=SETTINGS)
    found, predictions = figures({(FULL, one.key): one for one in asked}, chosen=chosen, settings=SETTINGS)
    write_predictions(folder / "predictions.jsonl", predictions=predictions)
    return {name: vars(metric) for name, metric in found.items()}


def test_a_figure_with_a_tag_is_over_the_items_of_that_tag(tmp_path: Path) -> None:
    found = measured(tmp_path, answers(heard="A", seen="B"))
    assert (found["mcq_accuracy"]["value"], found["mcq_accuracy"]["n"]) == (0.5, 16)
    assert (found[HEARD]["value"], found[HEARD]["n"], found[HEARD]["chance"]) == (0.0, 8, 0.5)
    assert (found["format_valid[needs:audio]"]["value"], found["format_valid[needs:audio]"]["n"]) == (1.0, 8)
    assert lower_is_better("transcript_token_error[needs:audio]") is lower_is_better("transcript_token_error")


def test_a_gate_on_a_tag_sees_a_loss_that_the_whole_hides(tmp_path: Path) -> None:
    metrics = {
        "sft": measured(tmp_path / "sft", answers(heard="B", seen="A")),
        "grpo": measured(tmp_path / "grpo", answers(heard="A", seen="B")),
    }
    stages = {
        "sft": Measured(parent="", metrics=SETTINGS.metrics),
        "grpo": Measured(parent="sft", metrics=SETTINGS.metrics),
    }
    fields: dict[str, Any] = {"stage": "grpo", "not_below_stage": "parent"}
    gates = [Target(metric="mcq_accuracy", **fields), Target(metric=HEARD, **fields)]
    gates.append(Target(stage="grpo", metric=HEARD, at_least=0.5))
    planned = plan_gates(gates, stages=stages)["grpo"]
    verdicts = judge_gates(planned, metrics=metrics, run_dir=tmp_path)
    assert [one.met for one in verdicts] == [True, False, False], verdicts
    assert "minus sft: -1.000" in verdicts[1].reason


def test_a_tag_that_is_not_measured_is_refused_with_the_remedy() -> None:
    stages = {"sft": Measured(parent="", metrics=["mcq_accuracy"])}
    with pytest.raises(ValueError, match=r"sft does not measure mcq_accuracy\[needs:audio\].*evaluation\.metrics"):
        plan_gates([Target(stage="sft", metric=HEARD, at_least=0.5)], stages=stages)


@pytest.mark.parametrize("name", ["mcq_acuracy[needs:audio]", "mcq_accuracy[]", "mcq_accuracy[a][b]", "[needs:audio]"])
def test_an_unknown_figure_is_refused_with_a_tag_too(name: str) -> None:
    with pytest.raises(ValueError, match="which is unknown"):
        EvaluationSettings(metrics=[name])
    with pytest.raises(ValueError, match="which is unknown"):
        EvaluateSettings(endpoint="http://localhost/v1", model="m", data="x.tar", metrics=[name])


def test_the_table_of_a_run_shows_the_tag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures_of = measured(tmp_path, answers(heard="A", seen="B"))
    target = {"stage": "sft", "metric": HEARD, "met": True, "reason": "0.000 <= 1"}
    summary = {"stages": {"sft": figures_of}, "seconds": {"sft": 1.0}, "targets": [target]}
    print_summary(summary, page=tmp_path / "index.html")
    said = capsys.readouterr().out
    assert said.count(HEARD) == 2
