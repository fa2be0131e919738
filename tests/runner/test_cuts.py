"""However a step's samples are cut into micro-batches and dealt to ranks, training is the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from arcvideo.processes.ranks import World
from tests.runner.job import run_ranks
from tests.runner.mixed import cut_run

TOLERANCE = 1e-6
CALL = "tests.runner.mixed:cut_run"


def gap(one: Path, other: Path) -> float:
    """Largest difference of the weights that two runs ended with."""
    ours, theirs = load_file(one / "weights.safetensors"), load_file(other / "weights.safetensors")
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, world: World) -> tuple[Path, list[list[float]]]:
    """Five steps of one micro-batch of eight samples, one rank, ZeRO 0: what all others must equal."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, cut_run(world=world, folder=str(folder), stage=0, rows=1)


def same(whole: tuple[Path, list[list[float]]], folder: Path, curve: list[list[float]]) -> None:
    """Losses, gradient norms and weights agree."""
    for (step, loss, norm), (step2, loss2, norm2) in zip(curve, whole[1], strict=True):
        assert step == step2
        assert loss == pytest.approx(loss2, abs=TOLERANCE)
        assert norm == pytest.approx(norm2, abs=TOLERANCE)
    assert gap(folder, whole[0]) <= TOLERANCE


SLOW = [pytest.param(stage, rows, marks=pytest.mark.slow) for stage in (1, 2) for rows in (1, 2, 4)]
ALSO_SLOW = [
    pytest.param(stage, rows, marks=pytest.mark.slow) for stage, rows in ((0, 2), (0, 4), (3, 2), (3, 4), (3, 8))
]


@pytest.mark.parametrize(("stage", "rows"), [(0, 8), (1, 8), (2, 8), (3, 1), *SLOW, *ALSO_SLOW])
def test_one_rank_trains_the_same_from_any_cut(
    whole: tuple[Path, list[list[float]]], world: World, tmp_path: Path, stage: int, rows: int
) -> None:
    same(whole, tmp_path, cut_run(world=world, folder=str(tmp_path), stage=stage, rows=rows))


def several(whole: tuple[Path, list[list[float]]], root: Path, *, ranks: int, cells: list[tuple[int, int]]) -> None:
    """Run the cells (stage, rows) in one job of `ranks` processes and compare each."""
    folders = [root / f"{ranks}-{stage}-{rows}" for stage, rows in cells]
    tasks = [
        {"do": CALL, "folder": str(folder), "stage": stage, "rows": rows}
        for folder, (stage, rows) in zip(folders, cells, strict=True)
    ]
    for folder, curve in zip(folders, run_ranks(tasks, ranks=ranks), strict=True):
        same(whole, folder, curve)


@pytest.mark.slow
def test_two_ranks_of_four_samples_train_the_same_under_every_zero_stage(
    whole: tuple[Path, list[list[float]]], tmp_path: Path
) -> None:
    several(whole, tmp_path, ranks=2, cells=[(stage, 2) for stage in range(4)])


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, pytest.param(4, marks=pytest.mark.nightly)])
def test_several_ranks_train_the_same_from_any_cut(
    whole: tuple[Path, list[list[float]]], tmp_path: Path, ranks: int
) -> None:
    cells = [(stage, rows) for stage in range(4) for rows in (2, 4, 8) if rows % ranks == 0]
    several(whole, tmp_path, ranks=ranks, cells=cells)
