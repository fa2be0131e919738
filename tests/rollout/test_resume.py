"""A run that is cut between two updates of one rollout goes on with the completions that the older weights gave."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from arcvideo.feed.prompts import StepPrompts
from arcvideo.rollout.held import from_json, hold, restore_group, to_json
from arcvideo.rollout.source import RolloutSource
from tests.rollout.test_source import SETTINGS, likely_end, train_step
from tests.rollout.world import Engine, make_model, make_prompts, placed, tokenizer

AGAIN = replace(SETTINGS, num_iterations=3, drop_zero_variance=True, max_refills=1)


class Prompts:
    """The same four prompts every time, counted as a data source counts them."""

    def prompts(self, step: int, *, count: int) -> StepPrompts:
        return StepPrompts(prompts=placed(make_prompts(), step=step, count=count), counts={"seen": {"clips": count}})


class Twins(Prompts):
    """As two sources about the same clips give them: every key twice in a step, behind it another clip or question."""

    def prompts(self, step: int, *, count: int) -> StepPrompts:
        twins = [replace(prompt, sample=replace(prompt.sample, key="clip/0")) for prompt in make_prompts()]
        return StepPrompts(prompts=placed(twins, step=step, count=count))


def make_source(model: Any, *, prompts: Prompts | None = None) -> RolloutSource:
    likely_end(model)
    return RolloutSource(prompts or Prompts(), engine=Engine(model=model), tokenizer=tokenizer(), settings=AGAIN)


def through_a_file(state: Any) -> Any:
    """As a checkpoint keeps it."""
    return json.loads(json.dumps(state))


@pytest.mark.parametrize("kind", [Prompts, Twins])
def test_a_run_cut_between_two_updates_continues_bit_for_bit(kind: type[Prompts]) -> None:
    source = make_source(make_model(), prompts=kind())
    for step in range(2):
        train_step(source, source.batches(step), lr=0.3)
    held, weights = through_a_file(source.held(2)), copy.deepcopy(source.engine.model.state_dict())
    data = source.batches(2)
    expected = data.batches

    other = make_source(make_model(), prompts=kind())  # the reference is the parent's again
    other.engine.model.load_state_dict(weights)
    other.take(held)
    resumed = other.batches(2)
    found = resumed.batches

    assert len(found) == len(expected)
    for here, there in zip(found, expected, strict=True):
        assert torch.equal(here.input_ids, there.input_ids)
        for name in ("old_logprobs", "ref_logprobs", "advantages", "loss_mask"):
            assert torch.equal(here.extra[name], there.extra[name]), name
    assert resumed.metrics == data.metrics
    assert resumed.counts == data.counts == {}  # these prompts were counted before the checkpoint
    train_step(source, data, lr=0.3)
    train_step(other, resumed, lr=0.3)
    for step in (3, 4):  # the next rollout is sampled anew
        pairs = zip(source.batches(step).batches, other.batches(step).batches, strict=True)
        assert all(torch.equal(one.target_ids, two.target_ids) for one, two in pairs)


def test_without_the_held_completions_the_step_would_differ() -> None:
    source = make_source(make_model())
    train_step(source, source.batches(0), lr=0.3)
    weights = copy.deepcopy(source.engine.model.state_dict())
    old = torch.cat([batch.extra["old_logprobs"] for batch in source.batches(1).batches])
    other = make_source(make_model())
    other.engine.model.load_state_dict(weights)
    other.take({})
    with pytest.raises(ValueError, match="before the first update"):  # the gate notices: these are not rollout 0's
        assert not torch.equal(torch.cat([batch.extra["old_logprobs"] for batch in other.batches(1).batches]), old)


def test_a_prompt_whose_completions_are_not_in_the_checkpoint_is_refused_by_name() -> None:
    source = make_source(make_model())
    source.batches(0)
    held = source.held(1)
    del held["2"]
    other = make_source(make_model())
    other.take(held)
    with pytest.raises(ValueError, match=r"no completions of prompt 2 \(b/0\).*quarantine\.jsonl"):
        other.batches(1)


def test_a_checkpoint_after_the_last_update_of_a_rollout_holds_nothing() -> None:
    source = make_source(make_model())
    for step in range(3):
        source.batches(step)
        assert bool(source.held(step + 1)) == (step < 2)


def test_held_completions_pass_through_json() -> None:
    source = make_source(make_model())
    source.batches(0)
    group = next(iter(source._held.values()))
    assert group.old
    again = from_json(through_a_file(to_json(group)))
    for one, two in zip(
        (*group.ids, *group.logprobs, *group.old), (*again.ids, *again.logprobs, *again.old), strict=True
    ):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)


def test_a_restored_group_reads_like_the_sampled_one() -> None:
    source = make_source(make_model())
    prompt = make_prompts()[3]
    [group] = source._sampler.sample([prompt], num_generations=3, settings=source._sampling, seeds=[0])
    again = restore_group(hold(group), prompt=prompt, tokenizer=tokenizer())
    assert [c.text for c in again.completions] == [c.text for c in group.completions]
    assert [c.finished for c in again.completions] == [c.finished for c in group.completions]
