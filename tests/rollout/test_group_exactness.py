"""A packed row of groups (prompt once, branches behind it) against G separate full copies of prompt and completion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from arcvideo.feed.collate import collate_groups
from arcvideo.feed.prompts import Prompt
from arcvideo.objectives.grpo import Grpo, completion_weights
from arcvideo.objectives.logprobs import token_logprobs
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.types import Batch, Segments, model_inputs
from tests.rollout.world import make_model, make_prompts

GROUP = 4
SETTINGS = GrpoSettings(num_generations=GROUP, beta=0.1, epsilon=0.2, temperature=0.9)


def completions(prompts: Sequence[Prompt], *, seed: int = 0) -> list[list[list[int]]]:
    """Random completions of different length."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (len(prompts), GROUP), generator=generator).tolist()
    return [[torch.randint(5, 200, (length,), generator=generator).tolist() for length in group] for group in lengths]


def packed(prompts: Sequence[Prompt], groups: list[list[list[int]]]) -> Batch:
    lengths = torch.tensor([len(ids) for group in groups for ids in group])
    weights = completion_weights(lengths, counted=torch.ones(len(lengths)), loss_type="grpo").view(-1, GROUP)
    return collate_groups(prompts, completions=groups, weights=weights.tolist(), specials=prompts[0].specials)


def copies(prompts: Sequence[Prompt], groups: list[list[list[int]]]) -> list[Batch]:
    """One row for each completion: the prompt with its media again, then the completion, in one plain segment."""
    rows = []
    for prompt, group in zip(prompts, groups, strict=True):
        for number, completion in enumerate(group):
            ids = torch.tensor(completion)
            start, end = prompt.length, prompt.length + len(ids)
            rows.append(
                Batch(
                    input_ids=torch.cat([prompt.input_ids, ids]),
                    position_ids=torch.cat([prompt.position_ids, torch.arange(start, end).expand(4, -1)], dim=1),
                    segments=Segments(starts=torch.tensor([0, end], dtype=torch.int32), parents=torch.tensor([-1])),
                    media=prompt.media,
                    target_positions=torch.arange(start - 1, end - 1),
                    target_ids=ids,
                    target_weights=torch.full((len(ids),), 1.0 / len(ids)),
                    target_samples=torch.zeros(len(ids), dtype=torch.int64),
                    keys=(f"{prompt.key}#{number}",),
                    tasks=(prompt.task,),
                )
            )
    return rows


def logits(model: Any, batch: Batch) -> Tensor:
    return model(**model_inputs(batch)).logits


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found
    return found


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Norm of the difference over the norm, of all tensors as one vector."""
    difference = sum(float((one[name].double() - other[name].double()).square().sum()) for name in other)
    return (difference / sum(float(value.double().square().sum()) for value in other.values())) ** 0.5


def exact_logprobs(model: Any, batch: Batch) -> Tensor:
    """(T,) in the dtype of the model; `token_logprobs` rounds to fp32."""
    chosen = logits(model, batch).log_softmax(-1)
    return chosen.gather(1, batch.target_ids[:, None])[:, 0]


def test_logprobs_equal_full_copies_in_float64() -> None:
    model, prompts = make_model().double(), make_prompts()
    groups = completions(prompts)
    with torch.no_grad():
        shared = exact_logprobs(model, packed(prompts, groups))
        separate = torch.cat([exact_logprobs(model, row) for row in copies(prompts, groups)])
    assert shared.dtype == torch.float64
    torch.testing.assert_close(shared, separate, rtol=0, atol=1e-10)


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_gradients_of_every_tensor_equal_full_copies_in_float64(recompute: str) -> None:
    prompts = make_prompts()
    groups = completions(prompts)
    whole = packed(prompts, groups)
    weights = torch.randn(len(whole.target_ids), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = []
    for rows in ([whole], copies(prompts, groups)):
        model = make_model().double().train()
        model.activation_checkpointing = recompute
        for row, part in zip(rows, weights.split([len(row.target_ids) for row in rows]), strict=True):
            (exact_logprobs(model, row) * part).sum().backward()
        found.append(gradients(model))
    shared, separate = found
    for name, truth in separate.items():
        assert apart({name: shared[name]}, {name: truth}) < 1e-12, name


@pytest.mark.parametrize("recompute", ["none", "full"])
def test_the_update_equals_that_of_full_copies_in_fp32(recompute: str) -> None:
    prompts = make_prompts()
    groups = completions(prompts)
    generator = torch.Generator().manual_seed(1)
    advantages = torch.randn(len(prompts) * GROUP, generator=generator)
    rows, whole = copies(prompts, groups), packed(prompts, groups)
    shared, separate = make_model().train(), make_model().train()
    shared.activation_checkpointing = separate.activation_checkpointing = recompute
    with torch.no_grad():
        base = token_logprobs(logits(shared, whole), target_ids=whole.target_ids, temperature=SETTINGS.temperature)
    old, ref = base + 0.1 * torch.randn(2, len(base), generator=generator)

    extra = {"advantages": advantages, "old_logprobs": old, "ref_logprobs": ref}
    total = Grpo(SETTINGS)(logits(shared, whole), replace(whole, extra=extra)).total
    total.backward()

    begin, summed = 0, 0.0
    for number, row in enumerate(rows):
        part = slice(begin, begin + len(row.target_ids))
        extra = {"advantages": advantages[number : number + 1], "old_logprobs": old[part], "ref_logprobs": ref[part]}
        loss = Grpo(SETTINGS)(logits(separate, row), replace(row, extra=extra)).total
        loss.backward()
        summed, begin = summed + float(loss.detach()), part.stop

    assert float(total.detach()) == pytest.approx(summed, rel=1e-5)
    assert apart(gradients(shared), gradients(separate)) < 1e-6
