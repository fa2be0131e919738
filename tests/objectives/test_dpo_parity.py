"""Our DPO loss, gradients and metrics against TRL's DPOTrainer at the pinned version."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from arcvideo.objectives.dpo import Dpo
from arcvideo.objectives.settings import DpoSettings
from arcvideo.types import Batch, Segments
from tests.objectives.oracle import PROMPT, VOCAB, text_tokenizer, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")

PAIRS = 3
LENGTHS = torch.tensor([[7, 3], [1, 5], [4, 4]])
"""(P, 2) tokens of chosen and rejected."""
VARIANTS = {
    "sigmoid": DpoSettings(beta=0.3),
    "hinge": DpoSettings(beta=0.3, loss_type="hinge"),
    "ipo": DpoSettings(beta=0.3, loss_type="ipo"),
    "robust": DpoSettings(beta=0.3, loss_type="robust", label_smoothing=0.2),
    "apo_zero": DpoSettings(beta=0.3, loss_type="apo_zero"),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A DPOTrainer whose `_compute_loss` can be called."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    reference = tiny_model()
    with torch.no_grad():  # another model than the policy, so that the ratios are not all one
        for parameter in reference.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.05)
    arguments = DPOConfig(
        output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, report_to=[], disable_dropout=True
    )
    rows = {"prompt": ["w3 w4"], "chosen": ["w5"], "rejected": ["w6"]}
    trainer = DPOTrainer(
        model=tiny_model(),
        ref_model=reference,
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        processing_class=text_tokenizer(),
    )
    trainer.model.train()
    return trainer


def answers() -> tuple[Tensor, Tensor]:
    """ids (2P, PROMPT + 7), chosen before rejected as TRL has them, and the mask of the answers."""
    generator = torch.Generator().manual_seed(5)
    lengths = LENGTHS.T.flatten()
    ids = torch.randint(3, VOCAB, (2 * PAIRS, PROMPT + 7), generator=generator)
    ids[PAIRS:, :PROMPT] = ids[:PAIRS, :PROMPT]  # a pair shares its prompt
    places = torch.arange(PROMPT + 7)[None]
    mask = (places >= PROMPT) & (places < PROMPT + lengths[:, None])
    return ids.masked_fill(places >= PROMPT + lengths[:, None], 0), mask.long()


def trl_loss(made: Any, *, settings: DpoSettings) -> Tensor:
    made.loss_types, made.loss_weights = [settings.loss_type], [1.0]
    made.beta, made.label_smoothing = settings.beta, settings.label_smoothing
    ids, mask = answers()
    attention = (torch.arange(ids.shape[1])[None] < PROMPT + LENGTHS.T.flatten()[:, None]).long()
    inputs = {"input_ids": ids, "attention_mask": attention, "completion_mask": mask}
    return made._compute_loss(made.model, inputs, False)


def our_batch(reference: Any, *, pairs: list[int]) -> tuple[Batch, Tensor, Tensor]:
    """Some pairs as our table of targets; the rows (in TRL's order) and positions that predict them."""
    ids, mask = answers()
    rows = torch.tensor([row for pair in pairs for row in (pair, PAIRS + pair)])
    kept = mask[rows].bool()
    samples = torch.arange(len(rows))[:, None].expand_as(kept)[kept]
    with torch.no_grad():
        logps = reference(input_ids=ids[rows]).logits[:, :-1].log_softmax(-1)
    nothing = torch.zeros(0, dtype=torch.int64)
    targets = ids[rows][kept]
    batch = Batch(
        input_ids=nothing,
        position_ids=nothing.expand(4, 0),
        segments=Segments(starts=torch.zeros(1, dtype=torch.int32), parents=nothing.int()),
        media=(),
        target_positions=nothing,
        target_ids=targets,
        target_weights=(1 / kept.sum(1).float())[samples],
        target_samples=samples,
        keys=tuple(map(str, rows.tolist())),
        tasks=("qa",) * len(rows),
        extra={"ref_logprobs": logps[kept[:, 1:]].gather(1, targets[:, None])[:, 0]},
    )
    return batch, ids[rows], kept[:, 1:]


def our_loss(made: Any, *, settings: DpoSettings, micro_batches: list[list[int]]) -> tuple[Tensor, dict[str, float]]:
    """The step's loss: sums of the micro-batches over the sum of all weights, as the Runner divides."""
    total, weight, sums = torch.zeros(()), 0.0, {}
    for pairs in micro_batches:
        batch, ids, kept = our_batch(made.ref_model, pairs=pairs)
        loss = Dpo(settings)(made.model(input_ids=ids).logits[:, :-1][kept], batch)
        total, weight = total + loss.total, weight + float(batch.target_weights.double().sum())
        for name, (value, count) in loss.metrics.items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + float(value), before[1] + float(count))
    return total / weight, {name: value / count for name, (value, count) in sums.items()}


@pytest.mark.parametrize("micro_batches", [[[0, 1, 2]], [[2, 0], [1]]], ids=["whole", "in parts"])
@pytest.mark.parametrize("name", VARIANTS)
def test_loss_gradients_and_metrics_equal_trl(made: Any, name: str, micro_batches: list[list[int]]) -> None:
    settings = VARIANTS[name]
    made.model.zero_grad()
    made._metrics["train"].clear()
    expected = trl_loss(made, settings=settings)
    expected.backward()
    gradients = {key: value.grad.clone() for key, value in made.model.named_parameters()}

    made.model.zero_grad()
    loss, metrics = our_loss(made, settings=settings, micro_batches=micro_batches)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-7)
    largest = max(float(value.abs().max()) for value in gradients.values())
    for key, value in made.model.named_parameters():
        torch.testing.assert_close(
            value.grad, gradients[key], rtol=1e-5, atol=1e-6 * largest, msg=lambda text, key=key: f"{key}: {text}"
        )
    theirs = {metric: values[-1] for metric, values in made._metrics["train"].items() if metric != "num_tokens"}
    assert metrics.keys() == theirs.keys()
    assert metrics == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert abs(metrics["rewards/margins"]) > 0


def test_an_empty_row_weighs_nothing_and_references_are_asked_for(made: Any) -> None:
    batch, _, _ = our_batch(made.ref_model, pairs=[0])
    logits = torch.zeros(1, VOCAB, requires_grad=True)
    one = {name: getattr(batch, name)[:1] for name in ("target_ids", "target_samples")}
    empty = replace(batch, keys=("",), target_weights=torch.zeros(1), extra={"ref_logprobs": torch.zeros(1)}, **one)
    loss = Dpo()(logits, empty)
    loss.total.backward()
    assert float(loss.total) == 0
    assert logits.grad is not None
    assert not logits.grad.any()
    with pytest.raises(ValueError, match="reference source"):
        Dpo()(logits, replace(empty, extra={}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loss_type": "kto"}, r"dpo\.loss_type='kto'"),
        ({"beta": 0.0}, r"dpo\.beta=0"),
        ({"label_smoothing": 0.5, "loss_type": "robust"}, r"dpo\.label_smoothing=0\.5"),
        ({"label_smoothing": 0.1}, "read by dpo.loss_type=robust only"),
    ],
)
def test_bad_settings_name_the_key(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DpoSettings(**changes)
