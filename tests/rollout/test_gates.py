"""What a run refuses to start with, and that the message names the matter and the remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

from arcvideo.rollout.gates import check_media
from tests.rollout.test_source import SETTINGS, make_source
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
    assert len(source.batches(1)) == 2


@pytest.mark.parametrize("cut", [3, 7])
def test_a_prompt_whose_media_were_cut_is_refused(cut: int) -> None:
    whole = make_prompts()
    check_media(whole, tokens_per_frame=MODEL.tokens_per_frame)
    short = replace(whole[2], prefix_ids=whole[2].prefix_ids[:-cut])
    with pytest.raises(
        ValueError, match=r"b/0: the prompt holds \d+ media tokens but its frames fill \d+.*token_budget"
    ):
        check_media([whole[0], short], tokens_per_frame=MODEL.tokens_per_frame)


def test_the_towers_run_once_a_clip_and_step() -> None:
    source = make_source(replace(SETTINGS, beta=0.1))
    frames: list[int] = []
    chunks: list[int] = []
    model = source.engine.model

    def count(seen: list[int]) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:
            seen.append(len(inputs[0]))

        return hook

    model.vision_model.vit.register_forward_pre_hook(count(frames))
    model.speech_encoder.register_forward_pre_hook(count(chunks))
    batches = source.batches(0)  # two clips of 2 and 3 frames behind four prompts, 16 completions, policy and reference
    assert (sum(frames), sum(chunks)) == (5, 3)
    assert (len(frames), len(chunks)) == (1, 1)
    for batch in batches:
        model(input_ids=batch.input_ids, position_ids=batch.position_ids, segments=batch.segments, media=batch.media,
              target_positions=batch.target_positions).logits.sum().backward()  # fmt: skip
    assert (sum(frames), sum(chunks)) == (5, 3)
