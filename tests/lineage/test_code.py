"""Which code counts in a stage's identity, and which edits do not."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from arcvideo.lineage.code import code_diff, evaluation_code, running_text, training_code

SOURCE = '''"""What the file is for."""
# a remark
X = 1  # why one


def f(a: int) -> int:
    """Return more."""
    return a + X  # sum
'''


def test_words_for_humans_do_not_count() -> None:
    other = (
        SOURCE.replace("What the file is for", "Another sentence").replace("# a remark\n", "").replace("  # sum", "")
    )
    assert running_text(other) == running_text(SOURCE)
    assert running_text(SOURCE).splitlines() == ["X = 1", "def f(a: int) -> int:", "    return a + X"]


def test_what_runs_counts() -> None:
    assert running_text(SOURCE.replace("a + X", "a - X")) != running_text(SOURCE)
    assert running_text("x = '# no remark'\n") == "x = '# no remark'\n"


def test_a_stage_depends_on_model_data_runner_and_its_own_objective() -> None:
    supervised, sampled = training_code(objective="next_token"), training_code(objective="grpo")
    for needed in ("arcvideo.model.modeling", "arcvideo.data.plan", "arcvideo.media.decode", "arcvideo.runner.runner",
                   "arcvideo.tasks.mcq", "arcvideo.muon"):  # fmt: skip
        assert needed in supervised
        assert needed in sampled
    assert "arcvideo.objectives.next_token" in supervised
    assert "arcvideo.objectives.next_token" not in sampled
    assert {"arcvideo.objectives.grpo", "arcvideo.rollout.sampler"} <= sampled.keys() - supervised.keys()


def test_measuring_reporting_and_launching_do_not_count() -> None:
    reached = training_code(objective="grpo")
    rooms = {name.split(".")[1] for name in reached if "." in name}
    assert rooms.isdisjoint({"report", "evaluation", "lineage", "pipeline", "preflight", "synthetic", "config"})
    assert "arcvideo.evaluation.scores" in evaluation_code()


def test_a_users_own_reward_counts_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "own_reward_for_lineage.py"
    module.write_text("def f(completions, **columns):\n    return [1.0 for _ in completions]\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    name = "own_reward_for_lineage"
    first = training_code(objective="grpo", rewards=[f"{name}:f", "mcq_accuracy"])
    assert name in first
    assert name not in sys.modules, "found, not run"
    assert code_diff(training_code(objective="grpo"), first) == [name]
