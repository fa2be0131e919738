"""A user's own class as the objective of a stage, from the command line to the manifest."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcvideo.lineage.manifest import read_manifest
from tests.compose import settings
from tests.conftest import SmallWorld
from tests.test_stage import rows, run

FOCAL = """
import torch
from torch.nn import functional as F
from arcvideo.objectives.loss import Loss

class Focal:
    def __init__(self, settings, *, gamma):
        self.settings, self.gamma = settings, gamma

    def __call__(self, logits, batch):
        losses = F.cross_entropy(logits.float(), batch.target_ids, reduction="none")
        easy = (-losses.detach()).exp()
        total = ((1 - easy) ** self.gamma * losses * batch.target_weights).sum()
        return Loss(total=total, metrics={"easy": (easy.sum(), float(len(easy)))})
"""
NEARER = """
from arcvideo.objectives.dpo import Dpo

class Nearer(Dpo):
    def __call__(self, logits, batch):
        assert "ref_logprobs" in batch.extra
        return super().__call__(logits, batch)
"""


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a package that can be imported, with a module `losses`."""
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / name / "losses.py").write_text(FOCAL + NEARER)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_users_own_objective_trains_a_stage(small_world: SmallWorld, tmp_path: Path, own_package: str) -> None:
    words = (f"stage.objective={own_package}.losses:Focal", "stage.options.gamma=2.0", "evaluation.shards=''")
    stage = run(settings("stage=sft", f"run_dir={tmp_path}/runs", *small_world.overrides, *words))
    manifest, lines = read_manifest(stage.folder), rows(stage.folder / "metrics.jsonl")
    assert manifest.steps == 3
    assert manifest.config["stage"]["options"] == {"gamma": 2.0}
    assert all(0 < line["train/easy"] < 1 for line in lines)
    assert "train/token_accuracy" not in lines[0]
    assert f"{own_package}.losses" in manifest.code  # an edit of the file makes the stage stale
    books = [row["books"] for row in manifest.mixture.values()]
    assert all(row["planned"] == row["seen"] + row["quarantined"] > 0 for row in books)


def test_a_users_own_objective_that_is_not_there_is_told_before_anything_is_trained(
    small_world: SmallWorld, tmp_path: Path, own_package: str
) -> None:
    words = (f"stage.objective={own_package}.losses:Fokal", f"run_dir={tmp_path}/runs", *small_world.overrides)
    with pytest.raises(ValueError, match=rf"stage\.objective.*{own_package}\.losses:Fokal.* cannot be imported"):
        run(settings("stage=sft", *words))
    assert not (tmp_path / "runs/sft/metrics.jsonl").exists()
