"""The packed row is a way to compute, not another model: it equals separate full sequences."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from arcvideo.model.attention import attend
from arcvideo.model.flex import flex_plan
from arcvideo.model.plans import packed_plan
from arcvideo.model.settings import RECOMPUTES
from arcvideo.types import Segments
from tests.model.small import Row, clip, prefix, small_model, text

BRANCHES = [3, 7, 1, 12]


@pytest.fixture
def model():
    return small_model(dtype=torch.float64)


def family_row() -> Row:
    """Return two clips with branches, a plain text, and a text prompt with completions, interleaved."""
    row = Row()
    first = row.add(prefix(frames=2))
    second = row.add(prefix(frames=1))
    for seed, length in enumerate(BRANCHES):
        row.add(text(length, seed=seed), parent=first)
        row.add(text(length + 1, seed=seed + 10), parent=second)
    row.add(text(9, seed=30))
    prompt = row.add(text(60, seed=31))
    row.add(text(5, seed=32), parent=prompt)
    row.add(text(70, seed=33), parent=prompt)
    return row


MEDIA = (clip(frames=2, seed=1), clip(frames=1, seed=2))


def separate_logits(model, row: Row) -> list[torch.Tensor]:
    """Return the logits of every segment, each from its own full sequence without packing."""
    media_of = {0: MEDIA[:1], 1: MEDIA[1:]}
    results = []
    for index, parent in enumerate(row.parents):
        root = index if parent < 0 else parent
        alone = Row()
        ids = row.ids[index] if parent < 0 else torch.cat([row.ids[parent], row.ids[index]])
        alone.add(ids)
        inputs = alone.inputs()
        batch = model(
            inputs["input_ids"][None], position_ids=inputs["position_ids"][None], media=media_of.get(root, ())
        )
        results.append(batch.logits[0, -len(row.ids[index]) :])
    return results


def test_packed_logits_equal_separate_sequences(model):
    row = family_row()
    packed = model(**row.inputs(), media=MEDIA).logits
    for index, expected in enumerate(separate_logits(model, row)):
        torch.testing.assert_close(packed[row.starts[index] : row.starts[index + 1]], expected, rtol=0, atol=1e-10)


def test_packed_gradients_equal_separate_sequences(model):
    row = family_row()
    torch.manual_seed(1)
    weights = [torch.randn(len(ids), 64, dtype=torch.float64) for ids in row.ids]
    # What a segment says counts once in both forms, although separate sequences compute a prefix many times.
    (model(**row.inputs(), media=MEDIA).logits * torch.cat(weights)).sum().backward()
    packed = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    sum((part * weight).sum() for part, weight in zip(separate_logits(model, row), weights, strict=True)).backward()
    assert set(packed) == {name for name, p in model.named_parameters() if p.grad is not None}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                packed[name], parameter.grad, rtol=0, atol=1e-10, msg=lambda m, n=name: f"{n} {m}"
            )


def test_recomputed_layers_give_equal_gradients(model):
    row = family_row()
    grads = []
    for recompute in RECOMPUTES:
        model.activation_checkpointing = recompute
        model.zero_grad()
        model(**row.inputs(), media=MEDIA).logits.square().mean().backward()
        grads.append([p.grad.clone() for p in model.language_model.parameters()])
    for plain, *recomputed in zip(*grads, strict=True):
        for other in recomputed:
            torch.testing.assert_close(plain, other, rtol=0, atol=1e-14)


def test_selective_recomputation_repeats_no_matrix_product(model):
    row, counts = family_row(), {}
    for recompute in RECOMPUTES:
        model.activation_checkpointing = recompute
        model.zero_grad()
        with FlopCounterMode(display=False) as counter:
            model(**row.inputs(), media=MEDIA).logits.square().mean().backward()
        counts[recompute] = counter.get_total_flops()
    assert counts["none"] == counts["selective"] < counts["full"]


def test_targets_select_logits(model):
    row = family_row()
    targets = torch.tensor([5, 5, 40, 3])
    everything = model(**row.inputs(), media=MEDIA).logits
    chosen = model(**row.inputs(), media=MEDIA, target_positions=targets).logits
    torch.testing.assert_close(chosen, everything[targets])


def test_a_long_lone_segment_needs_no_mask_and_no_copying():
    segments = Segments(starts=torch.tensor([0, 50_000]), parents=torch.tensor([-1]))
    plan = packed_plan(segments, dtype=torch.float32, device=torch.device("cpu"))
    assert [block.mask for block in plan.blocks] == [None]
    assert plan.order is None


def test_a_long_parent_never_builds_its_square():
    segments = Segments(starts=torch.tensor([0, 20_000, 20_008, 20_016]), parents=torch.tensor([-1, 0, 0]))
    plan = packed_plan(segments, dtype=torch.float32, device=torch.device("cpu"))
    masks = [block.mask.whole.numel() for block in plan.blocks if block.mask is not None]
    assert max(masks) <= 2 * 8 * 20_008


def test_an_empty_segment_changes_nothing(model):
    row = Row()
    parent = row.add(text(5, seed=0))
    row.add(text(3, seed=1), parent=parent)
    expected = model(**row.inputs()).logits
    row.add(text(0, seed=0), parent=parent)
    torch.testing.assert_close(model(**row.inputs()).logits, expected)


def test_half_precision_rows_stay_near_full_precision():
    row, full = family_row(), small_model()
    expected = full(**row.inputs(), media=MEDIA).logits
    half = full.to(torch.bfloat16)(**row.inputs(), media=MEDIA).logits
    assert half.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(half.float(), expected, dim=-1).min() > 0.99


def test_autocast_rows_stay_near_full_precision():
    row, model = family_row(), small_model()
    expected = model(**row.inputs(), media=MEDIA).logits
    with torch.autocast("cpu", torch.bfloat16):
        lower = model(**row.inputs(), media=MEDIA).logits
    lower.float().square().mean().backward()
    assert torch.nn.functional.cosine_similarity(lower.float(), expected, dim=-1).min() > 0.99
    assert model.mlp2[1].weight.grad.isfinite().all()


@pytest.mark.parametrize("parents", [[0], [-1, 0, 1], [1, -1]])
def test_impossible_parents_are_refused(parents):
    segments = Segments(starts=torch.arange(len(parents) + 1), parents=torch.tensor(parents))
    with pytest.raises(ValueError, match="parents stand earlier"):
        packed_plan(segments, dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("path", ["cpu", "flex"])
def test_random_rows_match_the_rule_written_as_a_square_mask(path):
    # Uncompiled FlexAttention runs on the CPU: it checks the CUDA path's rule, not its kernels.
    random = torch.Generator().manual_seed(3)
    for _ in range(20 if path == "cpu" else 4):
        count = int(torch.randint(1, 9, (1,), generator=random))
        sizes = torch.randint(1, 90, (count,), generator=random)
        parents: list[int] = []
        for index in range(count):
            roots = [i for i in range(index) if parents[i] < 0]
            pick = int(torch.randint(-1, len(roots), (1,), generator=random))
            parents.append(-1 if pick < 0 else roots[pick])
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
        owner = torch.repeat_interleave(torch.arange(count), sizes)
        length = int(starts[-1])
        parent = torch.tensor(parents)[owner]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        sees = ((owner[:, None] == owner[None]) & causal) | (owner[None] == parent[:, None])
        q, k, v = (torch.randn(length, heads, 8, generator=random, dtype=torch.float64) for heads in (4, 2, 2))
        segments = Segments(starts=starts, parents=torch.tensor(parents))
        plan = (
            packed_plan(segments, dtype=q.dtype, device=q.device)
            if path == "cpu"
            else flex_plan(segments, length=length)
        )
        scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(2, dim=1)) / 8**0.5
        weights = scores.masked_fill(~sees, float("-inf")).softmax(-1)
        expected = torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(2, dim=1))
        torch.testing.assert_close(attend(q, k, v, plan=plan), expected, rtol=0, atol=1e-10)
