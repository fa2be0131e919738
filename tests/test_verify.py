"""`arcvideo verify`: a flipped bit in any file that is read again is one line with the file and what to do."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from arcvideo import seals
from arcvideo.data.shards import main as shards
from arcvideo.decoding.cache import FrameCache
from arcvideo.evaluation.predictions import Prediction, write_predictions
from arcvideo.feed.quarantine import Quarantine
from arcvideo.files import json_line, read_lines
from arcvideo.lineage.manifest import Manifest, sealed_journals, write_manifest
from arcvideo.measuring import folder as measuring
from arcvideo.measuring.folder import Lost, write_card
from arcvideo.media.settings import FrameCacheSettings
from arcvideo.model.towers.features import FeatureStore
from arcvideo.rejection.journal import Journal
from arcvideo.rejection.selection import Drawn
from arcvideo.report.records import read_stage
from arcvideo.rollout.log import RolloutLog
from arcvideo.saving.checkpoint import CheckpointFolder
from arcvideo.shards.index import ensure_indexes, index_folder
from arcvideo.shards.lengths import all_lengths
from arcvideo.shards.seal import sealed
from arcvideo.shards.write import write_shards
from arcvideo.tracking.metrics import MetricsFile
from arcvideo.verify import main, verify
from tests.conftest import SmallWorld
from tests.data import build
from tests.decoding.test_cache import LAYOUT, media
from tests.saving.test_checkpoint import share


def weights(folder: Path) -> Path:
    folder.mkdir(parents=True)
    save_file({"a": torch.arange(64.0)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"a": 1}')
    seals.write_sums(folder)
    (folder / "README.md").write_text("edited as one likes")
    return folder


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each that is written here, in one folder."""
    root = tmp_path_factory.mktemp("all")
    paths = write_shards(build.records(4), out=root / "data", per_shard=2)
    indexes = ensure_indexes(paths, progress=False)
    all_lengths(indexes, tokenizer=build.tokenizer(), style="plain", wording="brief", progress=False)
    seals.sidecar(paths[1]).unlink()  # of an older version: its index knows what was in it
    CheckpointFolder(root / "sft" / "checkpoints").write(share(3))
    export = weights(root / "sft" / "export")
    weights(root / "sft" / "adapter")
    manifest = Manifest(stage="sft", identity="a" * 64, parent="b" * 64, parent_path="base", code={}, data="c" * 64,
                        config={}, exported=seals.seal_folder(export))  # fmt: skip
    weights(root / "base")
    FeatureStore(root / "features", "d" * 64).save("clip", patches=torch.ones(2, 3), speech=torch.zeros(1, 2))
    cache = FrameCache(FrameCacheSettings(path=str(root / "frames")), layout=LAYOUT)
    cache.save(cache.key("clip"), media(1))
    with Journal(root / "sampled" / "x-000000.answers.jsonl", origin={"seed": 1}) as journal:
        journal.add([Drawn(key="a/0", task="qa", answer="x", texts=["y"], finished=[True], scores=[None])])
        journal.lose(["b/0"], reason="corrupt")
    figures = root / "sft" / "evaluations" / "m"
    figures.mkdir(parents=True)
    write_card(figures, {"name": "m", "origin": {"questions": "e" * 64}})
    with measuring.Journal(figures, rank=0) as answers:
        answers.lose([Lost(key="a/0", reason="corrupt", detail="of a clip")])
    seals.write_sealed(root / "sft" / "evaluation.json", json.dumps({"mcq_accuracy": {"value": 0.61}}))
    metrics = MetricsFile(root / "sft" / "metrics.jsonl", keep_below=0)
    metrics.write({"step": 0, "train/loss": 2.25})
    metrics.close()
    row = Prediction(metric="mcq_accuracy", key="a/0", question="?", truth="B", prediction="B", score=1.0)
    write_predictions(root / "sft" / "predictions.jsonl", predictions=[row])
    RolloutLog(root / "sft" / "rollouts.jsonl").write([{"key": "a/0", "reward": 0.25}], step=0, groups=[])
    (root / "sft" / "quarantine.jsonl").write_text(
        json_line({"source": "s", "key": "k", "stage": "media", "reason": "corrupt"}, checked=True)
    )
    write_manifest(replace(manifest, journals=sealed_journals(root / "sft")), folder=root / "sft")
    return root


SEALED = (
    "data/shard-000000.tar", "data/shard-000001.tar", "data/shard-000000.tar.index/clips.npy",
    "data/shard-000000.tar.index/meta.json", "sft/checkpoints/step-3/state.json",
    "sft/checkpoints/step-3/manifest.json", "sft/export/model.safetensors", "sft/export/config.json",
    "sft/manifest.json", "sft/adapter/model.safetensors", "base/config.json", "sft/quarantine.jsonl",
    "sampled/x-000000.answers.jsonl", "sft/evaluation.json", "sft/evaluations/m/card.json",
    "sft/evaluations/m/answers-0.jsonl", "sft/metrics.jsonl", "sft/predictions.jsonl", "sft/rollouts.jsonl",
)  # fmt: skip


def flipped(path: Path) -> None:
    """Flip a bit as a bad disk does: nobody has written, so the file's times stay."""
    facts = path.stat()
    data = bytearray(path.read_bytes())
    places = [at for at in range(len(data)) if chr(data[at]).isalnum() or path.suffix in (".tar", ".npy")]
    data[places[len(places) * 3 // 4]] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))


def test_what_is_whole_is_told_to_be(everything: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(everything)]) == 0
    said = capsys.readouterr().out
    for kind in ("checkpoint", "export", "manifest", "file of weights", "shard", "index", "table of token counts",
                 "tower outputs", "cached clip", "journal", "file of rows"):  # fmt: skip
        assert f"x {kind}" in said, kind
    assert "damaged: 0" in said


@pytest.mark.parametrize("name", SEALED)
def test_a_flipped_bit_anywhere_is_one_line_with_its_file_and_a_remedy(
    everything: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    root = shutil.copytree(everything, tmp_path / "all")
    flipped(root / name)
    assert main([str(root)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(str(root / name.split("/")[0]))]
    assert lines
    shown = root / name
    places = (shown, shown.parent, shown.parent / "meta.json")  # a checkpoint and an index are whole or not
    assert all(any(line.startswith(f"{place}: ") for place in places) for line in lines), lines
    assert all("; " in line for line in lines)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (Path.unlink, "metrics.jsonl is missing"),
        (lambda path: path.write_text(""), "was cut: rows that stood in it are gone"),
        (lambda path: path.write_text(json_line({"step": 0, "train/loss": 9.25}, checked=True)), "is another, or rows"),
    ],
)
def test_rows_that_a_finished_stage_had_and_that_are_gone_are_told(
    everything: Path, tmp_path: Path, change: Callable[[Path], Any], what: str
) -> None:
    root = shutil.copytree(everything, tmp_path / "all")
    path = root / "sft" / "metrics.jsonl"
    with path.open("a") as file:
        file.write(json_line({"step": 1, "eval/mcq_accuracy": 0.5}, checked=True))  # of a measurement that came later
    assert not verify(root).damages
    assert not read_stage(root / "sft").unread
    change(path)
    (damage,) = verify(root).damages
    assert damage.path == path
    assert what in damage.what
    assert damage.remedy.startswith("restore it from a copy")
    (line,) = read_stage(root / "sft").unread
    assert what in line


@pytest.mark.parametrize("kind", ["features", "frames"])
def test_a_flipped_bit_in_a_cache_is_told(
    everything: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    root = shutil.copytree(everything / kind, tmp_path / kind)
    (path,) = [path for path in root.rglob("*") if path.is_file() and path.suffix in (".clip", ".safetensors")]
    data = bytearray(path.read_bytes())
    data[-2] ^= 4
    path.write_bytes(data)
    assert main([str(root)]) == 1
    assert f"{path}: is damaged" in capsys.readouterr().out


def test_a_part_alone_can_be_checked_and_what_is_not_there_is_an_error(
    everything: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("data", "data/shard-000000.tar", "sft/checkpoints/step-3", "base", "sampled"):
        assert main([str(everything / part)]) == 0, part
    assert main([str(everything / "nowhere")]) == 2
    assert "no such file or folder" in capsys.readouterr().err


def test_damage_to_stored_tower_outputs_costs_an_encoding_and_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = FeatureStore(tmp_path, "d" * 64)
    store.save("clip", patches=torch.ones(2, 3), speech=torch.zeros(1, 2))
    assert store.has("clip")
    (path,) = tmp_path.rglob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 64
    path.write_bytes(data)
    assert not store.has("clip")
    assert not path.exists()
    assert str(path) in capsys.readouterr().err


def test_a_changed_row_of_the_quarantine_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "quarantine.jsonl"
    problem = {"source": "s", "key": "a", "stage": "media", "reason": "corrupt", "detail": "", "shard": "x.tar"}
    path.write_text(json_line(problem, checked=True))
    assert read_lines(path) == [problem]
    path.write_text(path.read_text().replace('"a"', '"b"'))
    with pytest.raises(ValueError, match=r"quarantine\.jsonl, line 1: was changed since it was written; delete"):
        read_lines(path)
    assert Quarantine  # reads through the same door


def test_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    folder = weights(tmp_path / "w")
    listed = (folder / seals.SUMS).read_text().splitlines()
    assert [line.split("  ")[1] for line in listed] == ["config.json", "model.safetensors"]
    seals.check_sums(folder)
    (folder / "config.json").write_text('{"a": 2}')
    with pytest.raises(seals.Damaged, match=r"config\.json was changed"):
        seals.check_sums(folder)


@pytest.mark.slow
def test_a_run_folder_and_its_data_are_whole_and_every_export_file_is_vouched_for(
    small_world: SmallWorld, tmp_path: Path
) -> None:
    from tests.compose import settings
    from tests.test_stage import run

    words = [f"run_dir={tmp_path}", "lora.rank=2", *small_world.overrides]
    done = run(settings("stage=sft", *words))
    for folder in (tmp_path, small_world.data, small_world.base, small_world.features):
        assert not verify(folder).damages, folder
    for name in ("export/model.safetensors", "adapter/adapter_model.safetensors", "metrics.jsonl"):
        assert (done.folder / name).exists()
    assert json.loads((done.folder / "manifest.json").read_text())["exported"]
    names = {path.relative_to(done.folder).as_posix() for path in verify(done.folder).unsealed}
    assert not {name for name in names if name.startswith(("export/", "adapter/", "checkpoints/"))} - {
        "export/README.md", "adapter/README.md",
    }  # fmt: skip


def test_a_shard_of_tiny_shorts_is_compared_with_its_description(small_world: SmallWorld, tmp_path: Path) -> None:
    shard = tmp_path / "test-000000.tar"
    for path in (small_world.data / shard.name, small_world.data / "dataset.json"):
        shutil.copy2(path, tmp_path)
    assert verify(tmp_path).whole["shard"] == 1
    assert not ensure_indexes([shard], progress=False)[0].problems()
    data = bytearray(shard.read_bytes())
    data[data.index(b"tiny_shorts")] ^= 1
    shard.write_bytes(data)
    assert [damage.path for damage in verify(shard).damages] == [shard]
    (problem,) = ensure_indexes([shard], progress=False)[0].problems()
    assert problem.stage == "shard"


def test_indexes_without_their_shard_are_checked_too(everything: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(index_folder(everything / "data" / "shard-000000.tar"), tmp_path / "x.tar.index")
    assert not verify(folder).damages
    (folder / "items.npy").write_bytes(b"")
    (damage,) = verify(folder).damages
    assert "items.npy" in damage.what


def test_whatever_lies_in_a_folder_is_checked_or_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nested.json").write_text("[" * 100_000)
    (tmp_path / "nested.jsonl").write_text("[" * 100_000 + "\n")
    for name in ("pipe.jsonl", "pipe.tar", "pipe.clip"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "folder.tar").mkdir()
    os.symlink("..", tmp_path / "up")
    os.symlink("loop.json", tmp_path / "loop.json")
    index = tmp_path / "x.tar.index"
    index.mkdir()
    (index / "meta.json").write_text(sealed({"files": ["clips.npy"]}))
    assert main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert sorted(Path(line.partition(": ")[0]).name for line in lines[:-1]) == [
        "meta.json",
        "nested.json",
        "nested.jsonl",
    ]


def test_a_folder_that_nobody_may_look_into_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root may look everywhere, so the refusal is the test's."""
    (tmp_path / "closed").mkdir()
    (tmp_path / "open.jsonl").write_text("{\n")
    stat = Path.stat

    def refusing(path: Path, **words: Any) -> Any:
        if path.parent.name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **words)

    monkeypatch.setattr(Path, "stat", refusing)
    assert main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert f"{tmp_path / 'closed'}: Permission denied; repair the disk or its permissions" in said
    assert f"{tmp_path / 'open.jsonl'}: " in said
    assert main([str(tmp_path / "closed" / "deeper")]) == 2
    assert "Permission denied" in capsys.readouterr().err


@pytest.fixture(scope="module")
def imports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two data sets, imported and fingerprinted, `a` and `b`."""
    root = tmp_path_factory.mktemp("imports")
    for name, shade in (("a", 10), ("b", 90)):
        media = root / f"media-{name}"
        media.mkdir()
        for number in range(2):
            (media / f"{number}.mp4").write_bytes(build.mp4(1.0, shade=shade + number))
        rows = [f"{number}.mp4,what?,{name}{number}" for number in range(2)]
        (media / "rows.csv").write_text("\n".join(["video,question,answer", *rows]) + "\n")
        words = ["--format", "table", "--annotations", str(media / "rows.csv"), "--videos", str(media)]
        more = ["--out", str(root / name), "--per-shard", "1", "--workers", "0"]
        assert shards(["import", *words, *more]) == 0
        assert shards(["fingerprint", *map(str, sorted((root / name).glob("*.tar")))]) == 0
    return root


def test_an_imported_set_with_fingerprints_is_whole(imports: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(imports / "a")]) == 0
    assert "2 x fingerprints, 2 x index, 2 x shard; damaged: 0; without a seal: 0" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["picture.npy", "counts.npy", "meta.json"])
def test_fingerprints_that_changed_are_told(imports: Path, tmp_path: Path, name: str) -> None:
    root = shutil.copytree(imports / "a", tmp_path / "a")
    flipped(root / "shard-000001.tar.fingerprints" / name)
    (damage,) = verify(root).damages
    assert damage.path == root / "shard-000001.tar.fingerprints" / "meta.json"


def test_what_is_missing_or_of_another_set_is_told_with_its_name(imports: Path, tmp_path: Path) -> None:
    def found(change: Any) -> set[str]:
        root = shutil.copytree(imports / "a", tmp_path / "a")
        change(root)
        names = {damage.path.name for damage in verify(root).damages}
        shutil.rmtree(root)
        return names

    def cut(root: Path) -> None:
        ledger = root / "shard.import.jsonl"
        ledger.write_bytes(b"".join(ledger.read_bytes().splitlines(keepends=True)[:2]))

    assert found(lambda root: (root / "shard-000001.tar").unlink()) == {"shard-000001.tar"}
    assert found(lambda root: shutil.copy(imports / "b" / "shard.import.jsonl", root)) == {"shard.import.jsonl"}
    assert found(cut) == {"shard-000001.tar"}


def test_weights_that_the_list_of_digests_does_not_name_are_told(tmp_path: Path) -> None:
    folder = weights(tmp_path / "w")
    (folder / seals.SUMS).write_text("")
    assert [damage.path.name for damage in verify(folder).damages] == [seals.SUMS]
    (folder / seals.SUMS).write_text("\n".join(["0" * 64 + "  other.json"]) + "\n")
    (folder / "other.json").write_text("{}")
    assert {damage.path.name for damage in verify(folder).damages} == {"model.safetensors", "other.json"}


def test_a_missing_shard_of_tiny_shorts_is_told(small_world: SmallWorld, tmp_path: Path) -> None:
    shutil.copy2(small_world.data / "dataset.json", tmp_path)
    names = json.loads((tmp_path / "dataset.json").read_text())["shards"]
    assert {damage.path.name for damage in verify(tmp_path).damages} == set(names)


@pytest.mark.parametrize("towers", ["d" * 64, "e" * 64])
def test_tower_outputs_of_another_clip_or_other_towers_are_not_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], towers: str
) -> None:
    store, other = FeatureStore(tmp_path, "d" * 64), FeatureStore(tmp_path, towers)
    store.save("clip", patches=torch.ones(2, 3), speech=torch.zeros(1, 2))
    key = "other clip" if towers == "d" * 64 else "clip"
    other.save(key, patches=torch.zeros(2, 3), speech=torch.zeros(1, 2))
    path = store._path("clip")
    shutil.copy(other._path(key), path)
    assert main([str(tmp_path)]) == 1
    assert f"{path}: is of another clip, or of other towers; remove it" in capsys.readouterr().out
    assert store.load("clip") is None


def test_names_of_a_stranger_end_no_check_and_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({"shards": {"x" * 5000: {}, "a\0": {}, "..": {}}}))
    (tmp_path / "a\nerror: forged.json").write_text("{")
    rows = [{"version": 2}, {"shard": "y" * 5000}, {"shard": None}]
    (tmp_path / "x.import.jsonl").write_text("".join(map(json_line, rows)))
    (tmp_path / "z.json").write_text("{")
    assert main([str(tmp_path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"{tmp_path}/z.json: ") for line in lines)
    assert all(line.startswith(str(tmp_path)) for line in lines)
