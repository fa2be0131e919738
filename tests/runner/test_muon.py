"""Muon against its definition and against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from arcvideo.runner.muon import Muon, orthogonal


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 8, 32), (3, 32, 8), (2, 1, 7), (1, 128, 256)])
def test_singular_values_come_near_one_and_the_directions_stay(shape: tuple[int, ...]) -> None:
    matrices = drawn(*shape) * 1e-3
    found = orthogonal(matrices)
    assert found.shape == matrices.shape
    # The quintic does not converge to 1: it sends every value that is not tiny into this band.
    values = torch.linalg.svdvals(found)
    assert values.max() < 1.3
    assert values.median() > 0.65
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    rotated = u.mT @ found @ vh.mT
    torch.testing.assert_close(rotated, torch.diag_embed(rotated.diagonal(dim1=1, dim2=2)), atol=1e-4, rtol=0)


def test_matrices_of_a_batch_do_not_touch_each_other() -> None:
    matrices = drawn(4, 6, 9)
    alone = torch.cat([orthogonal(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonal(matrices), alone)


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert orthogonal(torch.zeros(2, 4, 5)).abs().max() == 0


@pytest.mark.parametrize("shape", [(24, 24), (16, 48), (48, 16)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_steps_equal_those_of_torch_rescaled_to_adamw(shape: tuple[int, int], weight_decay: float) -> None:
    ours, theirs = (nn.Parameter(drawn(*shape, seed=1)) for _ in range(2))
    start = ours.detach().clone()
    optimizers = (
        Muon([ours], lr=0.02, momentum=0.95, weight_decay=weight_decay),
        torch.optim.Muon(
            [theirs], lr=0.02, momentum=0.95, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw", nesterov=True
        ),
    )
    for step in range(4):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            parameter.grad = drawn(*shape, seed=2 + step)
            optimizer.step()
    moved = (theirs.detach() - start).norm()
    assert moved > 0.1
    # torch iterates in bfloat16, of eight bits.
    assert (ours - theirs).norm() / moved < 0.02


def test_the_update_has_the_size_that_adamw_gives() -> None:
    parameter = nn.Parameter(torch.zeros(64, 64))
    parameter.grad = drawn(64, 64)
    Muon([parameter], lr=1.0).step()
    assert parameter.detach().square().mean().sqrt() == pytest.approx(0.2, rel=0.2)


def test_the_only_state_is_a_momentum_shaped_like_the_parameter() -> None:
    convolution = nn.Parameter(drawn(4, 3, 2, 2))
    optimizer = Muon([convolution])
    convolution.grad = drawn(4, 3, 2, 2, seed=5)
    optimizer.step()
    assert {name: value.shape for name, value in optimizer.state[convolution].items()} == {
        "momentum_buffer": convolution.shape
    }
    torch.testing.assert_close(optimizer.state[convolution]["momentum_buffer"], 0.05 * convolution.grad)


def test_parameters_without_a_gradient_stay_as_they_are() -> None:
    still, moving = nn.Parameter(drawn(4, 4)), nn.Parameter(drawn(4, 4))
    before = still.detach().clone()
    optimizer = Muon([still, moving], lr=0.1, weight_decay=0.5)
    moving.grad = drawn(4, 4, seed=3)
    optimizer.step()
    assert torch.equal(still, before)
    assert not torch.equal(moving, before)
    assert still not in optimizer.state


def test_saved_state_continues_with_the_same_steps() -> None:
    def steps(parameter: nn.Parameter, optimizer: Muon, seeds: range) -> None:
        for seed in seeds:
            parameter.grad = drawn(8, 12, seed=seed)
            optimizer.step()

    straight = nn.Parameter(drawn(8, 12))
    optimizer = Muon([straight], lr=0.1)
    steps(straight, optimizer, range(2))
    resumed = nn.Parameter(straight.detach().clone())
    again = Muon([resumed], lr=0.1)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(straight, optimizer, range(2, 4))
    steps(resumed, again, range(2, 4))
    assert torch.equal(straight, resumed)


def test_learning_rates_are_those_of_the_groups() -> None:
    slow, fast = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 4))
    optimizer = Muon([{"params": [slow], "lr": 0.1}, {"params": [fast], "lr": 0.3}])
    for parameter in (slow, fast):
        parameter.grad = drawn(4, 4)
    optimizer.step()
    torch.testing.assert_close(fast, 3 * slow)
