from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvideo.evaluation.evaluate import ask_all, without_audio
from arcvideo.evaluation.figures import arms_of, choose
from arcvideo.evaluation.predictions import read_predictions, read_scores
from arcvideo.evaluation.settings import EvaluationSettings, metric_names
from arcvideo.feed.prompts import Prompt
from arcvideo.sampling.groups import Completion, Group
from tests.evaluation import asked as evaluation
from tests.evaluation.asked import evaluate
from tests.rollout.world import SETTINGS, make_media, make_model, make_prompt, tokenizer

ITEMS = 6
SMALL = EvaluationSettings(max_new_tokens=4, bootstrap=50, batch_prompts=8)


def held_out(*, instruction: str = "none") -> list[Prompt]:
    prompts = []
    for number in range(ITEMS):
        clip = make_media(f"clip-{number}")
        asked: dict[str, tuple[str, str, dict[str, Any], tuple[str, ...]]] = {
            "asr": ("Transcribe the speech.", "red blue", {"text": "red blue"}, ()),
            "qa": ("Which is heard?", "one", {"text": "one" if number % 3 else "two"}, ("needs:audio", "topic:speech")),
            "mcq": ("Which colour?\nA.red\nB.blue", "A", {"letter": "AB"[number % 2], "options": ("red", "blue")}, ()),
            "grounding": ("When is it heard?", "", {"span": (0.0, 1.0 + number % 2)}, ()),
        }
        for task, (question, answer, truth, tags) in asked.items():
            made = make_prompt(
                f"c{number}/{task}", task=task, question=question, answer=answer, truth=truth, media=clip, tags=tags
            )
            prompts.append(replace(made, sample=replace(made.sample, instruction=instruction)))
    return prompts


class Oracle:
    """A sampler that knows the answers, unless the sound is gone."""

    def __init__(self, model: Any, **_: Any) -> None:
        self.model = model

    def sample(self, prompts: Sequence[Prompt], **_: Any) -> list[Group]:
        return [Group(prompt=prompt, completions=(self._answer(prompt),)) for prompt in prompts]

    def _answer(self, prompt: Prompt) -> Completion:
        truth = prompt.truth
        if prompt.task == "grounding":
            text = f"00:00:00 - 00:00:0{int(truth['span'][1])}"
        else:
            text = truth.get("letter") or truth["text"]
        if not prompt.media[0].has_audio:
            text = "silence"
        ids = torch.zeros(1, dtype=torch.int64)
        return Completion(ids=ids, logprobs=ids.float(), finished=True, text=f"<think>x</think><answer>{text}</answer>")


def test_prompts_are_read_as_they_are_asked_and_not_held() -> None:
    prompts, read = held_out(), []
    chosen = choose([prompt.outline for prompt in prompts], settings=SMALL)
    answers = ask_all(
        (read.append(prompt.key) or prompt for prompt in prompts),
        sampler=Oracle(make_model()),
        wanted=arms_of(chosen),
        numbers={prompt.key: number for number, prompt in enumerate(prompts)},
        settings=SMALL,
    )
    assert next(answers)
    assert len(read) < len(prompts) / 2, "eight questions are asked at a time, of clips that have four"
    assert sum(map(len, answers)) > 0
    assert len(read) == len(prompts)


def test_a_perfect_model_scores_perfectly_and_chance_is_what_guessing_gives(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(evaluation, "InProcessSampler", Oracle)
    model = make_model()
    found = evaluate(
        model, held_out(instruction="mcq"), tokenizer=tokenizer(), settings=SMALL, output=tmp_path / "predictions.jsonl"
    )
    assert list(found) == list(metric_names(on_request=False))
    values = {name: metric.value for name, metric in found.items()}
    assert values["transcript_token_error"] == 0.0
    assert values["speech_qa"] == values["mcq_accuracy"] == values["grounding_miou"] == values["format_valid"] == 1.0
    assert values["speech_qa_audio_zeroed"] == 0.0
    assert values["grounding_miou_constant"] == found["grounding_miou"].chance == 0.75
    assert found["mcq_accuracy"].chance == 0.5
    assert found["speech_qa"].chance == found["speech_qa_audio_zeroed"].chance == pytest.approx(4 / 6)
    assert found["mcq_accuracy"].n == ITEMS
    assert found["format_valid"].n == 4 * ITEMS
    assert set(asdict(found["speech_qa"])) == {"value", "low", "high", "chance", "n"}
    assert all(metric.low <= metric.value <= metric.high for metric in found.values())
    rows = list(read_predictions(tmp_path / "predictions.jsonl"))
    assert len(rows) == sum(metric.n for metric in found.values())
    assert read_scores(tmp_path / "predictions.jsonl", metric="mcq_accuracy")["c0/mcq"].score == 1.0
    with pytest.raises(ValueError, match="no predictions of nonsense"):
        read_scores(tmp_path / "predictions.jsonl", metric="nonsense")


def test_summaries_are_scored_by_the_words_they_share_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "InProcessSampler", Oracle)
    texts = ["red circle", "red circle", "blue square, says one"]
    prompts = [
        make_prompt(f"c{number}/0", task="summary", truth={"text": text}, media=make_media(f"clip-{number}"))
        for number, text in enumerate(texts)
    ]
    found = evaluate(make_model(), prompts, tokenizer=tokenizer(), settings=replace(SMALL, metrics=["summary_f1"]))
    assert found["summary_f1"].value == 1.0
    assert found["summary_f1"].chance == pytest.approx(2 / 3)


def test_a_real_model_is_evaluated_the_same_way_twice() -> None:
    model = make_model()
    first = evaluate(model, held_out(), tokenizer=tokenizer(), settings=SMALL)
    assert first == evaluate(model, held_out(), tokenizer=tokenizer(), settings=replace(SMALL, batch_prompts=3))
    assert "format_valid" not in first  # nobody asked for the format


def test_prompts_chosen_before_they_are_made_give_the_same_figures() -> None:
    everything = held_out(instruction="mcq")
    settings = replace(SMALL, items=3)
    chosen = choose([prompt.outline for prompt in everything], settings=settings)
    wanted = {key for keys in chosen.values() for key in keys}
    some = [prompt for prompt in everything if prompt.key in wanted]
    assert len(some) < len(everything)
    model = make_model()
    found = evaluate(model, some, tokenizer=tokenizer(), chosen=chosen, settings=settings)
    assert found == evaluate(model, everything, tokenizer=tokenizer(), settings=settings)


def test_metrics_without_items_are_left_out_and_no_item_at_all_is_an_error(tmp_path: Path) -> None:
    only_mcq = [prompt for prompt in held_out() if prompt.task == "mcq"]
    settings = replace(SMALL, items=2)
    found = evaluate(make_model(), only_mcq, tokenizer=tokenizer(), settings=settings, output=tmp_path / "p.jsonl")
    assert list(found) == ["mcq_accuracy"]
    assert found["mcq_accuracy"].n == 2
    assert [row.key for row in read_predictions(tmp_path / "p.jsonl")] == ["c0/mcq", "c3/mcq"]  # spread over the set
    with pytest.raises(ValueError, match="has an item"):
        evaluate(make_model(), [], tokenizer=tokenizer(), settings=SMALL)


def test_without_audio_zeroes_what_the_encoder_reads_and_keeps_the_picture() -> None:
    prompt = held_out()[0]
    silent = without_audio(prompt, audio=SETTINGS.audio).media[0]
    assert not silent.has_audio
    assert silent.mel is not None
    assert silent.mel.shape == prompt.media[0].mel.shape
    assert not silent.mel.any()
    assert silent.pixels is prompt.media[0].pixels
    encoded = replace(prompt.media[0], mel=None, speech=torch.ones(1, 100, 16))
    again = without_audio(replace(prompt, media=(encoded,)), audio=SETTINGS.audio).media[0]
    assert again.speech is None
    assert again.mel is not None
    assert again.mel.shape == silent.mel.shape


@pytest.mark.parametrize(("key", "value"), [("metrics", ["speed"]), ("style", "loud"), ("batch_prompts", 0)])
def test_bad_settings_name_the_key(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"evaluation.{key}"):
        EvaluationSettings(**{key: value})
