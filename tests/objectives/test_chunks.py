"""Log-probabilities of targets never need the fp32 logits of a whole row, and their bits do not change by that."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from arcvideo.model.output import cross_entropy
from arcvideo.objectives import logprobs
from arcvideo.preflight.trace import META, Held

TARGETS, WORDS = 50, 37


def needs_no_whole_fp32_copy(loss: Callable[[Tensor, Tensor], Tensor], *, targets: int, words: int) -> None:
    """Assert that a loss of bf16 logits and its backward hold the gradient and a few chunks of 100 fp32 rows."""
    with META:
        logits = torch.empty(targets, words, dtype=torch.bfloat16, requires_grad=True)
        ids = torch.empty(targets, dtype=torch.int64)
    held = Held()
    with held:
        loss(logits, ids).backward()
    gradient, chunk = 2 * targets * words, 4 * 100 * words
    assert gradient < held.peak <= gradient + 5 * chunk + 64 * targets


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunks_give_the_bits_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, temperature: float
) -> None:
    monkeypatch.setattr(logprobs, "AT_ONCE", 4 * WORDS)  # fifty rows do not come out even
    torch.manual_seed(0)
    chunked = (5 * torch.randn(TARGETS, WORDS)).to(dtype).requires_grad_()
    whole = chunked.detach().clone().requires_grad_()
    ids, weights = torch.randint(0, WORDS, (TARGETS,)), torch.rand(TARGETS)
    found = logprobs.token_logprobs(chunked, target_ids=ids, temperature=temperature)
    expected = -F.cross_entropy(whole.float() / temperature, ids, reduction="none")
    assert torch.equal(found, expected)
    for values in (found, expected):
        (values * weights).sum().backward()
    assert torch.equal(chunked.grad, whole.grad)


def test_no_targets_have_no_log_probabilities() -> None:
    logits = torch.zeros(0, WORDS, requires_grad=True)
    logprobs.token_logprobs(logits, target_ids=torch.zeros(0, dtype=torch.int64), temperature=1.0).sum().backward()
    assert logits.grad is not None


@pytest.mark.parametrize("targets", [4000, 8000])
def test_the_loss_needs_the_gradient_of_the_logits_and_a_few_fp32_rows(
    monkeypatch: pytest.MonkeyPatch, targets: int
) -> None:
    words = 1000
    monkeypatch.setattr(logprobs, "AT_ONCE", 100 * words)
    needs_no_whole_fp32_copy(
        lambda logits, ids: logprobs.token_logprobs(logits, target_ids=ids, temperature=0.7).sum(),
        targets=targets, words=words,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [None, 7])
def test_the_loss_of_trainers_of_others_is_the_same_in_chunks(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, count: int | None
) -> None:
    monkeypatch.setattr(logprobs, "AT_ONCE", 4 * WORDS)
    torch.manual_seed(0)
    ours = (5 * torch.randn(TARGETS, WORDS)).to(dtype).requires_grad_()
    whole = ours.detach().clone().requires_grad_()
    ids = torch.randint(0, WORDS, (TARGETS,))
    ids[::3] = -100
    found = cross_entropy(ours, ids, count=count)
    exact = whole.to(torch.promote_types(dtype, torch.float32))
    expected = F.cross_entropy(exact, ids, reduction="sum") / (count or int((ids != -100).sum()))
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected)
    for loss in (found, expected):
        loss.backward()
    torch.testing.assert_close(ours.grad, whole.grad)
    assert not ours.grad[::3].any()


def test_the_loss_of_trainers_of_others_needs_no_fp32_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    targets, words = 8000, 1000
    monkeypatch.setattr(logprobs, "AT_ONCE", 100 * words)
    needs_no_whole_fp32_copy(cross_entropy, targets=targets, words=words)
