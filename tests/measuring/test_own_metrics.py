"""Figures of a user's own over a measurement: what they give, what they may not, and where they are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from arcvideo.evaluate import main
from arcvideo.measuring.questions import Asking, Material, MeasuredQuestion, check_metrics
from arcvideo.measuring.scores import score_folder
from arcvideo.tasks import make_sample
from tests.measuring.test_scores import measured

CODE = """
import math
import numpy
import torch
from arcvideo.tasks.task import Measure

def says_a(text, truth):
    return numpy.float32("A" in text)

def as_tensor(text, truth):
    return torch.tensor(0.5)

def of_nothing(text, truth):
    return None

def raises(text, truth):
    return {}[
        "no such key"
    ]

def word(text, truth):
    return "1.0"

def nan(text, truth):
    return math.nan

def many(text, truth):
    return torch.ones(2)

MEASURE = Measure(name="m", score=raises, chance=lambda items: 0.0)
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A module that is found on the path for as long as this file is tested."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "figures_of_test_own_metrics.py").write_text(CODE)
    return str(folder)


@pytest.fixture(autouse=True)
def on_path(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(module)


def rescored(folder: Path, name: str) -> tuple[int, str]:
    figure = f"figures_of_test_own_metrics:{name}"
    return main([f"rescore={folder}", f"metrics={figure}", "bootstrap=20"]), figure


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("raises", r"(figures_of_test_own_metrics.py:17: KeyError: 'no such key')"),
        ("MEASURE", r"(figures_of_test_own_metrics.py:17: KeyError: 'no such key')"),
        ("word", "gave '1.0'"), ("nan", "gave nan"), ("many", "gave tensor"),
    ],
)  # fmt: skip
def test_one_that_fails_or_gives_no_number_is_told_in_one_line(
    name: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = measured(tmp_path / "m")
    assert rescored(folder, name)[0] == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
    assert not list(folder.glob("scores*"))


@pytest.mark.parametrize(("name", "value"), [("says_a", 0.25), ("as_tensor", 0.5)])
def test_its_figures_stand_beside_those_of_the_measurement(name: str, value: float, tmp_path: Path) -> None:
    """Numbers of numpy and torch count too; a figure on request never takes the place of what was measured."""
    folder = measured(tmp_path / "m")
    score_folder(folder, bootstrap=20)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    status, figure = rescored(folder, name)
    assert status == 0
    assert before == {path.name: path.read_bytes() for path in folder.iterdir() if path.name in before}
    scores, predictions = (
        next(path for path in folder.glob(f"{kind}-*") if path.suffix != ".sha256")
        for kind in ("scores", "predictions")
    )
    assert json.loads(scores.read_text())["metrics"][figure]["value"] == value
    assert {json.loads(line)["metric"] for line in predictions.open()} == {figure}


@pytest.mark.parametrize("name", ["figures_of_test_own_metrics:of_nothing", "mcq_accuracy[nobody]", "caption_f1"])
def test_one_without_items_is_said_to_have_none(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = measured(tmp_path / "m")
    assert main([f"rescore={folder}", f"metrics={name}", "bootstrap=20"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if name in line)
    assert line.split(maxsplit=1)[1] == "is of none of these answers"


def asking() -> Asking:
    fields: dict[str, Any] = {"task": "mcq", "question": "Which?", "options": ["red", "blue"], "answer": "B"}
    question = MeasuredQuestion(
        number=0, sample=make_sample(fields, key="c/0", media_key="c"), tags=("dim:x",), fields=fields
    )
    material = Material(number=0, name="c", questions=(question,), read=None)
    return Asking(name="own", digest="d", materials=(material,))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mcq_accuracy[dim:y]", "tags: dim:x"),
        ("grounding_miou", "their tasks: mcq;"),
        ("speech_qa", "their tasks: mcq;"),
    ],
)
def test_one_that_no_question_has_is_refused_before_anything_is_asked(name: str, said: str) -> None:
    check_metrics(asking(), metrics=["mcq_accuracy", "mcq_accuracy[dim:x]"], arms=["full"])
    check_metrics(asking(), metrics=[], arms=["full"])
    with pytest.raises(ValueError, match="which none of these questions has") as error:
        check_metrics(asking(), metrics=["mcq_accuracy", name], arms=["full"])
    assert said in str(error.value)
