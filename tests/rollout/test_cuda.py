"""What only a GPU can show: shared prompts equal full copies there too, and what sharing saves at real widths.

Speeds are printed (`pytest -m gpu -s tests/rollout/test_cuda.py`), never asserted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from arcvideo.model.configuration import ArcVideoConfig
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.settings import ModelSettings, TextSettings
from arcvideo.objectives.logprobs import token_logprobs
from arcvideo.sampling.sampler import InProcessSampler
from arcvideo.sampling.settings import Sampling
from arcvideo.types import Batch, Segments
from tests.rollout.test_group_exactness import apart, completions, copies, gradients, logits, packed
from tests.rollout.world import SETTINGS, make_model, make_prompts, tokenizer

pytestmark = pytest.mark.gpu
PROMPT, COMPLETION, GROUP = 7300, 500, 8
"""A clip of a minute, an answer of the length the paper reports, the usual group."""


def seconds(run: Callable[[], object], *, rounds: int = 3) -> float:
    """Median after one round of warming up."""
    found = []
    for number in range(rounds + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if number:
            found.append(time.perf_counter() - began)
    return sorted(found)[rounds // 2]


@pytest.mark.parametrize("attention", ["sdpa", "flex_attention"])
def test_shared_rows_equal_full_copies_on_the_gpu(attention: str) -> None:
    prompts = make_prompts()
    groups = completions(prompts)
    whole, rows = packed(prompts, groups).to("cuda"), [row.to("cuda") for row in copies(prompts, groups)]
    weights = torch.randn(len(whole.target_ids), generator=torch.Generator().manual_seed(1)).cuda()
    found = []
    for batches in ([whole], rows):
        model = make_model(width=32).cuda()  # FlexAttention compiles no narrower heads than 16
        model.set_attn_implementation(attention)
        for row, part in zip(batches, weights.split([len(row.target_ids) for row in batches]), strict=True):
            (token_logprobs(logits(model, row), target_ids=row.target_ids, temperature=1.0) * part).sum().backward()
        found.append(gradients(model))
    assert apart(*found) < 1e-5


def slice_of_7b(layers: int) -> ArcVideoForConditionalGeneration:
    """The released widths and vocabulary, fewer layers, bf16; the towers are tiny, nothing here runs them."""
    text = replace(TextSettings(), num_hidden_layers=layers)
    settings = ModelSettings(text=text, vision=SETTINGS.vision, audio=SETTINGS.audio, audio_pooling=10)
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = ArcVideoForConditionalGeneration(ArcVideoConfig.from_settings(settings)).bfloat16()
    model.requires_grad_(False)
    model.language_model.requires_grad_(True)
    return model.train()


def row_of(ids: Tensor, *, starts: list[int], parents: list[int], positions: Tensor, predicts: Tensor) -> Batch:
    return Batch(
        input_ids=ids,
        position_ids=positions.expand(4, -1),
        segments=Segments(starts=torch.tensor(starts), parents=torch.tensor(parents)),
        media=(),
        target_positions=predicts,
        target_ids=torch.arange(len(predicts)) % 1000,
        target_weights=torch.ones(len(predicts)),
        target_samples=torch.zeros(len(predicts), dtype=torch.int64),
        keys=("g",),
        tasks=("mcq",),
    ).to("cuda")


def test_the_shared_update_at_real_widths() -> None:
    model = slice_of_7b(4)
    model.activation_checkpointing = "full"
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(10, 90_000, (PROMPT,), generator=generator)
    answers = torch.randint(10, 90_000, (GROUP, COMPLETION), generator=generator)
    begins = [PROMPT + COMPLETION * number for number in range(GROUP)]
    tail, branch = torch.arange(PROMPT, PROMPT + COMPLETION), torch.arange(COMPLETION - 1)
    shared = row_of(
        torch.cat([prompt, answers.flatten()]),
        starts=[0, *begins, PROMPT + COMPLETION * GROUP],
        parents=[-1] + [0] * GROUP,
        positions=torch.cat([torch.arange(PROMPT), tail.repeat(GROUP)]),
        predicts=torch.cat([torch.cat([torch.tensor([PROMPT - 1]), begin + branch]) for begin in begins]),
    )
    single = [
        row_of(
            torch.cat([prompt, answer]),
            starts=[0, PROMPT + COMPLETION],
            parents=[-1],
            positions=torch.arange(PROMPT + COMPLETION),
            predicts=torch.arange(PROMPT - 1, PROMPT + COMPLETION - 1),
        )
        for answer in answers
    ]

    def update(rows: list[Batch]) -> Tensor:
        found = []
        for row in rows:
            logprobs = token_logprobs(logits(model, row), target_ids=row.target_ids, temperature=1.0)
            logprobs.sum().backward()
            found.append(logprobs.detach())
        model.zero_grad()
        return torch.cat(found)

    for row, own in zip(single, shared.target_ids.split(COMPLETION), strict=True):
        row.target_ids.copy_(own)
    gap = (update([shared]) - update(single)).abs()
    assert float(gap.mean()) < 0.05  # bf16
    ours, theirs = seconds(lambda: update([shared])), seconds(lambda: update(single))
    print(f"\nshared update, P={PROMPT} C={COMPLETION} G={GROUP}, 4 layers: {ours:.3f} s, copies {theirs:.3f} s, "
          f"{theirs / ours:.2f}x; mean log-prob gap {float(gap.mean()):.2g}")  # fmt: skip


@pytest.mark.parametrize("decode", ["dynamic", "static", "cuda_graph"])
def test_tokens_per_second_against_generate(decode: str) -> None:
    model = make_model().cuda().eval()
    prompt = make_prompts()[0]
    sampling = Sampling(max_new_tokens=256, decode=decode, temperature=1.0)
    sampler = InProcessSampler(model, tokenizer=tokenizer())
    drawn: list[Any] = []

    def ours() -> None:
        drawn[:] = sampler.sample([prompt], num_generations=GROUP, settings=sampling, seeds=[0])

    def theirs() -> Tensor:
        return model.generate(
            prompt.input_ids.cuda().repeat(GROUP, 1),
            position_ids=prompt.position_ids.cuda().repeat(GROUP, 1, 1),
            media=prompt.media * GROUP,
            do_sample=True,
            max_new_tokens=256,
        )

    took = seconds(ours)
    count = sum(len(completion.ids) for completion in drawn[0].completions)
    generated = theirs()
    other = seconds(theirs)
    assert count > 0
    assert generated.shape[0] == GROUP
    rate, base = count / took, GROUP * (generated.shape[1] - prompt.length) / other
    print(
        f"\nrollout, {decode}, G={GROUP}, tiny model: {rate:.0f} tokens/s, model.generate at most {base:.0f} tokens/s"
    )
