"""The head scores targets by itself: what all logits would say, which then never exist."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as nnf
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from arcvideo.model.arc_hunyuan import head as heads
from arcvideo.model.arc_hunyuan.head import Head, exact_logits, score
from arcvideo.model.disk.lora import add_adapters
from arcvideo.model.families.table import FAMILIES, parts_of
from arcvideo.model.settings import LoraSettings
from arcvideo.objectives.scores import Ask, Scores
from arcvideo.preflight.trace import META, Held
from tests.model.small import SETTINGS, SPECIAL, Row, small_model, text

TARGETS, WIDTH, WORDS = 50, 16, 37
FIGURES = ("right", "entropy", "mean_logit")
BLOCKS = {"one block": 1 << 25, "four blocks": 11 * TARGETS}  # of eleven words, and one of four
"""Name -> `AT_ONCE`."""


@pytest.fixture(params=BLOCKS)
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(heads, "AT_ONCE", BLOCKS[request.param])
    return request.param


def problem(dtype: torch.dtype, *, bias: bool = False) -> tuple[Head, Tensor, Tensor, Tensor]:
    """A head, hidden states, targets, and what the log-probabilities are multiplied by."""
    torch.manual_seed(0)
    head = Head(WIDTH, WORDS, bias=bias).to(dtype)
    hidden = (4 * torch.randn(TARGETS, WIDTH)).to(dtype).requires_grad_()
    return head, hidden, torch.randint(0, WORDS, (TARGETS,)), torch.randn(TARGETS).double()


def exactly(
    head: Head, hidden: Tensor, *, ask: Ask, pull: Tensor
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Scores, gradients and the slope of the logits by the formulas, of all logits in fp64."""
    inputs = {"hidden": hidden, **dict(head.named_parameters())}
    inputs = {name: value.detach().double().requires_grad_() for name, value in inputs.items()}
    plain = nnf.linear(inputs["hidden"], inputs["weight"], inputs.get("bias"))
    logits = plain / ask.temperature
    logits.retain_grad()
    logs = logits.log_softmax(-1)
    logprobs = logs.gather(1, ask.ids[:, None])[:, 0]
    (logprobs * pull).sum().backward()
    values = {
        "logprobs": logprobs,
        "right": (logits.argmax(-1) == ask.ids).double(),
        "entropy": -(logs.exp() * logs).sum(-1),
        "mean_logit": plain.mean(-1),
    }
    gradients = {name: value.grad for name, value in inputs.items()}
    return {name: value.detach() for name, value in values.items()}, gradients, logits.grad


def bounds(head: Head, hidden: Tensor, *, ask: Ask, exact: torch.dtype, slope: Tensor, pull: Tensor) -> dict[str, Any]:
    """How far rounding in `exact` may carry each result from the formulas.

    A logit is a sum of products, rounded once more for each term and by bias and temperature. A softmax's sum of V
    exponentials, its logarithm and the differences around it add as many roundings of numbers below the largest
    logit's distance. A slope is off by the relative error of its exponential.
    """
    eps = torch.finfo(exact).eps
    sizes, rows = hidden.detach().double().abs(), head.weight.detach().double().abs()
    terms = (sizes @ rows.t() / ask.temperature).amax() + 1
    logit = (WIDTH + 4) * eps * terms
    logprob = 2 * logit + (WORDS + 8) * eps * terms
    slopes = slope.abs() + pull.abs()[:, None] * (2 * logprob + 8 * eps)
    off = (pull.abs()[:, None] * (2 * logprob + 8 * eps)) / ask.temperature
    back = slopes / ask.temperature
    return {
        "logprobs": logprob,
        "entropy": 2 * terms * logprob,
        "mean_logit": logit * ask.temperature + (WORDS + 2) * eps * terms * ask.temperature,
        "hidden": (off + (WORDS + 4) * eps * back) @ rows,
        "weight": (off + (TARGETS + 4) * eps * back).t() @ sizes,
        "bias": (off + (TARGETS + 4) * eps * back).sum(0),
    }


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_scores_and_gradients_are_those_of_all_logits(
    cut: str, dtype: torch.dtype, temperature: float, bias: bool
) -> None:
    head, hidden, ids, pull = problem(dtype, bias=bias)
    ask = Ask(ids=ids, temperature=temperature, figures=FIGURES)
    exact = torch.promote_types(dtype, torch.float32)
    scores = Scores.of(score(head, hidden, ask=ask, words=WORDS), ask)
    (scores.logprobs * pull.to(exact)).sum().backward()
    values, gradients, slope = exactly(head, hidden, ask=ask, pull=pull)
    allowed = bounds(head, hidden, ask=ask, exact=exact, slope=slope, pull=pull)
    for name in ("logprobs", "entropy", "mean_logit"):
        found = getattr(scores, name)
        assert found.dtype == exact
        assert ((found.double() - values[name]).abs() <= allowed[name]).all(), name
    assert torch.equal(scores.right.double(), values["right"])
    for name, value in {"hidden": hidden, **dict(head.named_parameters())}.items():
        # What is handed on is rounded once to the type of what it belongs to.
        once = torch.finfo(dtype).eps * gradients[name].abs() if dtype != exact else 0.0
        assert ((value.grad.double() - gradients[name]).abs() <= allowed[name] + once).all(), name


def test_figures_that_nobody_asked_for_are_not_there_and_change_no_bit(cut: str) -> None:
    head, hidden, ids, _ = problem(torch.float32)
    every = Ask(ids=ids, figures=FIGURES)
    for figures in ((), *((name,) for name in FIGURES)):
        ask = replace(every, figures=figures)
        some, all_ = (Scores.of(score(head, hidden, ask=each, words=WORDS), each) for each in (ask, every))
        assert torch.equal(some.logprobs, all_.logprobs)
        for name in FIGURES:
            found = getattr(some, name)
            assert (found is None) == (name not in figures)
            assert found is None or torch.equal(found, getattr(all_, name))


def test_a_frozen_weight_and_frozen_states_get_no_gradient(cut: str) -> None:
    for frozen in ("weight", "hidden"):
        head, hidden, ids, _ = problem(torch.float32)
        (head.weight if frozen == "weight" else hidden).requires_grad_(False)
        score(head, hidden, ask=Ask(ids=ids), words=WORDS)[0].sum().backward()
        assert (head.weight.grad is None, hidden.grad is None) == (frozen == "weight", frozen == "hidden")


def test_no_targets_have_no_scores(cut: str) -> None:
    head, hidden, ids, _ = problem(torch.float32)
    rows = score(head, hidden[:0], ask=Ask(ids=ids[:0], figures=FIGURES), words=WORDS)
    assert rows.shape == (4, 0)
    rows[0].sum().backward()
    assert not head.weight.grad.any()


def test_the_backward_may_run_twice(cut: str) -> None:
    head, hidden, ids, pull = problem(torch.float64)
    total = (score(head, hidden, ask=Ask(ids=ids), words=WORDS)[0] * pull).sum()
    first, second = (torch.autograd.grad(total, [hidden, head.weight], retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_under_autocast_products_are_those_of_rounded_factors(cut: str) -> None:
    head, hidden, ids, pull = problem(torch.float32)
    rounded = Head(WIDTH, WORDS, bias=False)
    rounded.weight = nn.Parameter(head.weight.detach().bfloat16().float())
    states = hidden.detach().bfloat16().float().requires_grad_()
    ask = Ask(ids=ids, figures=FIGURES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = score(head, hidden, ask=ask, words=WORDS)
    expected = score(rounded, states, ask=ask, words=WORDS)
    assert torch.equal(found, expected)
    for rows in (found, expected):
        (rows[0] * pull.float()).sum().backward()
    assert torch.equal(head.weight.grad, rounded.weight.grad)
    assert head.weight.grad.dtype == torch.float32
    assert torch.equal(hidden.grad, states.grad)


def test_scores_of_bf16_are_not_rounded_to_bf16(cut: str) -> None:
    """As logits are; a fifth of a nat is what then parts them from the truth, of logits around thirty."""
    head, hidden, ids, _ = problem(torch.bfloat16)
    with torch.no_grad():
        head.weight.mul_(8)
    ask = Ask(ids=ids)
    truth = exactly(head, hidden, ask=ask, pull=torch.ones(TARGETS).double())[0]["logprobs"]
    rounded = head(hidden).float().log_softmax(-1).gather(1, ids[:, None])[:, 0]
    ours, theirs = (
        (found.double() - truth).abs().max() for found in (score(head, hidden, ask=ask, words=WORDS)[0], rounded)
    )
    assert ours < 1e-3 * theirs


class Largest(TorchDispatchMode):
    """Notes the most numbers that a tensor made by an operator has."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.numbers = max(self.numbers, leaf.numel())
        return result


@pytest.mark.parametrize("other", [False, True])
def test_nothing_as_large_as_all_logits_is_made(monkeypatch: pytest.MonkeyPatch, other: bool) -> None:
    targets, words = 600, 500
    monkeypatch.setattr(heads, "AT_ONCE", targets * words // 8)
    torch.manual_seed(0)
    head = Head(WIDTH, words, bias=False)
    hidden, ids = torch.randn(targets, WIDTH, requires_grad=True), torch.randint(0, words, (targets,))
    whole = nn.Sequential(head) if other else head
    with Largest() as largest:
        score(whole, hidden, ask=Ask(ids=ids, figures=FIGURES), words=words)[0].sum().backward()
    assert largest.numbers <= targets * words // 8


@pytest.mark.parametrize("targets", [4000, 8000])
def test_scoring_holds_blocks_and_gradients(monkeypatch: pytest.MonkeyPatch, targets: int) -> None:
    words, width, block = 8000, 64, 400_000
    monkeypatch.setattr(heads, "AT_ONCE", block)
    with META:
        head = Head(width, words, bias=False, dtype=torch.bfloat16)
        hidden = torch.empty(targets, width, dtype=torch.bfloat16, requires_grad=True)
        ids = torch.empty(targets, dtype=torch.int64)
    held = Held()
    with held:
        score(head, hidden, ask=Ask(ids=ids), words=words)[0].sum().backward()
    states, weight = targets * width, words * width
    # The weight's gradient; that of the states added up in fp32, beside a block's part; a block, and it in bf16.
    assert 2 * weight < held.peak <= 2 * weight + (4 + 4 + 2) * states + (4 + 4 + 2) * block + 100 * targets
    assert held.peak < 2 * targets * words / 4


@pytest.mark.parametrize("targets", [1, 300, 8192, 100_000])
def test_blocks_cover_all_words_once_within_bounds(targets: int) -> None:
    weight = torch.empty(128_167, 4096, device="meta")
    blocks = heads._blocks(targets, weight)
    assert [block.start for block in blocks] == [0, *(block.stop for block in blocks[:-1])]
    assert blocks[-1].stop == len(weight)
    assert max(block.stop - block.start for block in blocks) * max(targets, 4096) <= heads.AT_ONCE


def row_of(model: Any) -> tuple[dict[str, Any], Ask]:
    row = Row()
    parent = row.add(torch.cat([torch.tensor([SPECIAL.start]), text(6, seed=0)]))
    for seed in (1, 2):
        row.add(text(5, seed=seed), parent=parent)
    ids = row.inputs()["input_ids"]
    places = torch.arange(len(ids) - 1)
    return row.inputs() | {"target_positions": places}, Ask(ids=ids[1:], temperature=0.9, figures=FIGURES)


def compared(model: Any, inputs: dict[str, Any], ask: Ask) -> None:
    """Assert that scores and gradients of a model in fp64 are those of its logits."""
    output = model(**inputs, ask=ask)
    assert output.logits is None
    found = Scores.of(output.scores, ask)
    logits = model(**inputs).logits / ask.temperature
    logs = logits.log_softmax(-1)
    expected = logs.gather(1, ask.ids[:, None])[:, 0]
    torch.testing.assert_close(found.logprobs, expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(
        found.entropy, -(logs.exp() * logs).sum(-1).detach(), rtol=0, atol=1e-5
    )  # theirs in fp32
    gradients = []
    for values in (found.logprobs, expected):
        model.zero_grad()
        values.square().sum().backward()
        gradients.append({name: part.grad for name, part in model.named_parameters() if part.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-9, atol=1e-11)


def test_a_model_with_a_tied_head_scores_as_its_logits_say(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(dtype=torch.float64)
    inputs, ask = row_of(model)
    assert model.language_model.lm_head.weight is model.get_input_embeddings().weight
    for at_once in BLOCKS.values():
        monkeypatch.setattr(heads, "AT_ONCE", at_once)
        compared(model, inputs, ask)


def test_an_adapted_head_is_asked_for_logits_some_targets_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(dtype=torch.float64)
    model.language_model.lm_head.weight = nn.Parameter(model.language_model.lm_head.weight.detach().clone())
    settings = LoraSettings(rank=2, targets=["lm_head", "o_proj"])
    add_adapters(model, settings=settings, prefixes=["language_model."])
    inputs, ask = row_of(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.copy_(0.1 * torch.randn_like(parameter))
                parameter.requires_grad_(True)
    calls = [0]
    model.language_model.lm_head.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    words = len(model.language_model.lm_head.weight)
    for at_once in (1 << 25, 5 * words):
        monkeypatch.setattr(heads, "AT_ONCE", at_once)
        compared(model, inputs, ask)
    rows = -(-len(ask.ids) // 5)
    assert calls[0] == (1 + 1) + (2 * rows + 1)  # once more in the backward, and once for all logits


def test_a_head_whose_weight_is_of_another_kind_is_asked_for_logits() -> None:
    class Quantised(nn.Parameter):
        """Stands for weights that cannot be cut."""

    head, hidden, ids, _ = problem(torch.float32)
    ask = Ask(ids=ids)
    expected = score(head, hidden, ask=ask, words=WORDS)
    head.weight = Quantised(head.weight.detach())
    asked: list[Any] = []
    head.register_forward_pre_hook(lambda module, inputs, words: asked.append(words), with_kwargs=True)
    torch.testing.assert_close(score(head, hidden, ask=ask, words=WORDS), expected)
    assert asked == [{}]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_head_that_scores(family: str) -> None:
    assert type(parts_of(family).language(SETTINGS).lm_head) is Head


def test_a_grown_vocabulary_keeps_a_head_that_scores() -> None:
    model = small_model(dtype=torch.float64)
    model.resize_token_embeddings(80)
    assert type(model.language_model.lm_head) is Head
    inputs, ask = row_of(model)
    compared(model, inputs, ask)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("how", ["bf16", "autocast", "fp32"])
@pytest.mark.usefixtures("cut")
def test_logits_to_sample_from_are_those_that_scores_are_made_of(how: str, bias: bool) -> None:
    """A sampler whose logits are rounded to half precision disagrees with the trainer by up to an eighth of a nat."""
    head, hidden, ids, _ = problem(torch.bfloat16 if how == "bf16" else torch.float32, bias=bias)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        logits = exact_logits(head, hidden)
        scored = score(head, hidden, ask=Ask(ids=ids), words=WORDS)[0]
        plain = head(hidden)
    assert logits.dtype == torch.float32
    sampled = logits.log_softmax(-1).gather(1, ids[:, None])[:, 0]
    # Two sums of the same products in another order.
    torch.testing.assert_close(sampled, scored, rtol=1e-5, atol=1e-4)
    if how == "fp32":
        assert torch.equal(logits, plain), "nothing is rounded, so nothing is done otherwise"
    else:
        assert not torch.equal(logits, logits.bfloat16().float())


def test_a_device_that_multiplies_into_fp32_makes_them_in_one_product() -> None:
    head, hidden, _, _ = problem(torch.bfloat16)
    head, there, held = head.to(META), hidden.detach().to(META), Held()
    with held, torch.no_grad():
        traced = exact_logits(head, there)
        assert (traced.dtype, traced.shape) == (torch.float32, (TARGETS, WORDS))
    assert held.peak == 4 * TARGETS * WORDS
