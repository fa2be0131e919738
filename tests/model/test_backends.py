"""Every kernel that a row may be given computes the rule written as a square mask, on the device that is there."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from arcvideo.model import flex
from arcvideo.model.attention import FlexPlan, PackedPlan, VarlenPlan, attend
from arcvideo.model.plans import kernel_of, packed_plan
from arcvideo.types import Segments

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEADS, GROUPS = 4, 2
WIDTH = 32
"""Above the least that FlexAttention compiles on CUDA."""
ROWS = {
    "one": ([200], [-1]),
    "equal": ([70, 70, 70], [-1, -1, -1]),
    "documents": ([130, 3, 128, 64, 1], [-1] * 5),
    "family": ([150, 20, 7, 33], [-1, 0, 0, 0]),
    "mixed": ([90, 5, 40, 12, 260, 9, 1], [-1, 0, -1, 0, -1, 4, 2]),
}
"""Lengths and parents of the segments."""
ROUNDING = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float64: 2.0**-53}


def cut(lengths: list[int], parents: list[int]) -> Segments:
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    return Segments(starts=starts, parents=torch.tensor(parents))


def by_the_rule(q: Tensor, k: Tensor, v: Tensor, segments: Segments) -> Tensor:
    """(L, H, h) with every score written out."""
    sizes = segments.starts.diff()
    owner = torch.repeat_interleave(torch.arange(segments.count), sizes)
    parent = segments.parents[owner]
    causal = torch.ones(len(owner), len(owner), dtype=torch.bool).tril()
    sees = ((owner[:, None] == owner) & causal) | (owner == parent[:, None])
    k, v = (x.repeat_interleave(HEADS // GROUPS, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, k) * WIDTH**-0.5
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~sees, -torch.inf).softmax(-1), v)


def inputs(length: int, *, dtype: torch.dtype, seed: int) -> tuple[list[Tensor], Tensor]:
    """Queries, keys, values that `dtype` holds exactly, in float64, and what the output is multiplied with."""
    random = torch.Generator().manual_seed(seed)
    made = [torch.randn(length, heads, WIDTH, generator=random) for heads in (HEADS, GROUPS, GROUPS, HEADS)]
    *qkv, weight = (x.to(dtype).double() for x in made)
    return [x.requires_grad_(True) for x in qkv], weight


def gaps(segments: Segments, *, dtype: torch.dtype, named: str, seed: int = 0) -> list[float]:
    """Distance of the output and of three gradients from the rule, each as a share of its own length.

    FlexAttention has no backward pass on the CPU: the output alone.
    """
    length = int(segments.starts[-1])
    exact, weight = inputs(length, dtype=dtype, seed=seed)
    expected = by_the_rule(*exact, segments)
    wanted = [expected, *torch.autograd.grad((expected * weight).sum(), exact)]
    backward = named != "flex_attention" or DEVICE.type == "cuda"
    mine = [x.detach().to(DEVICE, dtype).requires_grad_(backward) for x in exact]
    plan = packed_plan(segments, dtype=dtype, device=DEVICE, implementation=named, width=WIDTH)
    out = attend(*mine, plan=plan)
    found = [out, *(torch.autograd.grad((out * weight.to(DEVICE, dtype)).sum(), mine) if backward else ())]
    pairs = zip(found, wanted, strict=backward)
    return [float((one.detach().cpu().double() - two.detach()).norm() / two.detach().norm()) for one, two in pairs]


def limit(dtype: torch.dtype, longest: int) -> float:
    """Sums of `longest` terms at random signs, each rounded a few times on its way."""
    return 8 * ROUNDING[dtype] * max(1.0, longest**0.5 if dtype != torch.bfloat16 else 1.0)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("named", ["auto", "sdpa", "flex_attention", "eager"])
@pytest.mark.parametrize("row", ROWS)
def test_every_kernel_computes_the_rule(row: str, named: str, dtype: torch.dtype) -> None:
    segments = cut(*ROWS[row])
    for gap in gaps(segments, dtype=dtype, named=named):
        assert gap < limit(dtype, int(segments.starts[-1]))


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_masks_and_lengths_that_change_from_row_to_row_leave_no_nan() -> None:
    """One compiled kernel meets rows with other bounds, parents and lengths, some of them far from whole blocks:
    a short document alone in a block of 128, a last block of one token, branches in another block than their parent.
    """
    random = torch.Generator().manual_seed(7)
    for number in range(16):
        count = int(torch.randint(1, 7, (1,), generator=random))
        lengths = torch.randint(1, 300, (count,), generator=random).tolist()
        if number % 4 == 1:
            lengths = [127, 1, 2, 126, 1][:count] or [1]
        parents: list[int] = []
        for index in range(len(lengths)):
            roots = [i for i in range(index) if parents[i] < 0]
            pick = int(torch.randint(-1, len(roots), (1,), generator=random))
            parents.append(-1 if pick < 0 else roots[pick])
        segments = cut(lengths, parents)
        found = gaps(segments, dtype=torch.float32, named="flex_attention", seed=number)
        assert all(gap < limit(torch.float32, int(segments.starts[-1])) for gap in found), (lengths, parents, found)


def test_which_kernel_auto_takes() -> None:
    def takes(row: str, *, device: str = "cuda", dtype: torch.dtype = torch.bfloat16, width: int = 128) -> str:
        lengths, parents = ROWS[row]
        starts = cut(lengths, parents).starts.tolist()
        spans = list(pairwise(starts))
        return kernel_of(spans, parents, device=device, dtype=dtype, width=width, named="auto")

    assert {row: takes(row) for row in ROWS} == {
        "one": "blocks", "equal": "blocks", "documents": "varlen", "family": "flex", "mixed": "flex",
    }  # fmt: skip
    assert {takes(row, device="cpu") for row in ROWS} == {"blocks"}
    assert takes("documents", dtype=torch.float32) == "blocks", "flash has half precision only"
    assert takes("family", dtype=torch.float32) == "flex"
    assert takes("family", width=8) == takes("family", dtype=torch.float64) == "blocks", "what cannot be compiled"


def test_documents_by_their_bounds_are_read_where_they_stand() -> None:
    starts = torch.tensor([0, 9, 9, 30])
    segments = Segments(starts=starts, parents=torch.full((3,), -1))
    plan = packed_plan(segments, dtype=torch.bfloat16, device=torch.device("cpu"), implementation="auto")
    assert isinstance(plan, PackedPlan)
    plan = VarlenPlan(torch.tensor([0, 9, 30], dtype=torch.int32, device="meta"), 21)
    q, k, v = (torch.empty(30, heads, WIDTH, dtype=torch.bfloat16, device="meta") for heads in (HEADS, GROUPS, GROUPS))
    assert attend(q, k, v, plan=plan).shape == q.shape


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_changing_rows_do_not_compile_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo's part is the same on every device: a graph per number of dimensions, not per row."""
    compiled: list[int] = []

    def counting(graph: torch.fx.GraphModule, example: list[Tensor]) -> object:
        compiled.append(len(example))
        return graph.forward

    torch._dynamo.reset()
    made = {}

    def compiling(function, device):  # type: ignore[no-untyped-def]
        if function not in made:
            made[function] = torch.compile(function, dynamic=True, backend=counting)
        return made[function]

    monkeypatch.setattr(flex, "_compiled", compiling)
    random = torch.Generator().manual_seed(0)
    after = []
    for _ in range(8):
        lengths = torch.randint(2, 200, (4,), generator=random).tolist()
        plan = packed_plan(
            cut(lengths, [-1, 0, 0, -1]), dtype=torch.float32, device=DEVICE, implementation="flex_attention"
        )
        assert isinstance(plan, FlexPlan)
        qkv, _ = inputs(sum(lengths), dtype=torch.float32, seed=1)
        assert attend(*(x.detach().float().to(DEVICE) for x in qkv), plan=plan).isfinite().all()
        after.append(len(compiled))
    assert after[-1] == after[1], after
