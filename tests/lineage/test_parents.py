"""Which weights a folder means that somebody names."""

from __future__ import annotations

from pathlib import Path

import pytest

from arcvideo.lineage.parents import checkpoint_folder, resolve_parent


def stage(folder: Path) -> Path:
    export = folder / "export"
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    (export / "model.safetensors").write_bytes(b"weights")
    return export


def test_the_folder_of_a_stage_means_its_export_wherever_weights_are_named(tmp_path: Path) -> None:
    export = stage(tmp_path / "sft")
    for named in (tmp_path / "sft", export):
        assert checkpoint_folder(named) == export
        assert resolve_parent(run_dir=tmp_path, stage="s", parent="sft", override=named).path == export


def test_a_folder_without_weights_is_told_with_what_it_holds(tmp_path: Path) -> None:
    stage(tmp_path / "sft")
    stage(tmp_path / "grpo")
    with pytest.raises(ValueError, match=rf"several stages; name one: {tmp_path}/sft \(or grpo\)"):
        checkpoint_folder(tmp_path)
    (tmp_path / "new" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no weights there .*not finished"):
        checkpoint_folder(tmp_path / "new")
