"""Training steps run on kernels that repeat their sums, or say that they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from arcvideo.processes.ranks import World
from arcvideo.runner.gradient import repeatable
from tests.runner.test_runner import runner
from tests.runner.tiny import Rows, cross_entropy


def mode() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


class _Seen(torch.autograd.Function):
    """Notes under which rule the forward and the backward run."""

    found: list[tuple[bool, bool]]

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        _Seen.found.append(mode())
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        _Seen.found.append(mode())
        return grad


@pytest.mark.parametrize("asked", [True, False])
def test_forward_and_backward_are_strict_and_the_manifest_hears_of_it(
    tmp_path: Path, world: World, asked: bool
) -> None:
    _Seen.found = []
    torch.use_deterministic_algorithms(False)

    def watched(logits: torch.Tensor, batch: Any) -> Any:
        return cross_entropy(_Seen.apply(logits), batch)

    ready = runner(tmp_path, world=world, source=Rows(), steps=1, deterministic=asked, liveness=False)
    ready.objective = watched
    result = ready.run()
    assert _Seen.found == [(asked, False)] * (2 * 8), "warning only leaves CUDA's attention as it is"
    assert result.repeatable is asked
    assert mode() == (asked, asked), "what is sampled and evaluated may warn"


def test_an_operation_without_a_repeatable_kernel_is_refused_with_the_remedy(tmp_path: Path, world: World) -> None:
    def loose(logits: torch.Tensor, batch: Any) -> Any:
        logits.detach().put_(torch.tensor([0]), torch.zeros(1, dtype=logits.dtype))
        return cross_entropy(logits, batch)

    ready = runner(tmp_path, world=world, source=Rows(), steps=1, liveness=False)
    ready.objective = loose
    with pytest.raises(ValueError, match=r"put_.*runner\.deterministic=false") as told:
        ready.run()
    assert len(str(told.value).splitlines()) == 1


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="another"), repeatable(True):
        raise RuntimeError("another")
