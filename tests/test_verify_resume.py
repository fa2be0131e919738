"""`verify_resume`: the experiment that shows whether a resumed run has the bits of a straight one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from arcvideo.composing.config import ConfigError
from arcvideo.saving.checkpoint import CheckpointFolder, Share
from arcvideo.verify_resume import difference
from tests.compose import settings
from tests.conftest import SmallWorld
from tests.spawned import finished

WEIGHTS = [("a", torch.arange(3.0)), ("b", torch.ones(2))]
STATE = {"random": [[1]], "steps_applied": 2, "skipped": {}, "spikes": {}, "held": {}, "wandb_id": "x"}


def made(folder: Path, *, losses: tuple[float, float] = (2.0, 1.0), b: float = 1.0, seen: int = 4) -> Path:
    """A run of two steps as it lies on the disk."""
    share = Share(
        step=2, identity="me", token="t", weights=[WEIGHTS[0], ("b", torch.full((2,), b))], optimizer=[],
        state=STATE | {"counts": {"seen": {"s": seen}}},
    )  # fmt: skip
    CheckpointFolder(folder / "checkpoints").write(share)
    spent = {
        "time/step": id(folder),
        "train/rollout/seconds/decode": id(folder),
        "train/rollout/tokens_per_second": id(folder),
    }
    lines = [{"step": step, "train/loss": loss} | spent for step, loss in enumerate(losses)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_equal_runs_have_no_difference_whatever_their_speed(tmp_path: Path) -> None:
    assert difference(made(tmp_path / "one"), made(tmp_path / "other"), steps=2) is None


def test_the_first_step_that_differs_is_named_with_the_first_tensor(tmp_path: Path) -> None:
    other = made(tmp_path / "other", losses=(2.0, 1.0 + 1e-12), b=1.5)
    found = difference(made(tmp_path / "one"), other, steps=2)
    assert found is not None
    assert found["step"] == 1
    assert found["what"].startswith("train/loss 1.0 and 1.000000000001; at the end weights b differs by up to 0.5")


def test_a_zero_of_another_sign_is_another_number(tmp_path: Path) -> None:
    found = difference(made(tmp_path / "one", b=0.0), made(tmp_path / "other", b=-0.0), steps=2)
    assert found == {"step": 1, "what": "weights b differs by up to 0"}


def test_other_counts_of_samples_are_a_difference(tmp_path: Path) -> None:
    found = difference(made(tmp_path / "one"), made(tmp_path / "other", seen=5), steps=2)
    assert found == {"step": 1, "what": "counts of the checkpoint differs"}


@pytest.mark.parametrize("steps", ["1", "1000"])
def test_a_number_of_steps_that_cannot_be_stopped_in_is_refused(steps: str) -> None:
    with pytest.raises(ConfigError, match=r"verify_resume=\d+ must be 0, or between 2 and runner\.steps=3"):
        settings("stage=sft", "runner.steps=3", "schedule.warmup_steps=1", f"verify_resume={steps}")


GRPO = ["grpo.num_prompts=2", "grpo.num_generations=4", "grpo.prompts_per_batch=2", "grpo.max_completion_length=6"]
# Weights this fresh earn nothing by the paper's rewards, and a run in which nothing can be learned is refused.
GRPO += ["grpo.temperature=2", r"grpo.rewards={tests.test_stage\:different_letters: 1.0}"]
# One rollout for all steps: wherever the run is stopped, the completions are those of older weights.
KINDS: dict[str, list[str]] = {"sft": [], "audio_warmup": [], "pretrain": [], "cold_start": [], "final_sft": []}
KINDS |= {"grpo": GRPO, "grpo-again": [*GRPO, "grpo.num_iterations=3"]}


@pytest.mark.parametrize("kind", [pytest.param(kind, marks=[pytest.mark.slow][: kind != "sft"]) for kind in KINDS])
def test_every_stage_resumes_exactly_by_its_own_command(small_world: SmallWorld, tmp_path: Path, kind: str) -> None:
    stage = kind.partition("-")[0]
    words = [f"stage={stage}", "verify_resume=3", f"run_dir={tmp_path}", *small_world.overrides, *KINDS[kind]]
    done = finished([sys.executable, "-m", "arcvideo.train", *words], seconds=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all 3 steps and the final state have the same bits" in done.stdout
    assert not (tmp_path / stage / "verify_resume").exists()
    assert not (tmp_path / stage / "manifest.json").exists()
