"""One stage from its parent to its manifest, and a pipeline of two, on a few clips."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml

from arcvideo import pipeline, stage
from arcvideo.composing.config import RunConfig
from arcvideo.composing.recipe import load_recipe
from arcvideo.feed.source import Source
from arcvideo.lineage.identity import folder_digest
from arcvideo.lineage.manifest import Manifest, read_manifest
from arcvideo.lineage.parents import Parent, resolve_parent
from arcvideo.model.disk.loading import load_model
from arcvideo.model.disk.tokenizer import load_tokenizer
from arcvideo.processes.signals import REQUEUE_EXIT_CODE
from arcvideo.rollout.rewards.loading import load_reward
from arcvideo.stage import run_stage
from tests.compose import settings
from tests.conftest import SmallWorld
from tests.spawned import finished, running

GRPO = [
    "grpo.num_prompts=2",
    "grpo.num_generations=4",
    "grpo.prompts_per_batch=2",
    "grpo.max_completion_length=6",
    "grpo.temperature=2",
    "runner.steps=2",
]


ROOT = Path(__file__).resolve().parents[1]
OWN_REWARD = "tests.test_stage:different_letters"


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A stage that ran."""

    config: RunConfig
    parent: Parent

    @property
    def folder(self) -> Path:
        return self.config.stage_dir


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(folder).named_parameters())


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def run(config: RunConfig) -> Finished:
    parent = resolve_parent(
        run_dir=Path(config.run_dir),
        stage=config.stage.name,
        parent=config.stage.parent,
        base=Path(config.base),
        override=Path(config.parent) if config.parent else None,
    )
    run_stage(config, parent=parent)
    return Finished(config=config, parent=parent)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def sft(small_world: SmallWorld, run_dir: Path) -> Finished:
    return run(settings("stage=sft", f"run_dir={run_dir}", *small_world.overrides))


@pytest.fixture(scope="module")
def grpo(small_world: SmallWorld, sft: Finished, run_dir: Path) -> Finished:
    """Weights this fresh earn nothing by the paper's rewards, so the completions' own letters are rewarded."""
    config = settings("stage=grpo", f"run_dir={run_dir}", *small_world.overrides, *GRPO)
    config = replace(config, parent=str(sft.folder / "export"))
    rewards = {OWN_REWARD: 1.0, "mcq_accuracy": 0.0}
    return run(replace(config, grpo=replace(config.grpo, rewards=rewards)))


def different_letters(completions: Sequence[str], **columns: Sequence[Any]) -> list[float]:
    """A reward that sampled noise differs in."""
    return [float(len(set(text))) for text in completions]


def items_of(stage: Finished) -> int:
    """Items in the batches of all steps of a supervised stage, from a source of its own."""
    source = Source(stage.config.data, layout=stage.config.layout, tokenizer=load_tokenizer(stage.parent.path), seed=0)
    batches = [batch for step in range(stage.config.runner.steps) for batch in source.batches(step).batches]
    source.close()
    return sum(len(batch.tasks) for batch in batches)


# --- a supervised stage ---


def test_a_finished_stage_has_its_files(sft: Finished) -> None:
    names = {path.name for path in sft.folder.iterdir()}
    assert {"manifest.json", "evaluation.json", "predictions.jsonl", "metrics.jsonl", "export", "checkpoints"} <= names


def test_the_manifest_says_what_ran(sft: Finished) -> None:
    manifest = read_manifest(sft.folder)
    assert (manifest.stage, manifest.steps, manifest.skipped) == ("sft", 3, [])
    assert manifest.parent == sft.parent.identity == folder_digest(sft.parent.path)
    assert manifest.config["runner"]["steps"] == 3
    assert [row["module"] for row in manifest.trainable if row["trained"]] == [
        "llm", "vision_projector", "audio_projector",
    ]  # fmt: skip
    assert set(manifest.quarantined.values()) == {0}
    # Steps that the liveness proof looked at beforehand count once.
    assert sum(manifest.seen.values()) == items_of(sft)
    books = [row["books"] for row in manifest.mixture.values()]
    assert all(row["planned"] == row["seen"] + row["quarantined"] > 0 for row in books)
    assert sum(row["seen"] for row in books) == sum(manifest.seen.values())
    assert set(manifest.liveness["gradients"]) == {"llm", "vision_projector", "audio_projector"}
    assert {kind.split("/")[0] for kind in manifest.liveness["moved"]} == {"audio", "video"}


def test_the_manifest_follows_its_schema_in_both_directions(sft: Finished) -> None:
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    found = json.loads((sft.folder / "manifest.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(found, schema)
    assert set(schema["properties"]) == {item.name for item in fields(Manifest)} | {"seal"}
    for wrong in (
        found | {"extra": 1},
        {key: value for key, value in found.items() if key != "liveness"},
        found | {"frozen_after": {"vit": "not a digest"}},
        found | {"trainable": [row | {"odd": 1} for row in found["trainable"]]},
        found | {"liveness": {"moved": {"video/zeroed": "much"}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_the_page_on_the_manifest_explains_every_field() -> None:
    page = (ROOT / "docs" / "manifest.md").read_text()
    assert [item.name for item in fields(Manifest) if f"| `{item.name}` |" not in page] == []


def test_frozen_towers_keep_their_bits_and_the_rest_moves(sft: Finished) -> None:
    manifest = read_manifest(sft.folder)
    assert set(manifest.frozen_before) == {"vit", "whisper"}
    assert manifest.frozen_before == manifest.frozen_after
    before, after = weights(sft.parent.path), weights(sft.folder / "export")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    towers = {name for name in before if name.startswith(("vision_model.vit.", "speech_encoder."))}
    assert towers
    assert moved.isdisjoint(towers)
    assert len(moved) > 0.9 * len(before.keys() - towers)


def test_every_step_is_logged_and_the_loss_falls(sft: Finished) -> None:
    logged = rows(sft.folder / "metrics.jsonl")
    assert [row["step"] for row in logged] == [0, 1, 2, 3]
    assert logged[2]["train/loss"] < logged[0]["train/loss"]
    measured = json.loads((sft.folder / "evaluation.json").read_text())
    assert {name: row["value"] for name, row in measured.items()} == {
        name.removeprefix("eval/"): value for name, value in logged[3].items() if name.count("/") == 1
    }, "behind the steps stands what the finished stage measured"


def test_the_evaluation_is_on_held_out_clips_and_in_the_manifest(sft: Finished) -> None:
    measured = json.loads((sft.folder / "evaluation.json").read_text())
    manifest = read_manifest(sft.folder)
    assert {"transcript_token_error", "mcq_accuracy", "grounding_miou", "speech_qa"} <= set(measured)
    for name, metric in measured.items():
        assert set(metric) == {"value", "low", "high", "chance", "n"}
        assert metric["low"] <= metric["value"] <= metric["high"]
        assert manifest.metrics[f"eval/{name}"] == metric["value"]
    predictions = rows(sft.folder / "predictions.jsonl")
    assert {row["key"].split("-")[0] for row in predictions} == {"test"}
    assert manifest.value("mcq_accuracy") == measured["mcq_accuracy"]["value"]


def test_the_export_carries_its_tokenizer(sft: Finished) -> None:
    ours, theirs = (load_tokenizer(path) for path in (sft.folder / "export", sft.parent.path))
    assert ours.get_vocab() == theirs.get_vocab()


def test_a_layer_unfrozen_behind_the_settings_leaves_no_manifest(
    small_world: SmallWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unfreezing(stage.Engine):
        def __init__(self, model: torch.nn.Module, **words: Any) -> None:
            [matrix for matrix in model.vision_model.vit.parameters() if matrix.ndim == 2][-1].requires_grad_(True)
            super().__init__(model, **words)

    monkeypatch.setattr(stage, "Engine", Unfreezing)
    words = [*small_world.overrides, f"run_dir={tmp_path}", "evaluation.shards=''"]
    with pytest.raises(ValueError, match=r"vision_model\.vit\..* require gradients, but stage\.train"):
        run(settings("stage=sft", *words))
    words += ["runner.liveness=false", "runner.steps=2", "feature_cache=false", "output=again"]
    with pytest.raises(ValueError, match="changed vit, which its settings freeze"):
        run(settings("stage=sft", *words))
    assert not list(tmp_path.glob("*/manifest.json"))


def test_a_finished_stage_run_again_comes_to_the_same_weights(sft: Finished) -> None:
    before, value = weights(sft.folder / "export"), read_manifest(sft.folder).value("mcq_accuracy")
    run(sft.config)
    assert read_manifest(sft.folder).value("mcq_accuracy") == value
    assert len(rows(sft.folder / "metrics.jsonl")) == 4
    after = weights(sft.folder / "export")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_other_settings_do_not_continue_its_checkpoint(sft: Finished) -> None:
    with pytest.raises(ValueError, match="belongs to another run"):
        run(replace(sft.config, runner=replace(sft.config.runner, seed=7)))


def test_another_model_than_the_parents_is_refused(small_world: SmallWorld, tmp_path: Path) -> None:
    config = settings("stage=sft", f"run_dir={tmp_path}", *small_world.overrides, "model.text.num_hidden_layers=2")
    with pytest.raises(ValueError, match=r"holds another model.*text.num_hidden_layers"):
        run(config)


def test_a_child_starts_from_the_export_of_a_finished_parent_only(sft: Finished, run_dir: Path) -> None:
    found = resolve_parent(run_dir=run_dir, stage="cold_start", parent="sft")
    assert found.path == sft.folder / "export"
    assert found.identity == read_manifest(sft.folder).identity
    with pytest.raises(ValueError, match="final_sft needs cold_start, which has not run"):
        resolve_parent(run_dir=run_dir, stage="final_sft", parent="cold_start")


# --- reinforcement ---


def test_rollouts_are_sampled_and_rewarded(grpo: Finished) -> None:
    written = rows(grpo.folder / "rollouts.jsonl")
    assert [row["step"] for row in written] == [0] * 8 + [1] * 8
    assert {row["task"] for row in written} <= {"mcq", "grounding"}
    for start in range(0, len(written), 4):
        group = written[start : start + 4]
        assert len({row["key"] for row in group}) == 1
        assert len({row["completion"] for row in group}) > 1, "a group of equal completions was not sampled"
        assert sum(row["advantage"] for row in group) == pytest.approx(0, abs=1e-3)
    for row in written:
        assert row["rewards"][OWN_REWARD] == len(set(row["completion"]))
        if row["task"] == "mcq":
            letter, options = row["truth"]["letter"], [row["truth"]["options"]]
            reward = load_reward("mcq_accuracy")
            scored = reward([row["completion"]], task=["mcq"], letter=[letter], options=options)
            assert row["rewards"]["mcq_accuracy"] == scored[0]


def test_only_the_language_model_moves_in_grpo(grpo: Finished) -> None:
    assert set(read_manifest(grpo.folder).frozen_before) == {"vit", "whisper", "vision_projector", "audio_projector"}
    before, after = weights(grpo.parent.path), weights(grpo.folder / "export")
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"language_model"}


def test_a_stage_knows_its_parent_stage(grpo: Finished, sft: Finished) -> None:
    manifest = read_manifest(grpo.folder)
    assert manifest.parent == read_manifest(sft.folder).identity
    assert manifest.config_diff["stage.name"] == ["sft", "grpo"]
    assert "optimizer.lr" in manifest.config_diff


# --- processes ---


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "arcvideo.train", *words]


@pytest.mark.slow
def test_a_run_told_to_stop_goes_on_to_the_weights_of_a_straight_run(small_world: SmallWorld, tmp_path: Path) -> None:
    words = ["stage=sft", *small_world.overrides, "runner.steps=30", "runner.save_every=0", "evaluation.shards=''"]
    cut = command(*words, f"run_dir={tmp_path / 'cut'}")
    log = tmp_path / "cut" / "sft" / "metrics.jsonl"
    with running(cut, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        until = time.monotonic() + 900
        while not (log.exists() and log.read_text().count("\n") >= 2) and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=900)
    assert process.returncode == REQUEUE_EXIT_CODE, said
    assert 2 <= len(rows(log)) < 30
    assert not (tmp_path / "cut" / "sft" / "manifest.json").exists()
    again = finished(cut, seconds=900)
    assert again.returncode == 0, again.stderr
    assert "resumed after step" in again.stdout + again.stderr
    straight = finished(command(*words, f"run_dir={tmp_path / 'straight'}"), seconds=900)
    assert straight.returncode == 0, straight.stderr
    assert [row["step"] for row in rows(log)] == list(range(30))
    ours, theirs = (weights(tmp_path / name / "sft" / "export") for name in ("cut", "straight"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    manifests = [read_manifest(tmp_path / name / "sft") for name in ("cut", "straight")]
    assert manifests[0].identity == manifests[1].identity


def written_recipe(path: Path, **changes: Any) -> Path:
    recipe = {"name": "small", "run_dir": str(path / "run"), "stages": ["audio_warmup", "pretrain"]}
    (path / "small.yaml").write_text(yaml.safe_dump(recipe | changes))
    return path / "small.yaml"


@pytest.mark.slow
def test_a_pipeline_trains_each_stage_from_the_one_before_and_skips_what_is_finished(
    small_world: SmallWorld, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = (word.partition("=")[::2] for word in small_world.overrides if not word.startswith("parent="))
    values = {key: yaml.safe_load(value) for key, value in given}
    recipe = load_recipe(str(written_recipe(tmp_path, settings=values)))
    assert pipeline.run(recipe, extra=["evaluation.shards=''"])
    assert "finished already" not in capfd.readouterr().out
    first, second = (read_manifest(tmp_path / "run" / stage) for stage in ("audio_warmup", "pretrain"))
    assert first.parent == folder_digest(small_world.base)
    assert second.parent == first.identity

    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*/**/*") if path.is_file()}

    before = times()
    assert pipeline.run(recipe, extra=["evaluation.shards=''"])
    assert capfd.readouterr().out.count("finished already") == 2
    assert pipeline.status(recipe, extra=["evaluation.shards=''"]).count("finished") == 2
    assert times() == before
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["passed"] is True


def test_a_preparation_runs_once_and_must_make_what_it_promises(tmp_path: Path) -> None:
    made = tmp_path / "made"
    step = {"name": "touch", "command": f"-c \"open('{made}', 'a').write('x')\"", "makes": str(made)}
    recipe = load_recipe(str(written_recipe(tmp_path, stages=[], prepare=[step])))
    assert pipeline.run(recipe)
    assert pipeline.run(recipe)
    assert made.read_text() == "x"
    broken = written_recipe(tmp_path, stages=[], prepare=[step | {"makes": str(tmp_path / "other")}])
    with pytest.raises(SystemExit, match="'touch' ended without making"):
        pipeline.run(load_recipe(str(broken)))


def test_a_failing_stage_ends_the_pipeline_with_its_status(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        pipeline.main([f"recipe={written_recipe(tmp_path)}", f"base={tmp_path / 'nowhere'}"])
    assert caught.value.code == 1
    assert "no config.json there" in capfd.readouterr().err
    assert not (tmp_path / "run" / "pretrain").exists()
