"""Figures of a fixed list of answers, to the digit: a change of the code around them must not change them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvideo.evaluation.predictions import read_predictions
from arcvideo.evaluation.settings import EvaluationSettings, metric_names
from arcvideo.feed.prompts import Prompt
from arcvideo.sampling.groups import Completion, Group
from tests.evaluation import asked as evaluation
from tests.rollout.world import make_media, make_model, make_prompt, tokenizer

THINK = "<think>x</think>"
SPEECH = ("needs:audio", "topic:speech")
OPTIONS = {"options": ("red", "blue", "green")}
ASKED: list[tuple[str, dict[str, Any], tuple[str, ...], str, str]] = [
    ("asr", {"text": "red blue green"}, (), f"{THINK}<answer>red blue</answer>", ""),
    ("asr", {"text": "one two"}, (), "one two three</think><answer>four", "one"),
    ("asr", {"text": "one two"}, (), f"{THINK}<answer>One, two.</answer>", ""),
    ("qa", {"text": "one"}, SPEECH, f"{THINK}<answer>one</answer>", "two"),
    ("qa", {"text": "two"}, SPEECH, "<answer>two</answer><answer>two</answer>", "two"),
    ("qa", {"text": "one"}, SPEECH, "One.", f"{THINK}<answer>one</answer>"),
    ("qa", {"text": "not about speech"}, (), "not about speech", ""),
    ("mcq", {"letter": "B", **OPTIONS}, (), f"{THINK}<answer>B</answer>", ""),
    ("mcq", {"letter": "A", **OPTIONS}, (), "A or B", ""),
    ("mcq", {"letter": "C", **OPTIONS}, (), "<answer>green</answer>", ""),
    ("mcq", {"letter": "A", "options": ("red", "blue")}, (), f"{THINK}<answer>B</answer>", ""),
    ("grounding", {"span": (2.0, 6.0)}, (), f"{THINK}<answer>00:00:02 - 00:00:04</answer>", ""),
    ("grounding", {"span": (0.0, 3.0)}, (), "00:00:00 - 00:00:03, 00:00:04 - 00:00:05", ""),
    ("grounding", {"span": (1.0, 7.0)}, (), "from 2 to 8", ""),
    ("summary", {"text": "red circle, says one"}, (), f"{THINK}<answer>one red square</answer>", ""),
    ("summary", {"text": "blue square"}, (), "blue square", ""),
    ("caption", {"text": "a cat"}, (), "a dog", ""),
]
"""Task, truth, tags, answer, answer without sound; two items a clip."""


def held_out() -> list[Prompt]:
    prompts = []
    for number, (task, truth, tags, _, _) in enumerate(ASKED):
        made = make_prompt(
            f"c{number // 2}/{number}", task=task, question=f"{task}?", answer=str(truth.get("text", "")),
            truth=truth, media=make_media(f"clip-{number // 2}"), tags=tags,
        )  # fmt: skip
        prompts.append(replace(made, sample=replace(made.sample, instruction="general")))
    return prompts


class Scripted:
    """A sampler that gives the answers of the list."""

    def __init__(self, model: Any, **_: Any) -> None:
        self.model = model

    def sample(self, prompts: Sequence[Prompt], **_: Any) -> list[Group]:
        return [Group(prompt=prompt, completions=(self._answer(prompt),)) for prompt in prompts]

    def _answer(self, prompt: Prompt) -> Completion:
        heard, unheard = ASKED[int(prompt.key.rpartition("/")[2])][3:]
        ids = torch.zeros(1, dtype=torch.int64)
        text = heard if prompt.media[0].has_audio else unheard
        return Completion(ids=ids, logprobs=ids.float(), finished=True, text=text)


PINNED = {
    "format_valid": (0.4117647058823529, 0.17622549019607844, 0.6879595588235295, 0.0, 17),
    "grounding_miou": (0.4047619047619048, 0.35714285714285715, 0.5, 0.6555555555555556, 3),
    "grounding_miou_constant": (0.6555555555555556, 0.5833333333333334, 0.8, 0.6555555555555556, 3),
    "mcq_accuracy": (0.5, 0.0, 1.0, 0.375, 4),
    "speech_qa": (0.6666666666666666, 0.5, 1.0, 0.6666666666666666, 3),
    "speech_qa_audio_zeroed": (0.6666666666666666, 0.0, 1.0, 0.6666666666666666, 3),
    "summary_f1": (0.7857142857142857, 0.019642857142857184, 0.9946428571428572, 0.5, 2),  # of one clip
    "transcript_token_error": (0.42857142857142855, 0.0, 0.6, 0.42857142857142855, 3),
}
"""Metric -> value, low, high, chance, n; written down when tasks did not grade themselves yet."""
SCORES = {
    "format_valid": [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0],
    "grounding_miou": [0.5, 0.0, 5 / 7],
    "grounding_miou_constant": [0.8, 1 / 3, 5 / 6],
    "mcq_accuracy": [1.0, 0.0, 1.0, 0.0],
    "speech_qa": [1.0, 0.0, 1.0],
    "speech_qa_audio_zeroed": [0.0, 1.0, 1.0],
    "summary_f1": [4 / 7, 1.0],
    "transcript_token_error": [1.0, 2.0, 0.0],
}
WEIGHTS = {"transcript_token_error": [3.0, 2.0, 2.0]}


def test_the_same_answers_have_the_same_figures_to_the_digit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(evaluation, "InProcessSampler", Scripted)
    found = evaluation.evaluate(
        make_model(),
        held_out(),
        tokenizer=tokenizer(),
        settings=EvaluationSettings(metrics=[name for name in metric_names() if name in PINNED], bootstrap=200),
        output=tmp_path / "predictions.jsonl",
    )
    assert {name: tuple(asdict(metric).values()) for name, metric in found.items()} == PINNED
    rows = list(read_predictions(tmp_path / "predictions.jsonl"))
    for metric, scores in SCORES.items():
        mine = [row for row in rows if row.metric == metric]
        assert [row.score for row in mine] == scores
        assert [row.weight for row in mine] == WEIGHTS.get(metric, [1.0] * len(mine))
    truths = {row.key: row.truth for row in rows if row.metric != "format_valid"}
    assert (truths["c0/0"], truths["c3/7"], truths["c5/11"]) == ("red blue green", "B", [2.0, 6.0])
