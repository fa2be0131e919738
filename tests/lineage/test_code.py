"""Which code counts in a stage's identity, and which edits do not."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from arcvideo.lineage import code
from arcvideo.lineage.code import BYSTANDERS, DECIDING, PACKAGE, code_diff, evaluation_code, running_text, training_code
from arcvideo.objectives import OBJECTIVES

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
    for needed in ("arcvideo.model.modeling", "arcvideo.planning.plan", "arcvideo.media.decode",
                   "arcvideo.runner.runner", "arcvideo.tasks.mcq", "arcvideo.runner.muon"):  # fmt: skip
        assert needed in supervised
        assert needed in sampled
    assert "arcvideo.objectives.next_token" in supervised
    assert "arcvideo.objectives.next_token" not in sampled
    assert {"arcvideo.objectives.grpo", "arcvideo.sampling.sampler"} <= sampled.keys() - supervised.keys()


def test_measuring_reporting_and_launching_do_not_count() -> None:
    reached = training_code(objective="grpo")
    rooms = {name.split(".")[1] for name in reached if "." in name}
    assert rooms.isdisjoint({"report", "evaluation", "lineage", "pipeline", "preflight", "synthetic", "composing"})
    assert "arcvideo.evaluation.bootstrap" in evaluation_code()


IDLE = (
    "data/plots.py", "data/sheet.py", "data/inspection.py", "data/commands.py", "data/shards.py", "data/transcribe.py",
    "data/importers/captions.py", "data/import_command.py", "shards/write.py", "tracking/log.py", "tracking/metrics.py",
    "processes/watchdog.py", "processes/signals.py", "runner/saving.py", "tracking/cost.py", "rollout/log.py",
    "rejection/answers.py", "report/page.py", "evaluation/bootstrap.py", "preflight/volume.py", "synthetic/draw.py",
    "lineage/code.py", "pipeline.py", "train.py", "composing/config.py",
)  # fmt: skip
DECISIVE = (
    "types.py", "render.py", "planning/plan.py", "planning/pack.py", "shards/index.py", "feed/collate.py",
    "media/decode.py", "decoding/worker.py", "media/audio.py", "tasks/mcq.py", "model/modeling.py",
    "model/arc_hunyuan/language.py", "objectives/loss.py", "runner/runner.py", "runner/engine.py",
    "runner/optimizer.py", "runner/muon.py", "stage.py",
)  # fmt: skip
OWN = {"objectives/next_token.py": {"next_token"}, "objectives/grpo.py": {"grpo"},
       "objectives/dpo.py": {"dpo"}, "sampling/sampler.py": {"grpo", "dpo"}}  # fmt: skip


def digests() -> dict[str, dict[str, str]]:
    for cached in (code._reached, code._parsed, code._digest):
        cached.cache_clear()
    return {objective: training_code(objective=objective) for objective in OBJECTIVES}


def test_stages_are_stale_exactly_when_what_decides_their_weights_is_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "arcvideo"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "fonts"))
    monkeypatch.setattr(code, "PACKAGE", copy)
    before = digests()
    for name in (*IDLE, *DECISIVE, *OWN):
        with (copy / name).open("a", encoding="utf-8") as file:
            file.write("\n_EDITED = 1\n")
    after = digests()
    code._reached.cache_clear()
    for objective in OBJECTIVES:
        changed = code_diff(before[objective], after[objective])
        assert changed == sorted(
            f"arcvideo.{name.removesuffix('.py').replace('/', '.')}"
            for name in (*DECISIVE, *(name for name, users in OWN.items() if objective in users))
        )


def test_everything_that_training_reaches_is_judged() -> None:
    """A room that training comes to need is named: it decides weights, or it stands here because it does not."""
    idle = {
        "composing",
        "structured",
        "lineage",
        "evaluation",
        "measuring",
        "bench",  # what others published stands beside what is measured
        "validation",  # where what it measures chooses the weights, its code counts by `evaluation_code`
        "report",
        "flops",
        "processing",
        "files",
        "fingerprints",
        "hidden",
        "messages",
        "named",  # finds code of other packages, which counts by its own files
        "places",
        "progress",
        "remote",  # brings bytes from elsewhere; what they are is told by the digests of the index
        "seals",
        "tracking",
    }
    reached, waiting = set(), [code.TRAINING]
    while waiting:
        name = waiting.pop()
        path = code._file(name)
        if name not in reached and path is not None and name != "arcvideo":
            reached.add(name)
            waiting += code._imports(path)
    rooms = {name.split(".")[1] for name in reached}
    assert rooms - idle - set(DECIDING) == set()
    assert set(DECIDING) <= rooms


def test_bystanders_exist() -> None:
    names = [f"arcvideo.{room}.{module}" for room, modules in BYSTANDERS.items() for module in modules]
    assert [name for name in names if code._file(name) is None] == []


def test_a_users_own_reward_counts_by_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "own_reward_for_lineage.py"
    module.write_text("def f(completions, **columns):\n    return [1.0 for _ in completions]\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    name = "own_reward_for_lineage"
    first = training_code(objective="grpo", rewards=[f"{name}:f", "mcq_accuracy"])
    assert name in first
    assert name not in sys.modules, "found, not run"
    assert code_diff(training_code(objective="grpo"), first) == [name]


def test_the_package_around_a_users_reward_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "own_rewards_outer" / "inner"
    inner.mkdir(parents=True)
    ran = "raise RuntimeError('a status must not run this')\n"
    for folder in (inner.parent, inner):
        (folder / "__init__.py").write_text(ran)
    (inner / "spans.py").write_text(ran)
    bare = tmp_path / "own_rewards_bare" / "inner"  # folders without __init__.py are packages, too
    bare.mkdir(parents=True)
    (bare / "spans.py").write_text(ran)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    for package in ("own_rewards_outer", "own_rewards_bare"):
        name = f"{package}.inner.spans"
        assert name in training_code(objective="grpo", rewards=[f"{name}:f"])
        assert not {module for module in sys.modules if module.startswith(package)}
    for missing in ("own_rewards_outer.gone.spans", "own_rewards_outer.inner.spans.deeper", "own_rewards_gone.spans"):
        assert missing not in training_code(objective="grpo", rewards=[f"{missing}:f"])


def test_a_change_in_an_own_metric_makes_its_measuring_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "my_figures_of_this_test.py"
    source.write_text("def brief(text, truth):\n    return float(len(text) < 9)\n")
    monkeypatch.syspath_prepend(tmp_path)
    name = "my_figures_of_this_test:brief"
    without = evaluation_code()
    before = evaluation_code(metrics=["mcq_accuracy", name])
    assert before.keys() - without.keys() == {"my_figures_of_this_test"}
    assert evaluation_code(metrics=["mcq_accuracy"]) == without
    assert evaluation_code(metrics=[f"{name}[needs:audio]"]) == before
    source.write_text("# words alone\ndef brief(text, truth):\n    return float(len(text) < 9)\n")
    code._digest.cache_clear()
    assert evaluation_code(metrics=[name]) == before
    source.write_text("def brief(text, truth):\n    return float(len(text) < 5)\n")
    code._digest.cache_clear()
    after = evaluation_code(metrics=[name])
    assert code_diff(before, after) == ["my_figures_of_this_test"]
