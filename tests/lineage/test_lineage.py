"""Identities, manifests, parents."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arcvideo.lineage.identity import config_diff, diff_text, folder_digest, identity, relevant
from arcvideo.lineage.manifest import FORMAT, Manifest, finished, read_manifest, write_manifest
from arcvideo.lineage.parents import resolve_parent
from arcvideo.seals import digest_of, seal_folder

CONFIG = {"stage": {"name": "sft"}, "optimizer": {"lr": 1e-4}, "runner": {"steps": 5, "log_every": 1}, "run_dir": "a"}


def manifest(**changes: object) -> Manifest:
    plain = Manifest(
        stage="sft", identity="id", parent="pid", parent_path="p", code={"m": "1"}, data="d", config=CONFIG,
        frozen_before={"vit": "1"}, frozen_after={"vit": "1"},
    )  # fmt: skip
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def identify(**changes: object) -> str:
    return identity(**({"config": CONFIG, "data": "d", "parent": "p", "code": {"m": "1"}} | changes))  # type: ignore[arg-type]


def test_settings_that_cannot_change_the_outcome_do_not_change_the_identity() -> None:
    for name in ("keep_every", "save_failures", "liveness_every", "peak_tflops"):
        assert identify(config=CONFIG | {"runner": CONFIG["runner"] | {name: 7}}) == identify()


def test_identity_follows_what_decides_the_outcome() -> None:
    assert identify() == identify(config=dict(reversed(CONFIG.items())))
    others = [
        identify(config=CONFIG | {"optimizer": {"lr": 2e-4}}),
        identify(data="e"),
        identify(parent="q"),
        identify(code={"m": "2"}),
    ]
    assert len({identify(), *others}) == 5


def test_identity_ignores_where_and_how_loudly_a_stage_runs() -> None:
    louder = CONFIG | {"run_dir": "b", "runner": {"steps": 5, "log_every": 7}, "logger": {"wandb": "online"}}
    louder |= {"engine": {"zero_optimization": {"stage": 3}}, "evaluation": {"items": 3}, "data": {"workers": 4}}
    assert identify(config=louder) == identify(config=CONFIG | {"engine": {}, "data": {}})


def test_data_count_by_content_not_by_where_they_lie() -> None:
    here, there = ({"data": {"sources": {"a": {"shards": path, "weight": 1.0}}}} for path in ("x/*.tar", "y/*.tar"))
    assert identify(config=CONFIG | here) == identify(config=CONFIG | there)
    there["data"]["sources"]["a"]["weight"] = 2.0
    assert identify(config=CONFIG | here) != identify(config=CONFIG | there)


def test_grpo_settings_count_in_stages_that_sample_only() -> None:
    for objective, alike in (("next_token", True), ("grpo", False)):
        stage = {"stage": {"name": "x", "objective": objective}}
        pair = [identify(config=CONFIG | stage | {"grpo": {"beta": beta}}) for beta in (0.0, 0.1)]
        assert (pair[0] == pair[1]) is alike


def test_config_diff_names_dotted_keys() -> None:
    diff = config_diff({"a": {"b": 1, "c": [1]}, "d": {}}, {"a": {"b": 2, "c": [1]}, "e": None, "d": {}})
    assert diff == {"a.b": [1, 2]}
    assert diff_text(diff) == "  a.b: 1 -> 2"


def test_a_manifest_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert finished(tmp_path) is None
    made = manifest(metrics={"train/loss": 1.5}, seen={"tiny": 3}, skipped=[4], config_diff={"a": [1, 2]})
    write_manifest(made, folder=tmp_path)
    assert read_manifest(tmp_path) == made
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_stage_whose_frozen_module_changed_cannot_finish(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="changed vit, which its settings freeze"):
        write_manifest(manifest(frozen_after={"vit": "2"}), folder=tmp_path)
    assert finished(tmp_path) is None


def test_a_foreign_file_is_not_a_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format": FORMAT}))
    with pytest.raises(ValueError, match="not a manifest"):
        finished(tmp_path)


def test_a_manifest_of_another_version_says_so(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": 2}')
    with pytest.raises(ValueError, match=f"has format 2, this version reads {FORMAT}"):
        finished(tmp_path)


@pytest.mark.parametrize(("old", "new"), [('"stage": "sft"', '"stage": "dpo"'), ('"seal": "', '"seal": "0')])
def test_an_edited_manifest_is_refused(tmp_path: Path, old: str, new: str) -> None:
    path = write_manifest(manifest(), folder=tmp_path)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ValueError, match=r"manifest\.json was changed after it was written"):
        finished(tmp_path)


def finish(run_dir: Path, stage: str) -> None:
    export = run_dir / stage / "export"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    (export / "model.safetensors").write_bytes(bytes(range(200)))
    write_manifest(manifest(stage=stage, identity=f"id-{stage}", exported=seal_folder(export)), folder=run_dir / stage)


def test_a_cut_or_missing_file_of_an_export_is_told_at_once(tmp_path: Path) -> None:
    finish(tmp_path, "sft")
    file = tmp_path / "sft" / "export" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=r"export of sft .* is damaged: model\.safetensors has 199 bytes, it was written"
    ):
        resolve_parent(run_dir=tmp_path, stage="cold_start", parent="sft")
    file.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing\. Restore that file"):
        resolve_parent(run_dir=tmp_path, stage="cold_start", parent="x", override=file.parent)


def test_a_changed_byte_of_an_export_is_told_before_a_child_trains(tmp_path: Path) -> None:
    finish(tmp_path, "sft")
    parent = resolve_parent(run_dir=tmp_path, stage="cold_start", parent="sft")
    parent.verify()
    file = tmp_path / "sft" / "export" / "model.safetensors"
    file.write_bytes(bytes([1]) + file.read_bytes()[1:])
    os.utime(file, ns=(0, 0))
    with pytest.raises(ValueError, match=r"model\.safetensors was changed.*parent=<that folder>"):
        parent.verify()


def test_a_child_names_the_bytes_it_starts_from(tmp_path: Path) -> None:
    finish(tmp_path, "sft")
    first = resolve_parent(run_dir=tmp_path, stage="cold_start", parent="sft")
    copied = tmp_path / "elsewhere"
    shutil.copytree(first.path, copied)
    assert resolve_parent(run_dir=tmp_path, stage="x", parent="y", override=copied).weights == folder_digest(copied)
    (first.path / "model.safetensors").write_bytes(b"other")
    write_manifest(manifest(stage="sft", exported=seal_folder(first.path)), folder=tmp_path / "sft")
    assert resolve_parent(run_dir=tmp_path, stage="cold_start", parent="sft").weights != first.weights


def test_a_stage_starts_from_its_parents_export(tmp_path: Path) -> None:
    finish(tmp_path, "sft")
    found = resolve_parent(run_dir=tmp_path, stage="cold_start", parent="sft")
    assert found.path == tmp_path / "sft" / "export"
    assert found.identity == "id-sft"
    assert found.manifest is not None


def test_a_missing_parent_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage grpo needs cold_start, which has not run .*stage=cold_start"):
        resolve_parent(run_dir=tmp_path, stage="grpo", parent="cold_start")
    (tmp_path / "cold_start").mkdir()
    with pytest.raises(ValueError, match="has not finished"):
        resolve_parent(run_dir=tmp_path, stage="grpo", parent="cold_start")


def test_base_weights_and_overrides_are_known_by_their_bytes(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    with pytest.raises(ValueError, match="not a folder of weights"):
        resolve_parent(run_dir=tmp_path, stage="audio_warmup", parent="base", base=base)
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"1")
    first = resolve_parent(run_dir=tmp_path, stage="audio_warmup", parent="base", base=base)
    assert first.identity == folder_digest(base)
    (base / "model.safetensors").write_bytes(b"2")
    assert resolve_parent(run_dir=tmp_path, stage="sft", parent="pretrain", override=base).identity != first.identity


def test_lineage_and_settings_do_not_import_torch() -> None:
    modules = "arcvideo.lineage.state, arcvideo.lineage.lock, arcvideo.lineage.parents, arcvideo.runner.settings"
    subprocess.run([sys.executable, "-c", f"import sys, {modules}; assert 'torch' not in sys.modules"], check=True)


def test_digests_do_not_depend_on_key_order() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})


def test_where_frames_are_cached_does_not_matter_but_that_they_are_does() -> None:
    def kept(path: str | None, quality: int = 90) -> object:
        cache = {"path": path, "quality": quality, "max_gib": 1.0}
        return relevant({"data": {"frame_cache": cache, "limits": {"max_pixels": 5}}})

    assert kept("/a") == kept("/b")
    assert len({str(kept(None)), str(kept("/a")), str(kept("/a", 80))}) == 3
