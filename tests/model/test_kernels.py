"""Which kernels attention calls, and with what: checked by watching the calls, as there is no GPU in the tests."""

import pytest
import torch
from torch.nn.attention import SDPBackend
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from arcvideo.model import attention
from arcvideo.model.attention import KERNELS, Mask, attend
from arcvideo.model.plans import batch_plan, packed_plan
from arcvideo.types import Segments

SDPA = torch.nn.functional.scaled_dot_product_attention


class Calls(TorchFunctionMode):
    """Notes every call of the fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is SDPA:
            self.seen.append((args[0].shape, args[1].shape, kwargs.get("attn_mask"), kwargs.get("enable_gqa", False)))
        return function(*args, **kwargs)


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def heads(rows: tuple[int, ...], *, count: int, seed: int, width: int = 8) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(*rows, count, width, generator=random, dtype=torch.float64)


FAMILY = Segments(starts=torch.tensor([0, 9, 12, 14, 19]), parents=torch.tensor([-1, 0, 0, -1]))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("few", [False, True])
def test_folded_heads_equal_grouped_queries(rows, few):
    q, k, v = (heads((rows, length), count=count, seed=seed).transpose(1, 2).requires_grad_(True)
               for seed, (length, count) in enumerate([(5, 6), (11, 2), (11, 2)]))  # fmt: skip
    kept = (torch.arange(11) >= torch.arange(rows)[:, None]) if few else None
    mask = Mask.of(past=6, queries=5, kept=kept, dtype=q.dtype, device=q.device).whole
    found = []
    for way in (lambda: attention._folded(q, k, v, mask), lambda: SDPA(q, k, v, attn_mask=mask, enable_gqa=True)):
        out = way()
        found.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-14)


@pytest.mark.parametrize("case", ["family", "whole", "continued", "long"])
def test_off_the_cpu_a_mask_never_meets_grouped_queries(case):
    # Torch's kernel for masks takes no groups on CUDA; asked for both, it writes out all scores in fp32.
    device = torch.device("meta")
    if case == "family":
        q, k, v = (torch.empty(19, count, 64, device=device) for count in (8, 2, 2))
        plan = packed_plan(FAMILY, dtype=q.dtype, device=device)
    else:
        new = {"whole": 7, "continued": 3, "long": 2 * attention.MASK_ROWS + 5}[case]
        old = 0 if case == "whole" else 4
        q = torch.empty(2, new, 8, 64, device=device)
        k, v = (torch.empty(2, old + new, 2, 64, device=device) for _ in range(2))
        plan = batch_plan(queries=new, keys=old + new, attention_mask=None, dtype=q.dtype, device=device)
    with Calls() as calls:
        assert attend(q, k, v, plan=plan).shape == q.shape
    masked = [(queries, keys, grouped) for queries, keys, mask, grouped in calls.seen if mask is not None]
    assert bool(masked) == (case != "whole")
    for queries, keys, grouped in masked:
        assert queries[1] == keys[1] == 2
        assert not grouped


def test_the_kernel_that_plans_for_every_length_is_not_among_the_choices():
    assert SDPBackend.CUDNN_ATTENTION not in KERNELS
    assert KERNELS.index(SDPBackend.FLASH_ATTENTION) < KERNELS.index(SDPBackend.EFFICIENT_ATTENTION)
    assert KERNELS[-1] is SDPBackend.MATH


def gathers(segments: Segments) -> int:
    length = int(segments.starts[-1])
    q, k, v = (heads((length,), count=count, seed=seed) for seed, count in enumerate((4, 2, 2)))
    plan = packed_plan(segments, dtype=q.dtype, device=q.device)
    with Operations() as operations:
        attend(q, k, v, plan=plan)
    return operations.names.count("index_select")


def test_rows_in_order_are_read_where_they_stand():
    def cut(starts: list[int], parents: list[int]) -> Segments:
        return Segments(starts=torch.tensor(starts), parents=torch.tensor(parents))

    assert gathers(cut([0, 20], [-1])) == 0
    assert gathers(cut([0, 7, 14, 21], [-1, -1, -1])) == 0, "equal documents"
    assert gathers(cut([0, 9, 14], [-1, 0])) == 0, "a prefix and its only branch"
    assert gathers(FAMILY) > 0


def test_empty_slots_do_not_all_read_one_token():
    lengths = [90, *[60] * 20]
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])
    plan = packed_plan(
        Segments(starts=starts, parents=torch.full((len(lengths),), -1)),
        dtype=torch.float64,
        device=torch.device("cpu"),
    )
    counts = torch.cat([block.queries for block in plan.blocks]).bincount()
    assert counts.max() <= len(lengths), "at most once an item"
    assert counts.min() == 1
