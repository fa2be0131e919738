"""A task is one file: that of docs/adding.md, as it stands on the page, is trained on, rewarded and measured."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvideo.ask import readings
from arcvideo.evaluation.settings import EvaluationSettings
from arcvideo.feed.prompts import Prompt
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.render import render_branch
from arcvideo.rollout.rewards.score import score
from arcvideo.sampling.groups import Completion, Group
from arcvideo.sampling.settings import SampleSettings
from arcvideo.shards.index import ensure_indexes
from arcvideo.shards.write import Record, write_shards
from arcvideo.tasks import TASKS, make_sample
from tests.data import build
from tests.evaluation import asked as evaluation
from tests.rollout.world import make_media, make_model, make_prompt, tokenizer

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("asr", "chapters", "grounding", "mcq", "qa")
"""Tasks whose names are no other words."""
DATA_SETS = (
    "synthetic/", "bench/", "data/importers/", "data/transcribe.py", "data/import_command.py", "model/disk/parity",
)  # fmt: skip
"""What writes items of tasks, as a user's own data set does."""


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    page = (ROOT / "docs" / "adding.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"^## A task\n(.*?)^## ", page, flags=re.MULTILINE | re.DOTALL)
    (source,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    path = tmp_path / "counting.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("counting", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(TASKS, "counting", module.COUNTING)
    return "counting"


def items() -> list[dict[str, Any]]:
    return [
        {"task": "counting", "question": f"How many {what}?", "count": count, "think": "one, two"}
        for what, count in (("cats", 2), ("dogs", 2), ("birds", 5))
    ]


class Counts:
    """A sampler that says two, whatever is asked."""

    def __init__(self, model: Any, **_: Any) -> None:
        self.model = model

    def sample(self, prompts: Sequence[Prompt], **_: Any) -> list[Group]:
        return [Group(prompt=prompt, completions=(completion("<answer>2</answer>"),)) for prompt in prompts]


def completion(text: str) -> Completion:
    ids = torch.zeros(1, dtype=torch.int64)
    return Completion(ids=ids, logprobs=ids.float(), finished=True, text=text)


def prompts() -> list[Prompt]:
    made = [make_sample(item, key=f"clip/{n}", media_key="clip") for n, item in enumerate(items())]
    return [
        make_prompt(s.key, task=s.task, question=s.turns[0].question, truth=s.truth, media=make_media("clip"))
        for s in made
    ]


def test_its_items_are_indexed_and_rendered(counting: str, tmp_path: Path) -> None:
    wrong = {"task": counting, "question": "How many?", "count": "two"}
    record = Record(key="clip", content={"items": [*items(), wrong]}, media={"png": build.png()})
    (index,) = ensure_indexes(write_shards([record], out=tmp_path / "shards"), progress=False)
    assert (len(index.items), index.tasks) == (3, [counting])
    assert [(problem.key, problem.reason) for problem in index.problems()] == [("clip/3", "bad_count")]
    sample = make_sample(items()[0], key="clip/0", media_key="clip", style="think")
    branch = render_branch(sample, tokenizer=tokenizer(), wording="brief")
    assert sample.turns[0].answer == "<think>one, two</think><answer>2</answer>"
    assert len(branch.ids) > branch.question_tokens > 0


def test_its_answers_are_rewarded(counting: str, tmp_path: Path) -> None:
    texts = ("<think>x</think><answer>2</answer>", "two or 3", "2 or 3", "<answer>2</answer><answer>2</answer>")
    group = Group(prompt=prompts()[0], completions=tuple(map(completion, texts)))
    assert GrpoSettings().reward_weights["counting_accuracy"] == 1.0  # among the defaults
    scores = score([group], settings=GrpoSettings(rewards={"counting_accuracy": 1.0, "one_answer": 0.5}))
    assert scores.total.tolist() == [1.5, 0.5, 0.0, 0.0]
    assert scores.notes["counting_accuracy"]["read"] == ["2", "3", None, None]
    assert scores.notes["counting_accuracy"]["problem"] == [None, None, "2 numbers", "2 answer blocks"]
    sampling = SampleSettings(checkpoint=str(tmp_path), shards="x.tar", out="out")
    assert counting in sampling.tasks
    assert sampling.reward_of(counting) == "counting_accuracy"
    assert readings("It is 00:02 - 00:06.", task=counting) == ["time: 00:00:02 - 00:00:06 (2 s to 6 s)"]


def test_it_is_measured_with_its_chance_level(counting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "InProcessSampler", Counts)
    settings = EvaluationSettings(bootstrap=20)
    assert "counting_accuracy" in settings.metrics
    found = evaluation.evaluate(make_model(), prompts(), tokenizer=tokenizer(), settings=settings)
    assert list(found) == ["counting_accuracy"]
    assert (found["counting_accuracy"].value, found["counting_accuracy"].chance) == pytest.approx((2 / 3, 2 / 3))


def test_nothing_outside_the_room_of_tasks_names_one() -> None:
    named = []
    for path in sorted((ROOT / "arcvideo").rglob("*.py")):
        place = path.relative_to(ROOT / "arcvideo").as_posix()
        if place.startswith(("tasks/", *DATA_SETS)):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and node.value in NAMES:
                named.append(f"{place}:{node.lineno} {node.value}")
    assert named == []
