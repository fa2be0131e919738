"""Stages that train through adapters, from the parent's export to their own."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch

from arcvideo.composing.compose import composed
from arcvideo.composing.overrides import override_problems
from arcvideo.lineage.identity import relevant
from arcvideo.lineage.manifest import read_manifest
from arcvideo.model.disk.loading import load_model
from arcvideo.saving.checkpoint import CheckpointFolder
from tests.compose import settings
from tests.conftest import SmallWorld
from tests.test_stage import GRPO, OWN_REWARD, ROOT, Finished, run, weights

LORA = ["lora.rank=4", "lora.alpha=8"]


@pytest.fixture(scope="module")
def sft(small_world: SmallWorld, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("runs")
    overrides = [*small_world.overrides, *LORA, "evaluation.shards=''", "optimizer.lr=0.01"]
    return run(settings("stage=sft", f"run_dir={folder}", *overrides))


def test_the_manifest_proves_that_only_adapters_and_projectors_moved(sft: Finished) -> None:
    manifest = read_manifest(sft.folder)
    rows = {row["module"]: row["trained"] for row in manifest.trainable}
    assert {name for name, trained in rows.items() if trained} == {"llm.lora", "vision_projector", "audio_projector"}
    assert set(manifest.frozen_before) == {"llm", "vit", "whisper"}
    assert manifest.frozen_before == manifest.frozen_after
    assert manifest.liveness["gradients"]["llm.lora"] > 0
    assert manifest.config["lora"]["rank"] == 4
    schema = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    jsonschema.validate(json.loads((sft.folder / "manifest.json").read_text()), schema)


def test_the_export_is_the_parent_with_the_saved_adapter_under_released_names(sft: Finished) -> None:
    from peft import PeftModel

    before, after = weights(sft.parent.path), weights(sft.folder / "export")
    assert before.keys() == after.keys()
    parent = load_model(sft.parent.path)
    adapted = PeftModel.from_pretrained(parent, str(sft.folder / "adapter")).merge_and_unload()
    for name, tensor in adapted.named_parameters():
        torch.testing.assert_close(after[name], tensor.detach(), rtol=1e-6, atol=1e-7, msg=name)
    moved = {name for name in before if name.startswith("language_model.") and not before[name].equal(after[name])}
    assert moved
    assert all(name.endswith(("_proj.weight",)) for name in moved)


def test_checkpoints_hold_adapters_in_place_of_the_decoder(sft: Finished) -> None:
    newest = CheckpointFolder(sft.folder / "checkpoints").newest()
    assert newest is not None
    names = [name for name in newest.tensors("weights") if name.startswith("language_model.")]
    assert names
    assert all(".lora_" in name for name in names)


@pytest.mark.slow
def test_grpo_trains_adapters_against_the_parent_without_a_copy_of_it(
    small_world: SmallWorld, sft: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from arcvideo.rollout import source as rollouts

    copies = []

    def seen(model: torch.nn.Module) -> torch.nn.Module:
        copy = original(model)
        mine, theirs = (storages(each) for each in (model, copy))
        copies.append(sum(size for place, size in theirs.items() if place not in mine) / sum(mine.values()))
        return copy

    original = rollouts.frozen_copy
    monkeypatch.setattr(rollouts, "frozen_copy", seen)
    config = settings("stage=grpo", f"run_dir={tmp_path}", *small_world.overrides, *GRPO, *LORA, "grpo.beta=0.1")
    config = replace(config, parent=str(sft.folder / "export"))
    rewards = {OWN_REWARD: 1.0, "mcq_accuracy": 0.0}
    stage = run(replace(config, grpo=replace(config.grpo, rewards=rewards)))
    manifest = read_manifest(stage.folder)
    assert manifest.frozen_before["llm"] == manifest.frozen_after["llm"]
    assert manifest.metrics["train/kl"] > 0, "the reference moved with the policy"
    assert copies[0] < 0.1, "the reference is a second model"
    before, after = weights(sft.folder / "export"), weights(stage.folder / "export")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def storages(model: torch.nn.Module) -> dict[int, int]:
    """Address -> bytes of all weights of a model, also of modules kept as plain attributes."""
    found, waiting = {}, [model]
    while waiting:
        module = waiting.pop()
        for tensor in module._parameters.values():
            if tensor is not None:
                found[tensor.data_ptr()] = tensor.nbytes
        children = [*module._modules.values(), *vars(module).values()]
        waiting += [child for child in children if isinstance(child, torch.nn.Module)]
    return found


def test_without_adapters_the_identity_is_what_it_was(small_world: SmallWorld) -> None:
    plain = {"stage": {"objective": "next_token"}, "lora": None}
    assert relevant(plain) == {"stage": {"objective": "next_token"}}
    assert composed(["stage=sft", "lora.rank=4"]).lora == {"rank": 4}
    assert settings("stage=sft").lora is None


def test_settings_of_adapters_that_cannot_run_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match=r"lora\.modules has 'vit'"):
        settings("stage=sft", "lora.modules=[vit]")
    with pytest.raises(ValueError, match=r"lora\.dropout=0\.1 must be 0"):
        settings("stage=grpo", "lora.dropout=0.1")
    (problem,) = override_problems(["stage=sft", "lora.rnak=4"])
    assert problem.startswith("lora.rnak: no such setting (did you mean 'lora.rank'?)")
