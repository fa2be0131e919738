"""A checkpoint is there whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from arcvideo import seals
from arcvideo.processes.ranks import World
from arcvideo.saving import checkpoint
from arcvideo.saving.checkpoint import (
    FORMAT,
    CheckpointError,
    CheckpointFolder,
    Share,
    Unusable,
    read_checkpoint,
    sealed_manifest,
    write_tensors,
)
from tests.runner.job import ROOT, train

WEIGHTS = [("a", torch.arange(6.0).reshape(2, 3)), ("b", torch.ones(4))]
OPTIMIZER = [("exp_avg/a", torch.zeros(2, 3))]


def write(folder: CheckpointFolder, step: int) -> None:
    folder.write(share(step))


def share(step: int, *, rank: int = 0, ranks: int = 1) -> Share:
    """What one of the ranks holds of the two weights and one optimizer tensor."""
    return Share(
        step=step, identity="me", token="abc", weights=WEIGHTS[rank::ranks], optimizer=OPTIMIZER[rank::ranks],
        state={"x": [1, 0.1]}, rank=rank, ranks=ranks,
    )  # fmt: skip


def reseal(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest as if it had been meant."""
    facts = {name: value for name, value in manifest.items() if name not in ("format", "seal")}
    path.write_text(json.dumps(sealed_manifest(facts)))


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_SHARD_BYTES", 20)
    folder = CheckpointFolder(tmp_path)
    write(folder, 3)
    found = folder.newest()
    assert found is not None
    assert (found.step, found.identity, found.state) == (3, "me", {"x": [1, 0.1]})
    assert len(list(found.path.glob("weights-*.safetensors"))) == 2
    tensors = found.tensors("weights")
    assert sorted(tensors) == ["a", "b"]
    assert all(torch.equal(tensors[name], tensor) for name, tensor in WEIGHTS)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=2)
    for step in (1, 2, 10):
        write(folder, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-2"]


def test_steps_divisible_by_keep_every_stay_for_good(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=1, keep_every=4)
    for step in (2, 4, 6, 8, 10):
        write(folder, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-4", "step-8"]


def test_tensors_of_every_shape_are_safetensors_that_the_library_reads(tmp_path: Path) -> None:
    tensors = [("matrix", torch.randn(3, 5)), ("empty", torch.zeros(0, 4)), ("scalar", torch.tensor(2.5))]
    sealed = write_tensors(tmp_path / "x.safetensors", tensors)
    read = load_file(tmp_path / "x.safetensors")
    assert {name: tensor.tolist() for name, tensor in tensors} == {name: read[name].tolist() for name in read}
    data = (tmp_path / "x.safetensors").read_bytes()
    assert sealed == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_checkpoint_is_there_when_the_shares_of_all_ranks_are(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    first = threading.Thread(target=folder.write, args=(share(1, ranks=2),))
    first.start()
    time.sleep(0.1)
    assert folder.newest() is None
    folder.write(share(1, rank=1, ranks=2))
    first.join()
    found = folder.newest()
    assert found is not None
    assert sorted(found.tensors("weights")) == ["a", "b"]
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


def test_a_share_that_does_not_come_leaves_the_older_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 1)
    with pytest.raises(OSError, match=r"step-2.*share of rank 1 did not arrive"):
        folder.write(share(2, ranks=2), patience=0.05)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]


@pytest.mark.parametrize("name", ["weights-0000-00000.safetensors", "optimizer-0000-00000.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "gone"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, name: str, damage: str) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 1)
    write(folder, 2)
    file = tmp_path / "step-2" / name
    data = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    else:
        file.unlink()
    said: list[str] = []
    found = folder.newest(say=said.append)
    assert found is not None
    assert found.step == 1
    (line,) = said
    assert f"{tmp_path / 'step-2'} is passed over: {name}" in line
    assert {"cut": "bytes, it was written with", "flip": "was changed", "gone": "is missing"}[damage] in line


def test_a_checkpoint_of_an_older_version_is_passed_over_aloud(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 1)
    path = tmp_path / "step-1" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": FORMAT - 1}))
    said: list[str] = []
    assert folder.newest(say=said.append) is None
    assert f"manifest.json says format {FORMAT - 1}, this version reads format {FORMAT}" in said[0]
    with pytest.raises(CheckpointError, match=r"step-1.*cannot be used"):
        folder.at(1)


DAMAGED = {
    "empty": "", "list": "[]", "bare": '{"format": 2}', "files": '{"format": 2, "files": {"state.json": 3}}',
    "zero": "\x00", "digits": '{"format": ' + "9" * 5000 + "}", "nesting": "[" * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_manifest_is_passed_over_aloud(tmp_path: Path, text: str) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 1)
    (tmp_path / "step-1" / "manifest.json").write_text(text)
    said: list[str] = []
    assert folder.newest(say=said.append) is None
    assert len(said) == 1
    write(folder, 2)
    assert folder.newest().step == 2  # type: ignore[union-attr]


def test_a_disk_that_refuses_to_read_is_an_error_and_not_a_reason_to_lose_steps(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 1)
    write(folder, 2)
    weights = tmp_path / "step-2" / "weights-0000-00000.safetensors"
    weights.unlink()
    weights.symlink_to(weights)
    with pytest.raises(CheckpointError, match=r"could not read checkpoint .*step-2.*remove that directory"):
        folder.newest()


def test_a_file_that_the_manifest_does_not_name_is_not_loaded(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 1)
    write_tensors(tmp_path / "step-1" / "weights-0009-00000.safetensors", [("a", torch.full((2, 3), 7.0))])
    found = folder.newest()
    assert found is not None
    assert torch.equal(found.tensors("weights")["a"], WEIGHTS[0][1])


_FULL = """
import resource, sys
from pathlib import Path
import torch
from arcvideo.processes.ranks import join
from tests.runner.job import ROOT, train
torch.set_num_threads(1)
world, folder = join(), Path(sys.argv[1])
train(folder, world=world, steps=4, until=2, liveness=False)
(folder / "metrics.jsonl").rename(folder / "told.jsonl")
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
try:
    train(folder, world=world, steps=4, liveness=False)
except ValueError as error:
    print(f"one line: {error}")
"""


def test_a_disk_that_takes_no_more_ends_in_one_line_and_spares_the_older_checkpoint(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _FULL, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    assert "one line: could not write checkpoint step-4" in done.stdout
    assert "older ones are untouched" in done.stdout
    assert "File too large" in done.stdout
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-2"]
    found = CheckpointFolder(tmp_path / "checkpoints").newest()
    assert found is not None
    assert found.step == 2


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 1)
    path = tmp_path / "step-1" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"]["../elsewhere"] = manifest["files"]["state.json"]
    (tmp_path / "elsewhere").write_bytes((tmp_path / "step-1" / "state.json").read_bytes())
    reseal(path, manifest)
    with pytest.raises(Unusable, match=r"'\.\./elsewhere' is a name outside"):
        read_checkpoint(tmp_path / "step-1")


def test_a_full_disk_spares_the_older_checkpoint_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    with pytest.raises(OSError, match=r"could not write checkpoint step-2.*No space left"):
        write(folder, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    assert folder.newest() is not None


def test_what_a_killed_writer_left_is_ignored_and_removed(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 1)
    os.rename(tmp_path / "step-1", tmp_path / "step-1.tmp-abc")
    assert folder.newest() is None
    folder.remove_unfinished()
    write(folder, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-2"]


def test_frozen_modules_are_not_saved(tmp_path: Path, world: World) -> None:
    train(tmp_path, world=world, steps=2)
    found = CheckpointFolder(tmp_path / "checkpoints").newest()
    assert found is not None
    assert not any(name.startswith(("vision_model.vit", "speech_encoder")) for name in found.tensors("weights"))


def test_a_checkpoint_of_another_identity_is_refused(tmp_path: Path, world: World) -> None:
    train(tmp_path, world=world, steps=2)
    path = tmp_path / "checkpoints" / "step-2" / "manifest.json"
    reseal(path, json.loads(path.read_text()) | {"identity": "other"})
    with pytest.raises(ValueError, match="another run of this stage"):
        train(tmp_path, world=world, steps=2)


def test_a_manifest_that_was_edited_is_told_and_passed_over(tmp_path: Path) -> None:
    """Every byte of it counts, the step and the identity too."""
    folder = CheckpointFolder(tmp_path)
    write(folder, 1)
    path = tmp_path / "step-1" / "manifest.json"
    whole = path.read_bytes()
    for old, new in (
        (b'"step": 1', b'"step": 7'),
        (b'"identity": "me"', b'"identity": "us"'),
        (b'"size": ', b'"size": 1'),
    ):
        path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(Unusable, match=r"manifest\.json was changed after it was written"):
            read_checkpoint(path.parent)
    path.write_bytes(whole)
    assert read_checkpoint(path.parent).step == 1


def test_a_renamed_directory_is_not_another_step(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    write(folder, 1)
    (tmp_path / "step-1").rename(tmp_path / "step-9")
    with pytest.raises(Unusable, match=r"of step 1: the directory was renamed"):
        read_checkpoint(tmp_path / "step-9")


@pytest.mark.parametrize(("keep", "damaged"), [(1, [20]), (2, [15, 20])])
def test_a_restart_behind_damaged_checkpoints_keeps_what_it_writes(
    tmp_path: Path, keep: int, damaged: list[int]
) -> None:
    folder = CheckpointFolder(tmp_path, keep_last=keep)
    for step in (15, 20):
        write(folder, step)
    for step in damaged:
        flip(tmp_path / f"step-{step}")
    for step in (5, 10):
        folder = CheckpointFolder(tmp_path, keep_last=keep)  # a process of its own each time
        write(folder, step)
        found = folder.newest()
        assert found is not None
        assert found.step == step


@pytest.mark.parametrize("what", ["link", "dangling link", "file"])
def test_what_stands_where_a_checkpoint_shall_be_is_replaced(tmp_path: Path, what: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    folder = CheckpointFolder(tmp_path / "checkpoints")
    write(folder, 3)
    if what == "file":
        (folder.root / "step-5").write_text("notes")
    else:
        (folder.root / "step-5").symlink_to(elsewhere)
    if what == "link":
        shutil.copytree(folder.root / "step-3", elsewhere)
    write(folder, 5)
    found = folder.newest()
    assert found is not None
    assert (found.step, found.path.is_symlink()) == (5, False)
    assert elsewhere.exists() == (what == "link")


def flip(directory: Path) -> None:
    """Turn one bit of the weights, as a disk may."""
    file = next(directory.glob("weights-*"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    os.utime(file, ns=(0, 0))


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(1, 6)),
        st.tuples(st.just("damage"), st.integers(0, 5)),
        st.tuples(st.just("restart"), st.just(0)),
    ),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(actions=ACTIONS, keep=st.integers(1, 3))
def test_retention_never_removes_the_newest_usable_ones(actions: list[tuple[str, int]], keep: int) -> None:
    """Over random writes, damage and restarts: of the usable ones in the order of writing, the newest are all there."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        folder, order = CheckpointFolder(root, keep_last=keep), list[int]()
        for action, number in actions:
            if action == "write":
                write(folder, number)
                order = [step for step in order if step != number] + [number]
                assert {f"step-{step}" for step in order[-keep:]} <= {path.name for path in root.iterdir()}
                assert (root / f"step-{order[-1]}").is_dir()
                assert len([step for step in order if (root / f"step-{step}").exists()]) == len(order[-keep:])
                order = order[-keep:]
            elif action == "damage" and number < len(order):
                flip(root / f"step-{order.pop(number)}")
            elif action == "restart":
                seals.forget(root)
                folder = CheckpointFolder(root, keep_last=keep)
        usable = folder.newest()
        assert (usable.step if usable else None) == (max(order) if order else None)
