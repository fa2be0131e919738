"""`model.compile=elementwise`: the same model out of compiled chains, without a break in any graph."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache

from arcvideo.model.arc_hunyuan.language import gated, turned
from arcvideo.model.norms import rms_norm
from arcvideo.model.settings import ModelSettings
from tests.compose import settings
from tests.model.small import SETTINGS, Row, small_model, text
from tests.spawned import finished

needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
WIDTH, HEADS, LENGTHS = 32, 4, (5, 9, 17)
CPU = Path("/proc/cpuinfo")


def arguments(chain: Callable[..., Tensor], *, length: int, dtype: torch.dtype) -> list[Any]:
    """Inputs of a chain, those that learn with a gradient; the same numbers in every type."""
    generator = torch.Generator().manual_seed(length)

    def made(*shape: int, learns: bool = True) -> Tensor:
        return torch.randn(shape, generator=generator).bfloat16().to(dtype).requires_grad_(learns)

    if chain is gated:
        return [made(length, 2 * WIDTH)]
    if chain is turned:
        return [made(length, HEADS, WIDTH), *(made(length, 1, WIDTH, learns=False) for _ in "cs"), made(WIDTH), 1e-5]
    return [made(length, WIDTH), made(WIDTH), 1e-5]


def with_gradients(run: Callable[..., Tensor], inputs: list[Any]) -> list[Tensor]:
    """Output and gradients, in float64."""
    learning = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    out = run(*inputs)
    out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype))
    return [x.double() for x in (out.detach(), *(x.grad for x in learning if x.grad is not None))]


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.parametrize("chain", [rms_norm, turned, gated])
def test_a_chain_is_one_graph_for_all_lengths_and_no_worse_than_its_operations(chain: Callable[..., Tensor]) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    whole = torch.compile(chain, dynamic=True, fullgraph=True)  # a graph that breaks is an error
    for dtype in (torch.float32, torch.bfloat16):
        for length in LENGTHS:
            exact = with_gradients(chain, arguments(chain, length=length, dtype=torch.float64))
            plain = with_gradients(chain, arguments(chain, length=length, dtype=dtype))
            fused = with_gradients(whole, arguments(chain, length=length, dtype=dtype))
            for here, there, true in zip(fused, plain, exact, strict=True):
                # Both round; the chain at its end only, so it may not be farther off than one rounding more. What is
                # summed over rows, in another order, errs by as many roundings as the root of their number (Higham and
                # Mary, A new approach to probabilistic rounding error analysis, 2019).
                rows = length * HEADS if true.dim() == 1 else 1
                slack = torch.finfo(dtype).eps * float(true.abs().max()) * rows**0.5
                assert float((here - true).abs().max()) <= float((there - true).abs().max()) + slack
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # one a type, whatever the length


def row(length: int) -> dict[str, Any]:
    """A family: a prompt and two continuations."""
    made = Row()
    prompt = made.add(text(length, seed=0))
    for seed in (1, 2):
        made.add(text(length // 2 + seed, seed=seed), parent=prompt)
    return made.inputs()


@pytest.fixture(autouse=True)
def own_cache() -> Iterator[None]:
    """Nothing that was compiled for other vector instructions is used."""
    with fresh_cache():
        yield


ALONE = """
import torch
from arcvideo.model.fused import kernel
from arcvideo.model.norms import rms_norm
x = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
print(float((kernel(rms_norm, fused=True)(x, torch.ones(32), 1e-5) - rms_norm(x, torch.ones(32), 1e-5)).abs().max()))
"""


@needs_a_compiler
@pytest.mark.slow
def test_what_was_compiled_for_other_vector_instructions_is_compiled_anew(tmp_path: Path) -> None:
    if torch.backends.cpu.get_cpu_capability() not in ("AVX512", "AVX2") or "avx512f" not in CPU.read_text():
        pytest.skip("a processor with one set of vector instructions")
    for instructions in ("avx512", "avx2", "default"):
        env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "ATEN_CPU_CAPABILITY": instructions}
        done = finished([sys.executable, "-c", ALONE], seconds=600, env=env)
        assert float(done.stdout.split()[-1]) < 1e-6, (instructions, done.stderr)


@pytest.fixture
def compiled() -> Iterator[Any]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


@needs_a_compiler
@pytest.mark.slow
@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_the_model_computes_the_same_with_it(compiled: Any, recompute: str) -> None:
    graphs = []
    for length in LENGTHS:
        found = []
        for how in ("none", "elementwise"):
            model = small_model()
            model.adopt(replace(SETTINGS, compile=how, activation_checkpointing=recompute))
            logits = model(**row(length)).logits
            logits.square().mean().backward()
            found.append([logits, *(p.grad for p in model.language_model.parameters() if p.grad is not None)])
        for plain, fused in zip(*found, strict=True):
            # Sums of some hundred fp32 products in another order, against the whole of the tensor.
            apart, whole = (fused - plain).detach().norm(), plain.detach().norm()
            assert float(apart) <= 1e-5 * float(whole)
        graphs.append(compiled["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[-1] == graphs[1]  # what the first two lengths compiled serves all
    assert not compiled["graph_break"]


def test_without_it_nothing_is_compiled(compiled: Any) -> None:
    model = small_model()
    model.adopt(SETTINGS)
    model(**row(7))
    assert not compiled["stats"]


def test_layers_of_transformers_are_refused_before_anything_is_loaded() -> None:
    assert ModelSettings(compile="elementwise").compile == "elementwise"
    with pytest.raises(ValueError, match=r"model\.compile must be none with model\.family=arc_qwen"):
        settings("stage=sft", "model=tiny_qwen", "model.compile=elementwise")
