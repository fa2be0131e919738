"""What a run refuses to start with, and that the message names the matter and the remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from arcvideo.model.towers.features import FeatureStore, tower_digest
from arcvideo.rollout.gates import check_media, check_sampler, clipped_warning
from arcvideo.rollout.measure import Report
from tests.rollout.test_source import SETTINGS, make_source, train_step
from tests.rollout.world import SETTINGS as MODEL
from tests.rollout.world import make_prompts


def test_rewards_that_never_vary_refuse_the_run_and_say_what_each_gave() -> None:
    source = make_source(replace(SETTINGS, rewards={"format": 1.0, "temporal_iou": 1.0}))
    with pytest.raises(ValueError, match=r"no reward varies .*format 0 to 0 \(16 of 16 unreadable\)") as refused:
        source.batches(0)
    assert "temporal_iou 0 to 0" in str(refused.value)
    assert "raise grpo.temperature" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_only_the_first_rollout_is_held_to_it() -> None:
    source = make_source(replace(SETTINGS, rewards={"format": 1.0}))
    assert len(source.batches(1).batches) == 2


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "bnpo"])
def test_when_everything_is_cut_off_the_first_rollout_refuses_and_later_ones_teach_nothing(loss_type: str) -> None:
    settings = replace(SETTINGS, loss_type=loss_type, mask_truncated_completions=True, max_completion_length=2, beta=0)
    source = make_source(settings)
    source._sampler.stop_ids = frozenset({-1})  # no answer ever ends
    with pytest.raises(ValueError, match=r"all 16 completions .*max_completion_length=2.*raise the length"):
        source.batches(0)
    loss, _ = train_step(source, source.batches(1))
    assert loss == 0.0


def test_many_completions_cut_off_are_told_once_with_the_remedies() -> None:
    source = make_source(replace(SETTINGS, clipped_warning=0.25, max_completion_length=3))
    first, *later = (source.batches(step).notes for step in range(3))
    assert later == [(), ()]
    (told,) = first
    assert "were cut off at grpo.max_completion_length=3" in told
    for remedy in ("raise the length", "grpo.stop", "grpo.mask_truncated_completions=true", "grpo.clipped_warning"):
        assert remedy in told


@pytest.mark.parametrize("bound", [0.5, 1.0])
def test_as_many_as_the_bound_allows_are_not_told(bound: float) -> None:
    report = report_of(finished=[True, False])
    assert clipped_warning(report, settings=replace(SETTINGS, clipped_warning=bound)) is None
    told = clipped_warning(report, settings=replace(SETTINGS, clipped_warning=0.49, mask_truncated_completions=True))
    assert told is not None
    assert "50% of 2 completions" in told
    assert "set grpo.mask_truncated_completions" not in told  # it is set already


def test_a_bound_that_is_no_share_is_refused() -> None:
    with pytest.raises(ValueError, match=r"grpo\.clipped_warning=50 is a share"):
        replace(SETTINGS, clipped_warning=50)


def report_of(*, finished: list[bool]) -> Report:
    """Completions that differ in nothing else."""
    ones = torch.ones(len(finished))
    return Report(
        tasks=["mcq"] * len(finished), total=ones, spread=ones, parts={}, failures={}, lengths=ones,
        finished=torch.tensor(finished), seconds={},
    )  # fmt: skip


@pytest.mark.parametrize("cut", [3, 7])
def test_a_prompt_whose_media_were_cut_is_refused(cut: int) -> None:
    whole = make_prompts()
    check_media(whole, sizes=MODEL)
    short = replace(whole[2], prefix_ids=whole[2].prefix_ids[:-cut])
    with pytest.raises(
        ValueError, match=r"b/0: the prompt holds \d+ media tokens but its frames fill \d+.*token_budget"
    ):
        check_media([whole[0], short], sizes=MODEL)


def counted(model: Any) -> tuple[list[int], list[int]]:
    """Frames and audio chunks of every call of the towers from now on."""
    frames: list[int] = []
    chunks: list[int] = []
    model.vision_model.vit.register_forward_pre_hook(lambda module, inputs: frames.append(len(inputs[0])))
    model.speech_encoder.register_forward_pre_hook(lambda module, inputs: chunks.append(len(inputs[0])))
    return frames, chunks


def test_the_towers_run_once_a_clip_and_step() -> None:
    source = make_source(replace(SETTINGS, beta=0.1, num_iterations=2))
    frames, chunks = counted(source.engine.model)
    for step in range(2):  # two clips of 2 and 3 frames, four prompts, 16 completions, policy, reference, two updates
        train_step(source, source.batches(step))
    assert (frames, chunks) == ([5], [3])


def test_the_towers_do_not_run_when_their_outputs_are_stored(tmp_path: Path) -> None:
    model = make_source().engine.model
    towers = (model.vision_model.vit, model.speech_encoder)
    store = FeatureStore(tmp_path, tower_digest(towers, settings=model.settings))
    make_source(features=store).batches(0)
    source = make_source(features=store)
    frames, chunks = counted(source.engine.model)
    train_step(source, source.batches(0))
    assert (frames, chunks) == ([], [])


def test_chance_outliers_pass_and_a_disagreement_does_not() -> None:
    (batch,) = make_source(replace(SETTINGS, prompts_per_batch=4)).batches(0).batches
    repeated = [batch] * (2000 // len(batch.target_ids) + 1)
    gaps = [torch.zeros(len(batch.target_ids)) for batch in repeated]
    gaps[0][:2] = 0.4
    settings = replace(SETTINGS, max_logprob_gap=0.3)
    check_sampler(repeated, gaps, settings=settings)
    with pytest.raises(ValueError, match=r"max_logprob_gap=0\.3 .* about 2 of"):
        check_sampler(repeated, gaps, settings=replace(settings, max_logprob_outliers=0))
    for gap in gaps:
        gap[0] = 0.4
    with pytest.raises(ValueError, match=r"max_logprob_outliers=0\.001"):
        check_sampler(repeated, gaps, settings=settings)
