from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from arcvideo.objectives.settings import GrpoSettings
from arcvideo.rollout.rewards.loading import load_reward
from arcvideo.rollout.rewards.score import Scores, score
from arcvideo.sampling.groups import Completion, Group
from tests.rollout.world import make_media, make_prompt


def group(key: str, *texts: str, **prompt: Any) -> Group:
    ids = torch.zeros(1, dtype=torch.int64)
    completions = tuple(Completion(ids=ids, logprobs=ids.float(), finished=True, text=text) for text in texts)
    return Group(prompt=make_prompt(key, **prompt), completions=completions)


MCQ = group("m/0", "<think>x</think><answer>A</answer>", "B")
SPAN = group(
    "g/0",
    "<think>x</think><answer>00:00:02 - 00:00:06</answer>",
    "00:00:04 - 00:00:06",
    "never",
    task="grounding",
    truth={"span": (2.0, 6.0)},
)


def test_each_task_is_scored_by_its_own_reward_with_weights() -> None:
    scores = score(
        [MCQ, SPAN], settings=GrpoSettings(rewards={"mcq_accuracy": 1.0, "temporal_iou": 2.0, "format": 0.5})
    )
    assert scores.total.tolist() == [1.5, 0.0, 2.5, 1.0, 0.0]
    nan = math.nan
    torch.testing.assert_close(scores.parts["mcq_accuracy"], torch.tensor([1, 0, nan, nan, nan]), equal_nan=True)
    torch.testing.assert_close(scores.parts["temporal_iou"], torch.tensor([nan, nan, 1, 0.5, 0]), equal_nan=True)
    assert scores.parts["format"].tolist() == [1, 0, 1, 0, 0]


def test_a_task_can_have_rewards_of_its_own() -> None:
    speech = group("s/0", "<think>x</think><answer>one</answer>", "one", task="asr", truth={"text": "one"})
    settings = GrpoSettings(rewards={"mcq_accuracy": 2.0}, task_rewards={"asr": {"format": 0.5}})
    scores = score([MCQ, speech], settings=settings)
    assert scores.total.tolist() == [2.0, 0.0, 0.5, 0.0]
    assert scores.parts["format"].isnan().tolist() == [True, True, False, False]
    with pytest.raises(ValueError, match=r"task 'asr'.*grpo\.task_rewards\.asr"):
        score([speech], settings=GrpoSettings(rewards={"mcq_accuracy": 2.0}))


def test_a_users_reward_gets_the_columns_and_is_called_by_its_path() -> None:
    scores = score([MCQ, SPAN], settings=GrpoSettings(rewards={f"{__name__}:counts_columns": 1.0}))
    assert scores.total.tolist() == [1.0] * 5


def counts_columns(completions: list[str], **columns: Any) -> list[float]:
    assert callable(columns.pop("log_extra"))
    assert {"prompts", "completion_ids", "key", "task", "duration", "letter", "options", "span"} == set(columns)
    assert all(len(values) == len(completions) for values in columns.values())
    assert columns["key"] == ["m/0", "m/0", "g/0", "g/0", "g/0"]
    assert columns["span"][0] is None
    return [1.0] * len(completions)


def with_fields(found: Group, **fields: Any) -> Group:
    return replace(found, prompt=replace(found.prompt, sample=replace(found.prompt.sample, fields=fields)))


def test_a_reward_gets_every_field_of_an_item_and_the_truth_and_the_rollout_win() -> None:
    one = with_fields(MCQ, difficulty=3, letter="wrong", key="wrong", question="q")
    scores = score([one, SPAN], settings=GrpoSettings(rewards={f"{__name__}:reads_fields": 1.0}))
    assert scores.total.tolist() == [3.0, 3.0, 0.0, 0.0, 0.0]


def reads_fields(completions: list[str], *, difficulty: list[int | None], **columns: Any) -> list[float]:
    assert columns["letter"][0] == "A"
    assert columns["key"][0] == "m/0"
    assert columns["question"] == ["q", "q", None, None, None]
    return [float(value or 0) for value in difficulty]


def test_an_async_reward_is_awaited_and_its_error_names_the_sample() -> None:
    scores = score([MCQ], settings=GrpoSettings(rewards={f"{__name__}:asks_two_judges": 1.0}))
    assert scores.total.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match=r"failed on sample m/0.*no judge"):
        score([MCQ], settings=GrpoSettings(rewards={f"{__name__}:has_no_judge": 1.0}))


async def asks_two_judges(completions: list[str], **columns: Any) -> list[float]:
    met = asyncio.Event()

    async def judge(number: int) -> float:
        # The first one waits for the second: they answer side by side or never.
        if number == 0:
            await asyncio.wait_for(met.wait(), timeout=60)
        met.set()
        return number + 1.0

    return list(await asyncio.gather(*(judge(number) for number in range(len(completions)))))


async def has_no_judge(completions: list[str], **columns: Any) -> list[float]:
    raise RuntimeError("no judge")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("think_format_reward", [1.0, 0.0]),
        ("get_soft_overlong_punishment(max_completion_len=2, soft_punish_cache=1)", [0.0, -1.0]),
        ("trl.rewards:get_soft_overlong_punishment(max_completion_len=2, soft_punish_cache=1)", [0.0, -1.0]),
        ("get_repetition_penalty_reward(ngram_size=1, max_penalty=-1.0)", [0.0, pytest.approx(-2 / 3)]),
    ],
)
def test_trl_rewards_work_by_name(name: str, expected: list[float]) -> None:
    made = group("m/0", "<think>a</think>\nB", "b b")
    longer = replace(made.completions[1], ids=torch.zeros(3, dtype=torch.int64))
    scores = score(
        [replace(made, completions=(made.completions[0], longer))], settings=GrpoSettings(rewards={name: 1.0})
    )
    assert scores.total.tolist() == expected


def test_notes_say_what_was_read_and_why_not() -> None:
    odd = group("g/1", "00:00:06 - 00:00:02", "", task="grounding", truth={"span": (2.0, 6.0)})
    scores = score([MCQ, SPAN, odd], settings=GrpoSettings())
    assert scores.notes["mcq_accuracy"]["read"] == ["A", "B", *[None] * 5]
    spans = scores.notes["temporal_iou"]
    assert spans["read"] == [None, None, "2 - 6 s", "4 - 6 s", None, None, None]
    assert spans["problem"][4:] == ["no time range", "reversed span 6 - 2 s", "empty answer"]
    failures = scores.parse_failures()
    assert failures["temporal_iou"][2:].tolist() == [0, 0, 1, 1, 1]
    assert failures["temporal_iou"][:2].isnan().all()


def test_the_duration_of_the_clip_is_a_column() -> None:
    prompt = make_prompt("g/0", task="grounding", truth={"span": (0.0, 1.0)}, media=make_media("clip", frames=4))
    made = Group(prompt=prompt, completions=group("g/0", "00:00:00 - 00:00:02").completions)
    scores = score([made], settings=GrpoSettings(rewards={"temporal_iou_edges": 1.0}))
    assert scores.total.tolist() == [0.5 * 0.75]


def test_the_edges_of_a_long_clip_are_measured_against_its_whole_length() -> None:
    """Above 300 s sound and frames are thinned out: 150 frames stand for these 1,200 s."""
    long = make_media("clip", frames=2)
    prompt = make_prompt("g/0", task="grounding", truth={"span": (600.0, 700.0)}, media=replace(long, seconds=300))
    made = Group(prompt=replace(prompt, duration=1200.0), completions=group("g/0", "00:08:20 - 00:11:40").completions)
    scores = score([made], settings=GrpoSettings(rewards={"temporal_iou_edges": 1.0}))
    assert scores.total.tolist() == [pytest.approx(0.5 * (1 - 100 / 1200))]


def fails_on_empty(completions: list[str], **columns: Any) -> list[float]:
    return [1 / len(text) for text in completions]


def too_short(completions: list[str], **columns: Any) -> list[float]:
    return [1.0]


def not_a_number(completions: list[str], **columns: Any) -> list[float]:
    return [math.nan] * len(completions)


def abstains(completions: list[str], **columns: Any) -> list[float | None]:
    return [None] * len(completions)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails_on_empty", "failed on sample m/1.*ZeroDivisionError"),
        ("too_short", "1 scores for 3 completions"),
        ("not_a_number", "returned nan for sample m/0"),
        ("abstains", "no reward.*applies to sample m/0 of task 'mcq'"),
    ],
)
def test_a_broken_reward_stops_with_the_sample_named(name: str, message: str) -> None:
    groups = [MCQ, group("m/1", "")]
    with pytest.raises(ValueError, match=message):
        score(groups, settings=GrpoSettings(rewards={f"{__name__}:{name}": 1.0}))


def test_a_completion_nobody_scores_has_no_reward_but_its_group_goes_on() -> None:
    scores = score([MCQ], settings=GrpoSettings(rewards={f"{__name__}:scores_the_first": 1.0}))
    assert scores.total[0] == 1.0
    assert scores.total[1].isnan()


def scores_the_first(completions: list[str], **columns: Any) -> list[float | None]:
    return [1.0] + [None] * (len(completions) - 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("soft_overlong", r"takes arguments, for example soft_overlong\(max_length"),
        ("soft_overlong(max_length=1)", "cannot be made"),
        ("soft_overlong(max_length=1, cache=2)", "cache=2"),
        ("temporal_recall(threshold=2)", "threshold=2"),
        ("temporal_recall(0.5)", "cannot be read"),
        ("temporal_recall(threshold=open('x'))", "cannot be read"),
        ("repetition(ngram=0)", "ngram=0"),
        ("format(strict=True)", "takes no arguments"),
    ],
)
def test_arguments_that_cannot_work_are_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_reward(name)


@pytest.mark.parametrize("name", ["accuracy", "nowhere.module:f", f"{__name__}:missing", f"{__name__}:MCQ"])
def test_an_unknown_reward_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"grpo\.rewards"):
        load_reward(name)


def test_scores_are_plain_data() -> None:
    assert isinstance(score([MCQ], settings=GrpoSettings(rewards={"format": 1.0})), Scores)
