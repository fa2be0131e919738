"""What reads bytes of strangers, each as one function that a fuzzer calls: it returns, or refuses in one line.

A reader may raise what it documents, a ValueError that names the file, and nothing else. Everything a reader lets pass
is used once as its callers use it, so that what it should have refused is found here and not in a run.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arcvideo.composing.recipe import load_recipe
from arcvideo.data.importers import IMPORTERS, ImportReport, ImportRequest
from arcvideo.decoding.probe import probe
from arcvideo.feed.quarantine import Quarantine
from arcvideo.files import json_line, read_lines
from arcvideo.lineage.manifest import MANIFEST_NAME, read_manifest
from arcvideo.lineage.started import STARTED_NAME
from arcvideo.lineage.state import Wanted, state_of
from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits
from arcvideo.planning.settings import QuarantineSettings
from arcvideo.rejection.journal import read_answers
from arcvideo.report.page import write_page
from arcvideo.rollout.log import RolloutLog
from arcvideo.saving.checkpoint import CheckpointError, Unusable, read_checkpoint
from arcvideo.seals import digest_of
from arcvideo.shards.index import ensure_indexes, open_index
from arcvideo.shards.lengths import all_lengths
from arcvideo.shards.members import read_groups
from arcvideo.shards.seal import sealed
from arcvideo.tasks import TASKS
from tests.data import build
from tests.fuzz import seeds
from tests.fuzz.mutate import Mutate, in_bytes, in_json
from tests.fuzz.seeds import config_of, tar_of
from tests.report.runs import make_run

LIMITS = MediaLimits(max_bytes=1 << 22, max_pixels=1 << 20, max_seconds=60.0, max_memory_bytes=0)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """One reader."""

    read: Callable[[bytes, Path], None]
    """(input, an empty folder); raises whatever is a fault."""
    seeds: Callable[[Path], list[bytes]]
    """Good inputs; the folder is for making them."""
    mutate: Mutate = in_bytes


def refusal(error: Exception, *, name: str) -> None:
    """Check that an error is a refusal: a ValueError of one line that names the file and can be written anywhere."""
    text = str(error)
    assert isinstance(error, ValueError), f"not a refusal: {type(error).__name__}: {text[:200]}"
    assert name in text, f"does not name {name}: {type(error).__name__}: {text[:200]}"
    assert "\n" not in text, f"more than one line: {text[:200]}"


# records: from the bytes of a record to token counts, between two good ones


def read_record(data: bytes, folder: Path) -> None:
    good = json.dumps({"items": build.items(0), "text_only": True}).encode()
    shard = folder / "x.tar"
    shard.write_bytes(tar_of(("a.json", good), ("x.json", data), ("z.json", good)))
    (index,) = ensure_indexes([shard], progress=False)
    keys = [index.key(row) for row in range(len(index.clips))]
    assert [key for key in keys if key != "x"] == ["a", "z"], keys
    assert "x" in keys or index.problems()
    for style in ("plain", "think"):
        all_lengths([index], tokenizer=build.tokenizer(), style=style, wording="brief", progress=False)


# JSON lines: journals, quarantine files, rollouts


def read_json_lines(data: bytes, folder: Path) -> None:
    path = folder / "rows.jsonl"
    for use in (_plain_rows, _answers, _quarantine, _rollouts):
        path.write_bytes(data)
        try:
            use(path)
        except Exception as error:
            refusal(error, name=path.name)


def _plain_rows(path: Path) -> None:
    for row in read_lines(path):
        if isinstance(row, dict):
            json_line(row).encode("ascii")


def _answers(path: Path) -> None:
    answers = read_answers(path)
    for row in answers.rows.values():
        assert row.number >= 0
        zip(row.texts, row.finished, row.scores, strict=True)


def _quarantine(path: Path) -> None:
    Quarantine([], settings=QuarantineSettings(), file=path).count  # noqa: B018


def _rollouts(path: Path) -> None:
    RolloutLog(path).write([{"key": "a"}], step=3, groups=[])


# annotations: the first byte says which importer


def read_annotations(data: bytes, folder: Path) -> None:
    names = sorted(IMPORTERS)
    kind = names[(data[0] if data else 0) % len(names)]
    videos = folder / "v"
    videos.mkdir()
    (videos / "a.mp4").write_bytes(b"")
    place = folder / "rows.jsonl" if kind != "transcripts" else folder / "rows.jsonl.d"
    if kind == "transcripts":
        place.mkdir()
        (place / "rows.jsonl.txt").write_bytes(data[1:])
        (place / "rows.jsonl.wav").write_bytes(b"")
    else:
        place.write_bytes(data[1:])
    report = ImportReport()
    request = ImportRequest(annotations=(place,), videos=videos, columns={})
    try:
        drafts = list(IMPORTERS[kind](request, report=report))
    except Exception as error:
        refusal(error, name="rows.jsonl")
        return
    used = sum(len(draft.items) for draft in drafts)
    assert report.rows == used + len(report.problems), (kind, report.rows, used, len(report.problems))
    for problem in report.problems:
        json_line(asdict(problem))
    for draft in drafts:
        json.dumps([draft.key, list(draft.items), dict(draft.extra)]).encode()
        assert not draft.key.startswith("/")
        assert ".." not in Path(draft.key).parts


def in_annotations(data: bytes, seed: int) -> bytes:
    return data[:1] + in_json(data[1:], seed) if seed % 5 else in_bytes(data, seed)


# manifests: of stages, checkpoints and indexes, sealed again after the change, as an attacker would


def read_manifests(data: bytes, folder: Path) -> None:
    kind = data[:1]
    try:
        content = json.loads(data[1:])
    except (ValueError, RecursionError):
        content = None
    if kind == b"c":
        _checkpoint(data[1:], content, folder)
    elif kind == b"i":
        _index(data[1:], content, folder)
    elif kind == b"b":
        _begun(data[1:], folder)
    else:
        _stage(data[1:], content, folder)


def _resealed(data: bytes, content: Any) -> bytes:
    if not isinstance(content, dict):
        return data
    content.pop("seal", None)
    try:
        return json.dumps(content | {"seal": digest_of(content)}).encode()
    except (ValueError, RecursionError):
        return data


def _stage(data: bytes, content: Any, folder: Path) -> None:
    (folder / MANIFEST_NAME).write_bytes(_resealed(data, content))
    try:
        manifest = read_manifest(folder)
        manifest.value("mcq_accuracy")
    except ValueError as error:
        refusal(error, name=MANIFEST_NAME)
    state = state_of(folder, expected=_asked())
    if state.manifest is not None:
        f"{state.manifest.steps} steps, {state.manifest.seconds / 60:.1f} {state.manifest.identity[:8]}"
    "; ".join(state.reasons)


def _begun(data: bytes, folder: Path) -> None:
    (folder / STARTED_NAME).write_bytes(data)
    (folder / "checkpoints" / "step-3").mkdir(parents=True)
    (folder / "checkpoints" / "step-3" / "manifest.json").write_bytes(b"{}")
    "; ".join(state_of(folder, expected=_asked()).reasons)


def _asked() -> Wanted:
    return Wanted(stage="sft", config=config_of(), parent="0" * 64, data="1" * 64, code={"arcvideo.types": "0" * 16})


def _checkpoint(data: bytes, content: Any, folder: Path) -> None:
    place = folder / "step-3"
    place.mkdir()
    (place / "state.json").write_bytes(b"{}")
    (place / "manifest.json").write_bytes(_resealed(data, content))
    try:
        found = read_checkpoint(place)
        assert found.step == 3
        found.tensors("weights")
    except (Unusable, CheckpointError):
        pass


def _index(data: bytes, content: Any, folder: Path) -> None:
    shard = folder / "x.tar"
    good = json.dumps({"items": build.items(0), "text_only": True}).encode()
    shard.write_bytes(tar_of(("a.json", good)))
    (index,) = ensure_indexes([shard], progress=False)
    own = json.loads((index.folder / "meta.json").read_text())
    if isinstance(content, dict):
        content = {**own, **content}
        content.pop("seal", None)
        with suppress(ValueError, RecursionError):
            data = sealed(content).encode()
    (index.folder / "meta.json").write_bytes(data)
    found = open_index(shard)
    if found is not None:
        (found.tasks, found.tagsets, found.digest, found.key(0), found.problems())
        assert np.asarray(found.items).size


def in_manifest(data: bytes, seed: int) -> bytes:
    return data[:1] + in_json(data[1:], seed)


# recipes


def read_recipe(data: bytes, folder: Path) -> None:
    path = folder / "mine.yaml"
    path.write_bytes(data)
    try:
        recipe = load_recipe(str(path))
        assert isinstance(recipe.name, str)
    except Exception as error:
        refusal(error, name="mine.yaml")


# summaries: what the page of a run is made of; it is written whatever stands in the files


def read_summaries(data: bytes, folder: Path) -> None:
    run = folder / "run"
    run.mkdir()
    make_run(run)
    name = seeds.SUMMARIES[(data[0] if data else 0) % len(seeds.SUMMARIES)]
    (run / name).write_bytes(data[1:])
    assert write_page(run).read_text(encoding="utf-8").startswith("<!")


# tars and media headers


def read_tar(data: bytes, folder: Path) -> None:
    path = folder / "x.tar"
    path.write_bytes(data)
    try:
        groups, problems = read_groups(path)
    except Exception as error:  # what begins like a link to a remote shard is no tar at all
        refusal(error, name="x.tar")
        return
    for group in groups:
        for member in group.members:
            assert 0 <= member.offset <= member.offset + member.size <= len(data)
            member.name.encode()
    for problem in problems:
        json_line(asdict(problem)).encode("ascii")


def read_media(data: bytes, folder: Path) -> None:
    try:
        facts = probe(data, name="x.bin", limits=LIMITS)
    except (MediaError, MemoryError) as error:
        str(error).encode()
        return
    assert 0 <= facts.duration < 1e9
    assert facts.sound_samples >= 0


READERS = {
    "records": Reader(read=read_record, seeds=seeds.record_seeds, mutate=in_json),
    "lines": Reader(read=read_json_lines, seeds=seeds.line_seeds, mutate=in_json),
    "annotations": Reader(read=read_annotations, seeds=seeds.annotation_seeds, mutate=in_annotations),
    "manifests": Reader(read=read_manifests, seeds=seeds.manifest_seeds, mutate=in_manifest),
    "recipes": Reader(read=read_recipe, seeds=seeds.recipe_seeds),
    "summaries": Reader(read=read_summaries, seeds=seeds.summary_seeds, mutate=in_annotations),
    "tars": Reader(read=read_tar, seeds=seeds.tar_seeds),
    "media": Reader(read=read_media, seeds=seeds.media_seeds),
}


def run(name: str, data: bytes, *, folder: Path) -> None:
    """Give a reader an input, in a folder that is made for it and removed again; quiet.

    Raises:
        Exception: whatever the reader must not raise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            READERS[name].read(data, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


assert set(TASKS) >= {"qa", "mcq"}  # the seeds speak of them
