"""Objectives are given what they ask for: scores of the targets, or their logits."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from arcvideo.objectives.dpo import Dpo
from arcvideo.objectives.grpo import Grpo
from arcvideo.objectives.loss import Loss
from arcvideo.objectives.next_token import NextToken
from arcvideo.objectives.scores import Ask, Scores, asks, forward_of, loss_of, scores_in
from arcvideo.types import Batch
from tests.model.small import small_model
from tests.runner.real import packed

ROOT = Path(__file__).resolve().parents[2]


class Spread(NextToken):
    """Derived, with a loss of its own that reads logits."""

    def __call__(self, given: Any, batch: Batch) -> Loss:
        loss = super().__call__(given, batch)
        return Loss(total=loss.total + given.std(), metrics=loss.metrics)


class Sure(NextToken):
    """Derived, with a loss of its own that asks for another figure."""

    def ask(self, batch: Batch) -> Ask:
        return replace(super().ask(batch), figures=("right", "entropy"))

    def __call__(self, given: Any, batch: Batch) -> Loss:
        loss = super().__call__(given, batch)
        return Loss(total=loss.total, metrics={**loss.metrics, "entropy": (given.entropy.sum(), 1.0)})


class Renamed(Dpo):
    """Derived, and nothing changed."""


def plain(given: Tensor, batch: Batch) -> Loss:
    """A function is an objective, too."""
    return Loss(total=given.logsumexp(-1).sum())


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        (NextToken(), True),
        (Dpo(), True),
        (Grpo(), True),
        (Renamed(), True),
        (Sure(), True),
        (Spread(), False),
        (plain, False),
    ],
)
def test_who_writes_the_call_says_what_it_takes(objective: Any, expected: bool) -> None:
    assert asks(objective) == expected


def batch_for(name: str) -> Batch:
    row = packed([(0, "text"), (1, "text"), (2, "text"), (3, "text")])
    torch.manual_seed(0)
    count = len(row.target_ids)
    extra = {name: -3 - torch.rand(count, dtype=torch.float64) for name in ("old_logprobs", "ref_logprobs")}
    return replace(row, extra={"advantages": torch.randn(len(row.keys), dtype=torch.float64), **extra})


@pytest.mark.parametrize("make", [NextToken, Dpo, Grpo])
def test_scores_give_the_loss_the_metrics_and_the_gradients_of_logits(make: Callable[[], Any]) -> None:
    model, batch, objective = small_model(dtype=torch.float64), batch_for(make.__name__), make()
    found = []
    for one in (objective, lambda logits, row: objective(logits, row)):
        model.zero_grad()
        loss = loss_of(one, batch, run=forward_of(model))
        loss.total.backward()
        gradients = {name: part.grad for name, part in model.named_parameters() if part.grad is not None}
        metrics = {name: (float(total), float(count)) for name, (total, count) in loss.metrics.items()}
        found.append((float(loss.total.detach()), metrics, gradients))
    (total, metrics, gradients), (other, theirs, expected) = found
    assert total == pytest.approx(other, rel=1e-11)
    assert metrics.keys() == theirs.keys()
    for name, pair in metrics.items():
        # Entropies and mean logits of logits are summed in fp32.
        assert pair == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-11)


def test_an_objective_of_ones_own_gets_the_logits_of_all_targets() -> None:
    model, batch = small_model(), batch_for("")
    seen: list[tuple[int, ...]] = []

    def own(logits: Tensor, row: Batch) -> Loss:
        seen.append(tuple(logits.shape))
        return Loss(total=logits.sum())

    loss_of(own, batch, run=forward_of(model))
    loss_of(Spread(), batch, run=forward_of(model))
    assert seen == [(len(batch.target_ids), 64)]


def test_figures_of_logits_are_those_of_scores() -> None:
    torch.manual_seed(0)
    logits, ids = 5 * torch.randn(9, 31), torch.randint(0, 31, (9,))
    scores = scores_in(logits, ask=Ask(ids=ids, temperature=0.5, figures=("entropy", "mean_logit", "right")))
    logs = (logits / 0.5).log_softmax(-1)
    torch.testing.assert_close(scores.logprobs, logs.gather(1, ids[:, None])[:, 0])
    torch.testing.assert_close(scores.entropy, -(logs.exp() * logs).sum(-1))
    torch.testing.assert_close(scores.mean_logit, logits.mean(-1))
    assert torch.equal(scores.right, (logits.argmax(-1) == ids).float())
    assert isinstance(scores_in(scores, ask=Ask(ids=ids)), Scores)


def test_the_objective_of_the_page_that_asks_equals_the_one_that_reads_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (ROOT / "docs" / "adding.md").read_text()
    blocks = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "Focal" in code]
    assert len(blocks) == 2
    (tmp_path / "shown_focal.py").write_text("\n\n".join(blocks))
    monkeypatch.syspath_prepend(str(tmp_path))
    shown = importlib.import_module("shown_focal")
    model, batch = small_model(dtype=torch.float64), batch_for("")
    totals = [
        loss_of(kind(None, gamma=2.0), batch, run=forward_of(model)).total for kind in (shown.Focal, shown.LeanFocal)
    ]
    # The page's turns logits to fp32.
    torch.testing.assert_close(totals[0].double(), totals[1].double(), rtol=1e-5, atol=1e-6)
