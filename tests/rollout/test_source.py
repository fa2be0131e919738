from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvideo.feed.prompts import StepPrompts
from arcvideo.objectives.grpo import Grpo
from arcvideo.objectives.scores import forward_of, loss_of
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.rollout.rewards.builtin import answer_format
from arcvideo.rollout.source import RolloutSource
from arcvideo.sampling.sampler import stop_ids
from arcvideo.types import Batch, StepData, model_inputs
from tests.rollout.world import Engine, make_model, make_prompts, placed, tokenizer
from tests.sampling.test_sampler import likely_end

SETTINGS = GrpoSettings(
    num_generations=4,
    num_prompts=4,
    prompts_per_batch=2,
    max_completion_length=10,
    temperature=1.2,
    rewards={f"{__name__}:length": 1.0, "format": 0.5},
)


def length(completions: list[str], **columns: Any) -> list[float]:
    """Varies within every group, unlike the accuracy of a model with random weights."""
    return [len(text) / 10 for text in completions]


class Prompts:
    """The same four prompts every step."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def prompts(self, step: int, *, count: int) -> StepPrompts:
        self.asked.append(step)
        return StepPrompts(prompts=placed(make_prompts(), step=step, count=count), counts={"seen": {"clips": 4}})


def make_source(settings: GrpoSettings = SETTINGS, **options: Any) -> RolloutSource:
    model = make_model()
    likely_end(model)
    return RolloutSource(Prompts(), engine=Engine(model=model), tokenizer=tokenizer(), settings=settings, **options)


def train_step(source: RolloutSource, data: StepData, *, lr: float = 0.05) -> tuple[float, dict[str, float]]:
    """What the Runner does: one division by the step's weight; returns loss and metrics."""
    batches = data.batches
    model, objective = source.engine.model, Grpo(source.settings)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    weight = sum(float(batch.target_weights.sum()) for batch in batches)
    total, sums = 0.0, {}
    for batch in batches:
        loss = loss_of(objective, batch, run=forward_of(model))
        (loss.total / weight).backward()
        total += float(loss.total.detach()) / weight
        for name, (value, count) in loss.metrics.items():
            old = sums.get(name, (0.0, 0.0))
            sums[name] = (old[0] + float(value), old[1] + float(count))
    optimizer.step()
    return total, {name: value / count for name, (value, count) in sums.items() if count} | dict(data.metrics)


def policy_logits(model: Any, batch: Batch) -> Any:
    return model(**model_inputs(batch)).logits


def test_the_first_update_starts_at_ratio_one_and_kl_zero() -> None:
    source = make_source()
    _, metrics = train_step(source, source.batches(0))
    assert metrics["importance_ratio"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-8)
    assert metrics["rollout/logprob_gap"] < 1e-5
    assert metrics["clip_ratio/region_mean"] == 0.0


def test_an_update_moves_the_policy_away_from_the_reference_and_raises_the_reward() -> None:
    source = make_source(replace(SETTINGS, beta=0.001, num_generations=16))
    rewards = []
    for step in range(12):
        _, metrics = train_step(source, source.batches(step), lr=0.3)
        rewards.append(metrics["reward"])
    assert metrics["kl"] > 1e-3
    assert rewards[-1] > 2 * rewards[0]


def test_one_packed_row_per_prompts_per_batch_with_each_prompt_once() -> None:
    batches = make_source().batches(0).batches
    assert len(batches) == 2
    first = batches[0]
    assert first.segments.parents.tolist() == [-1, 0, 0, 0, 0, -1, 5, 5, 5, 5]
    assert len(first.media) == 2
    assert first.media[0].patches is not None  # encoded once; no update runs the towers again
    assert first.media[0].pixels is None
    assert len(first.keys) == 8
    assert first.tasks[4] == "grounding"


def test_advantages_are_centred_per_group_and_weights_average_completions() -> None:
    batch = make_source().batches(0).batches[0]
    gains = batch.extra["advantages"].view(2, 4)
    torch.testing.assert_close(gains.mean(dim=1), torch.zeros(2), atol=1e-5, rtol=0)
    assert float(batch.target_weights.sum()) == pytest.approx(8.0)
    dapo = make_source(replace(SETTINGS, loss_type="dapo")).batches(0).batches[0]
    assert float(dapo.target_weights.sum()) == len(dapo.target_ids)


def test_a_task_can_count_less() -> None:
    whole, half = (
        make_source(replace(SETTINGS, task_weights=weights)).batches(0).batches[0].extra["advantages"]
        for weights in ({}, {"grounding": 0.5})
    )
    torch.testing.assert_close(half, whole * torch.tensor([1.0] * 4 + [0.5] * 4))
    with pytest.raises(ValueError, match="names task 'grouding'"):
        make_source(replace(SETTINGS, task_weights={"grouding": 0.5}))


def test_metrics_have_trls_names_and_values() -> None:
    source = make_source()
    data = source.batches(0)
    batches = data.batches
    _, metrics = train_step(source, data)
    lengths = torch.cat([torch.bincount(batch.target_samples) for batch in batches]).float()
    assert metrics["completions/mean_length"] == pytest.approx(float(lengths.mean()))
    assert 0 < metrics["completions/clipped_ratio"] < 1
    assert metrics[f"rewards/{__name__}:length/mean"] > 0
    assert {"reward", "reward_std", "frac_reward_zero_std", "entropy", "completions/mean_terminated_length"} <= set(
        metrics
    )


def test_iterations_reuse_the_completions_and_then_the_ratio_moves() -> None:
    source = make_source(replace(SETTINGS, num_iterations=2))
    first = source.batches(0)
    train_step(source, first, lr=0.5)
    again = source.batches(1)
    assert all(
        torch.equal(there.target_ids, here.target_ids) for there, here in zip(first.batches, again.batches, strict=True)
    )
    assert "rollout/seconds/decode" in first.metrics
    assert "rollout/seconds/decode" not in again.metrics  # nothing was sampled for this update
    _, metrics = train_step(source, again)
    assert abs(metrics["importance_ratio"] - 1.0) > 1e-5
    assert metrics["kl"] > 0
    source.batches(2)
    assert source.source.asked == [0, 1]


def test_asking_for_a_step_twice_gives_the_same_rollout() -> None:
    source = make_source()
    assert source.batches(0).batches is source.batches(0).batches
    again = make_source().batches(0).batches
    assert torch.equal(again[0].target_ids, source.batches(0).batches[0].target_ids)
    other = make_source(seed=1).batches(0).batches
    assert not torch.equal(other[0].target_ids, again[0].target_ids) or len(other[0].target_ids) != len(
        again[0].target_ids
    )


def test_the_same_prompt_twice_in_a_step_draws_different_completions() -> None:
    source = make_source(replace(SETTINGS, num_generations=8))
    twice = placed([make_prompts()[0]] * 4, step=0, count=4)
    source.source.prompts = lambda step, *, count: StepPrompts(
        prompts=twice
    )  # one source with weight 4, or a step across epochs
    drawn = completions_of(source.batches(0).batches)
    assert len({tuple(ids) for ids in drawn}) > 8 * 3  # sampled tokens may coincide now and then, whole groups do not
    assert len({tuple(tuple(ids) for ids in drawn[start : start + 8]) for start in range(0, 32, 8)}) == 4


def completions_of(batches: Sequence[Batch]) -> list[list[int]]:
    """The token ids of every completion."""
    return [
        ids.tolist()
        for batch in batches
        for ids in batch.target_ids.split(torch.bincount(batch.target_samples).tolist())
    ]


def test_completions_depend_on_the_place_of_a_prompt_and_not_on_what_else_is_asked() -> None:
    whole = make_source()
    drawn = completions_of(whole.batches(0).batches)
    alone = make_source(replace(SETTINGS, require_reward_spread=False))
    third = placed(make_prompts(), step=0, count=4)[2:3]  # the others could not be read
    alone.source.prompts = lambda step, *, count: StepPrompts(prompts=third)
    assert completions_of(alone.batches(0).batches)[:4] == drawn[8:12]


def test_without_beta_no_reference_is_kept_or_run() -> None:
    source = make_source(replace(SETTINGS, beta=0.0))
    assert source._reference is None
    assert "ref_logprobs" not in source.batches(0).batches[0].extra


def test_the_reference_shares_the_towers_and_copies_what_trains() -> None:
    source = make_source()
    model, reference = source.engine.model, source._reference
    assert reference is not None
    assert reference.vision_model is model.vision_model
    assert reference.speech_encoder is model.speech_encoder
    ours, theirs = model.language_model.lm_head.weight, reference.language_model.lm_head.weight
    assert ours is not theirs
    assert reference.language_model.model.embed_tokens.weight is theirs  # still tied
    assert not theirs.requires_grad


def test_truncated_completions_can_be_left_out() -> None:
    data = make_source(replace(SETTINGS, mask_truncated_completions=True)).batches(0)
    batch = data.batches[0]
    mask = batch.extra["loss_mask"]
    lengths = torch.bincount(batch.target_samples)
    last = torch.stack([ids[-1] for ids in batch.target_ids.split(lengths.tolist())])
    cut = ~torch.isin(last, torch.tensor(sorted(stop_ids(tokenizer()))))
    assert mask.bool().tolist() == (~cut[batch.target_samples]).tolist()
    assert cut.any()
    assert data.metrics["completions/clipped_ratio"] > 0
    assert int(lengths.max()) == 10


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo", "bnpo"])
def test_nothing_is_learned_from_completions_that_are_left_out(loss_type: str) -> None:
    settings = replace(SETTINGS, loss_type=loss_type, mask_truncated_completions=True, beta=0.5)
    source = make_source(settings)
    learned, left_out = 0, 0
    for batch in source.batches(0).batches:
        logits = policy_logits(source.engine.model, batch).detach().requires_grad_()
        moved = replace(batch, extra={**batch.extra, "old_logprobs": batch.extra["old_logprobs"] - 0.1})
        loss = Grpo(settings)(logits, moved)
        loss.total.backward()
        norms = logits.grad.norm(dim=1)
        kept = batch.extra["loss_mask"].bool()
        assert not norms[~kept].any()  # neither the reward's gradient nor the KL's
        learned, left_out = learned + int((norms[kept] > 0).sum()), left_out + int((~kept).sum())
        assert float(loss.metrics["entropy"][1]) == float(kept.sum())
    assert learned
    assert left_out


def test_groups_without_spread_can_be_dropped_but_rows_stay_as_many() -> None:
    equal = replace(SETTINGS, rewards={"format": 1.0}, require_reward_spread=False)
    kept, dropped = (
        make_source(equal).batches(0).batches,
        make_source(replace(equal, drop_zero_variance=True)).batches(0).batches,
    )
    assert len(kept) == len(dropped) == 2
    assert [len(batch.keys) for batch in kept] == [8, 8]
    assert [len(batch.keys) for batch in dropped] == [4, 4]
    assert not dropped[0].extra["advantages"].any()


@pytest.mark.parametrize("readable", [0, 1, 3])
def test_prompts_that_could_not_be_read_leave_empty_rows(monkeypatch: pytest.MonkeyPatch, readable: int) -> None:
    source = make_source()
    monkeypatch.setattr(
        source.source,
        "prompts",
        lambda step, *, count: StepPrompts(prompts=placed(make_prompts(), step=step, count=readable)),
    )
    batches = source.batches(0).batches
    assert [len(batch.target_weights.nonzero()) > 0 for batch in batches] == [readable > 0, readable > 2]
    run = forward_of(source.engine.model)
    losses = [loss_of(Grpo(SETTINGS), batch, run=run).total.detach() for batch in batches]
    assert all(loss.isfinite() for loss in losses)
    assert float(sum(losses)) == pytest.approx(0.0, abs=1e-4)  # centred advantages at ratio one


def test_batch_scaling_uses_the_spread_of_the_whole_batch() -> None:
    source = make_source(replace(SETTINGS, scale_rewards="batch"))
    batches = source.batches(0).batches
    texts = [
        tokenizer().decode(ids.tolist(), skip_special_tokens=True)
        for batch in batches
        for ids in batch.target_ids.split(torch.bincount(batch.target_samples).tolist())
    ]
    valid = answer_format(texts)
    rewards = torch.tensor(length(texts)) + 0.5 * torch.tensor(valid, dtype=torch.float32)
    gains = torch.cat([batch.extra["advantages"] for batch in batches])
    centred = (rewards.view(-1, 4) - rewards.view(-1, 4).mean(dim=1, keepdim=True)).flatten()
    torch.testing.assert_close(gains, centred / (rewards.std() + 1e-4))


def test_a_sampler_that_disagrees_with_the_trainer_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source()
    real = source._sampler.sample

    def off(*arguments: Any, **options: Any) -> Any:
        groups = real(*arguments, **options)
        bad = replace(groups[0].completions[1], logprobs=groups[0].completions[1].logprobs - 1.0)
        return [
            replace(groups[0], completions=(groups[0].completions[0], bad, *groups[0].completions[2:])),
            *groups[1:],
        ]

    monkeypatch.setattr(source._sampler, "sample", off)
    with pytest.raises(ValueError, match=r"max_logprob_gap=0\.05 nats about .*by 1 nats about one of a/0#1"):
        source.batches(0)


@pytest.mark.parametrize("wrong", [1.0, float("nan")])
def test_one_odd_token_is_left_out_of_the_loss_and_counted(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    plain, source = make_source().batches(0), make_source()
    real = source._sampler.sample

    def off(*arguments: Any, **options: Any) -> Any:
        groups = real(*arguments, **options)
        logprobs = groups[0].completions[1].logprobs.clone()
        logprobs[2] -= wrong
        bad = replace(groups[0].completions[1], logprobs=logprobs)
        completions = (groups[0].completions[0], bad, *groups[0].completions[2:])
        return [replace(groups[0], completions=completions), *groups[1:]]

    monkeypatch.setattr(source._sampler, "sample", off)
    data = source.batches(0)
    assert (data.metrics["rollout/logprob_outliers"], plain.metrics["rollout/logprob_outliers"]) == (1.0, 0.0)
    masks = [torch.cat([batch.extra["loss_mask"] for batch in one.batches]) for one in (data, plain)]
    (place,) = (masks[0] != masks[1]).nonzero().flatten().tolist()
    samples = data.batches[0].target_samples
    assert place == int((samples == 1).nonzero()[0]) + 2
    assert masks[0][place] == 0


def test_a_reference_that_is_not_the_parent_stops_the_run() -> None:
    source = make_source()
    with torch.no_grad():
        source.engine.model.language_model.lm_head.weight.mul_(1.5)
    with pytest.raises(ValueError, match="policy and reference differ"):
        source.batches(0)


def test_an_unknown_reward_fails_before_anything_is_sampled() -> None:
    with pytest.raises(ValueError, match="accurate"):
        make_source(replace(SETTINGS, rewards={"accurate": 1.0}))


def test_sample_rollouts_are_written_for_people(tmp_path: Path) -> None:
    source = make_source(log=tmp_path / "run" / "rollouts.jsonl")
    source.batches(0)
    shown = source.batches(1).samples
    make_source(log=tmp_path / "run" / "rollouts.jsonl").batches(0)  # starts again: replaces both steps
    rows = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert len(rows) == SETTINGS.log_completions
    assert rows[0]["key"] == "a/0"
    assert rows[4]["truth"] == {"span": [0.0, 1.0]}
    assert set(rows[0]["rewards"]) == {f"{__name__}:length", "format"}
    assert rows[0]["notes"]["format"] == {"problem": "not <think>..</think><answer>..</answer>"}
    assert rows[4]["span"] is None  # nothing readable was said
    assert [row["completion"] for row in shown][:4] != [row["completion"] for row in rows][:4]
    assert (tmp_path / "run" / "rollouts.png").exists()


def test_a_step_tells_what_it_was_handed_and_its_repetition_nothing() -> None:
    source = make_source(replace(SETTINGS, num_iterations=2))
    first, again = source.batches(0), source.batches(1)
    assert first.counts == {"seen": {"clips": 4}}
    assert first.samples
    assert (again.counts, list(again.samples)) == ({}, [])
    assert source.batches(0).counts == first.counts  # whoever looked ahead gets the step as it is
