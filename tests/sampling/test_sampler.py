from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from arcvideo.sampling.sampler import InProcessSampler, decode_on
from arcvideo.sampling.settings import Sampling
from tests.rollout.world import full_logprobs, make_model, make_prompts, tokenizer

WARM = Sampling(max_new_tokens=12, temperature=1.3)


@pytest.fixture(scope="module")
def model() -> Any:
    """Ends a completion after about ten tokens, so that rows leave the batch at different times."""
    made = make_model()
    likely_end(made)
    return made


def likely_end(model: Any) -> None:
    """Let a model end its completions soon: by a bias of its head, which is none of its parameters."""
    head = model.language_model.lm_head
    bias = torch.zeros(len(head.weight))
    bias[tokenizer().eos_token_id] = 5.0
    del head.bias
    head.bias = bias


@pytest.fixture(scope="module")
def sampler(model: Any) -> InProcessSampler:
    return InProcessSampler(model, tokenizer=tokenizer())


def test_logprobs_equal_one_plain_forward_per_completion(model: Any, sampler: InProcessSampler) -> None:
    groups = sampler.sample(make_prompts(), num_generations=3, settings=WARM, seeds=[5] * 4)
    for group in groups:
        for completion in group.completions:
            expected = full_logprobs(model, prompt=group.prompt, ids=completion.ids, temperature=1.3)
            torch.testing.assert_close(completion.logprobs, expected, atol=2e-5, rtol=1e-5)


def test_greedy_equals_argmax_of_plain_forwards(model: Any, sampler: InProcessSampler) -> None:
    prompt = make_prompts()[2]
    greedy = Sampling(max_new_tokens=6, temperature=0)
    completion = sampler.sample([prompt], num_generations=1, settings=greedy, seeds=[0])[0].completions[0]
    banned = torch.tensor(sorted(sampler.banned_ids))
    ids = torch.zeros(0, dtype=torch.int64)
    for expected in completion.ids:
        whole = torch.cat([prompt.input_ids, ids])
        positions = torch.cat([prompt.position_ids, torch.arange(prompt.length, len(whole)).expand(4, -1)], dim=1)
        with torch.no_grad():
            logits = model(input_ids=whole, position_ids=positions, media=prompt.media).logits[-1]
        assert int(logits.index_fill(0, banned, -torch.inf).argmax()) == int(expected)
        ids = torch.cat([ids, expected[None]])


def test_a_rollout_does_not_depend_on_the_rest_of_the_batch(sampler: InProcessSampler) -> None:
    prompts = make_prompts()
    together = sampler.sample(prompts, num_generations=4, settings=WARM, seeds=[7] * 4)
    for prompt, group in zip(prompts, together, strict=True):
        alone = sampler.sample([prompt], num_generations=4, settings=WARM, seeds=[7])[0]
        small = sampler.sample([prompt], num_generations=2, settings=WARM, seeds=[7])[0]
        texts = [completion.text for completion in group.completions]
        assert texts == [completion.text for completion in alone.completions]
        assert texts[:2] == [completion.text for completion in small.completions]
    chunked = sampler.sample(prompts, num_generations=4, settings=replace(WARM, batch_prompts=2), seeds=[7] * 4)
    assert [g.completions[3].text for g in chunked] == [g.completions[3].text for g in together]


def test_seeds_and_generations_differ(sampler: InProcessSampler) -> None:
    prompt = make_prompts()[0]
    first, second = (sampler.sample([prompt], num_generations=2, settings=WARM, seeds=[seed])[0] for seed in (1, 2))
    texts = {completion.text for group in (first, second) for completion in group.completions}
    assert len(texts) >= 3


def test_rows_stop_at_the_end_token_and_only_there(sampler: InProcessSampler) -> None:
    groups = sampler.sample(
        make_prompts(), num_generations=16, settings=replace(WARM, max_new_tokens=40), seeds=[3] * 4
    )
    completions = [completion for group in groups for completion in group.completions]
    assert any(completion.finished for completion in completions)
    for completion in completions:
        ends = [int(token) in sampler.stop_ids for token in completion.ids]
        assert not any(ends[:-1])
        assert completion.finished == ends[-1]
        assert completion.finished or len(completion.ids) == 40
        assert len(completion.logprobs) == len(completion.ids)


def test_special_tokens_are_never_sampled(model: Any, sampler: InProcessSampler) -> None:
    likely = make_model(seed=1)
    special = torch.tensor(sorted(sampler.banned_ids))
    with torch.no_grad():  # image and separator tokens get the largest logits
        head = likely.language_model.lm_head.weight
        head.copy_(torch.randn_like(head) * 0.02)
        head[special] += 1.0
    groups = InProcessSampler(likely, tokenizer=tokenizer()).sample(
        make_prompts(), num_generations=4, settings=WARM, seeds=[0] * 4
    )
    sampled = {int(token) for group in groups for completion in group.completions for token in completion.ids}
    names = {
        tokenizer().convert_tokens_to_ids(name) for name in ("<IMG_CONTEXT>", "<img>", "<vid>", "<sep>", "<newline>")
    }
    assert names <= sampler.banned_ids
    assert not sampled & sampler.banned_ids


def test_clips_are_encoded_once_for_all_their_prompts(model: Any, sampler: InProcessSampler) -> None:
    frames: list[int] = []
    hook = model.vision_model.vit.register_forward_hook(lambda module, args, output: frames.append(len(args[0])))
    try:
        sampler.sample(make_prompts(), num_generations=8, settings=replace(WARM, max_new_tokens=3), seeds=[0] * 4)
    finally:
        hook.remove()
    assert sum(frames) == 5  # two frames of the first clip, three of the second, though three prompts ask about them


@pytest.mark.parametrize("decode", ["static", pytest.param("cuda_graph", marks=pytest.mark.gpu)])
def test_other_ways_to_decode_give_the_same_completions(model: Any, sampler: InProcessSampler, decode: str) -> None:
    device = "cuda" if decode == "cuda_graph" else "cpu"
    model.to(device)
    try:
        plain, other = (
            sampler.sample(make_prompts(), num_generations=3, settings=replace(WARM, decode=kind), seeds=[5] * 4)
            for kind in ("dynamic", decode)
        )
    finally:
        model.to("cpu")
    for one, two in zip(plain, other, strict=True):
        assert [c.ids.tolist() for c in one.completions] == [c.ids.tolist() for c in two.completions]
        for first, second in zip(one.completions, two.completions, strict=True):
            torch.testing.assert_close(first.logprobs, second.logprobs, atol=2e-5, rtol=1e-5)


def test_a_graph_without_a_gpu_is_refused(sampler: InProcessSampler) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, but the model is tested on the CPU")
    with pytest.raises(ValueError, match="needs the model on a GPU"):
        sampler.sample(make_prompts(), num_generations=4, settings=replace(WARM, decode="cuda_graph"), seeds=[0] * 4)


def test_a_gpu_replays_graphs_unless_another_way_is_asked_for() -> None:
    ways = {device: decode_on(device, decode="auto") for device in ("cuda", "cpu")}
    assert ways == {"cuda": "cuda_graph", "cpu": "dynamic"}
    assert decode_on("cuda", decode="static") == "static"


def test_a_stop_string_ends_a_completion_and_only_that_one(sampler: InProcessSampler) -> None:
    prompts, free = make_prompts(), replace(WARM, max_new_tokens=20)
    plain = sampler.sample(prompts, num_generations=4, settings=free, seeds=[7] * 4)
    texts = [completion.text for group in plain for completion in group.completions]
    stop = next(text for text in texts if len(text) > 8)[3:6]
    stopped = sampler.sample(prompts, num_generations=4, settings=replace(free, stop=[stop]), seeds=[7] * 4)
    ended = 0
    for one, two in zip(plain, stopped, strict=True):
        for whole, cut in zip(one.completions, two.completions, strict=True):
            assert whole.ids.tolist()[: len(cut.ids)] == cut.ids.tolist()
            if stop in whole.text:
                ended += 1
                assert cut.finished
                assert stop in cut.text
                assert stop not in sampler.tokenizer.decode(cut.ids[:-1].tolist(), skip_special_tokens=True)
            else:
                assert len(cut.ids) == len(whole.ids)
    assert ended >= 1


def test_seconds_are_counted(sampler: InProcessSampler) -> None:
    before = dict(sampler.seconds)
    sampler.sample(make_prompts()[:1], num_generations=1, settings=replace(WARM, max_new_tokens=2), seeds=[0])
    assert all(sampler.seconds[name] > before[name] for name in ("prefill", "decode"))


def test_the_model_is_left_in_the_mode_it_was_in(model: Any, sampler: InProcessSampler) -> None:
    model.train()
    sampler.sample(make_prompts()[:1], num_generations=1, settings=replace(WARM, max_new_tokens=1), seeds=[0])
    assert model.training
    model.eval()


def test_a_tokenizer_without_end_token_is_refused() -> None:
    class Endless:
        def get_vocab(self) -> dict[str, int]:
            return {"a": 0}

    with pytest.raises(ValueError, match="could never end"):
        InProcessSampler(make_model(), tokenizer=Endless())
