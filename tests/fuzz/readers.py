"""What reads bytes of strangers, each as one function that a fuzzer calls: it returns, or refuses in one line.

A reader may raise what it documents, a ValueError that names the file, and nothing else. Everything a reader lets pass
is used once as its callers use it, so that what it should have refused is found here and not in a run.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arcvideo.data.importers import IMPORTERS, ImportReport, ImportRequest
from arcvideo.decoding.probe import probe
from arcvideo.feed.quarantine import Quarantine
from arcvideo.files import json_line, read_lines
from arcvideo.lineage.manifest import MANIFEST_NAME, Manifest, read_manifest
from arcvideo.lineage.state import STARTED_NAME, Wanted, state_of
from arcvideo.media.errors import MediaError
from arcvideo.media.settings import MediaLimits
from arcvideo.planning.settings import QuarantineSettings
from arcvideo.recipe import load_recipe
from arcvideo.rejection.journal import read_answers
from arcvideo.report.page import write_page
from arcvideo.rollout.log import RolloutLog
from arcvideo.saving.checkpoint import CheckpointError, Unusable, read_checkpoint
from arcvideo.seals import digest_of
from arcvideo.shards.index import ensure_indexes, open_index
from arcvideo.shards.lengths import all_lengths
from arcvideo.shards.members import read_groups
from arcvideo.shards.seal import sealed
from arcvideo.shards.write import Record, write_shards
from arcvideo.tasks import TASKS
from tests.data import build
from tests.fuzz.mutate import Mutate, in_bytes, in_json
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


def _tar(*members: tuple[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return target.getvalue()


# records: from the bytes of a record to token counts, between two good ones


def read_record(data: bytes, folder: Path) -> None:
    good = json.dumps({"items": build.items(0), "text_only": True}).encode()
    shard = folder / "x.tar"
    shard.write_bytes(_tar(("a.json", good), ("x.json", data), ("z.json", good)))
    (index,) = ensure_indexes([shard], progress=False)
    keys = [index.key(row) for row in range(len(index.clips))]
    assert [key for key in keys if key != "x"] == ["a", "z"], keys
    assert "x" in keys or index.problems()
    for style in ("plain", "think"):
        all_lengths([index], tokenizer=build.tokenizer(), style=style, wording="brief", progress=False)


def record_seeds(folder: Path) -> list[bytes]:
    whole = [{"items": build.items(seed), "text_only": True, "source": "x"} for seed in (0, 1)]
    turns = {"task": "qa", "turns": [{"question": "what?", "answer": "red"}, {"question": "and?", "answer": "blue"}]}
    single = [{"items": [item], "text_only": True} for item in (*build.items(0), turns)]
    paired = {
        "task": "qa",
        "question": "what?",
        "answer": "red",
        "rejected": "blue",
        "tags": ["a"],
        "draft": "it is red",
    }
    return [json.dumps(one).encode() for one in (*whole, *single, {"items": [paired], "text_only": True})]


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


def line_seeds(folder: Path) -> list[bytes]:
    problem = {"source": "s", "key": "a", "stage": "media", "reason": "corrupt", "detail": "x", "shard": "s.tar"}
    drawn = {"key": "a/0", "task": "qa", "answer": "x", "texts": ["y"], "finished": [True], "scores": [1.0]}
    journal = [{"origin": {"seed": 1}}, drawn, {"key": "b/0", "lost": "corrupt"}, {"written": {"keep": 1}}]
    steps = [{"step": number, "key": "a", "completion": "\u2028"} for number in range(5)]
    return ["".join(map(json_line, rows)).encode() for rows in ([problem], journal, steps)]


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
    request = ImportRequest(annotations=(place,), videos=videos, staging=folder / "staged", columns={})
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


def annotation_seeds(folder: Path) -> list[bytes]:
    chat = [{"from": "human", "value": "<video>\nwhat?"}, {"from": "gpt", "value": "red"}]
    rows: dict[str, str] = {
        "activitynet": json.dumps({"v_a": {"duration": 3, "timestamps": [[0, 1]], "sentences": ["red"]}}),
        "arc": json.dumps({"video": "a.mp4", "conversations": chat}) + "\n",
        "charades-sta": "a 0.0 1.0##red thing.\n",
        "records": json.dumps({"key": "a", "media": "a.mp4", "items": build.items(0)}) + "\n",
        "sharegpt": json.dumps([{"videos": ["a.mp4"], "conversations": chat}]),
        "openai": json.dumps({"videos": ["a.mp4"], "messages": [{"role": "user", "content": "<video>what?"},
                                                                {"role": "assistant", "content": "red"}]}),
        "llava-video": json.dumps([{"id": "1", "video": "a.mp4", "conversations": chat, "data_source": "x"}]),
        "sharegpt4video": json.dumps({"video_path": "a.mp4", "captions": [{"idx": "-1", "content": "red"}]}),
        "table": "video,question,answer\na.mp4,what?,red\n",
        "transcripts": "red blue",
        "video-r1": json.dumps([{"path": "a.mp4", "problem": "what?", "problem_type": "multiple choice",
                                 "options": ["A. red", "B. blue"], "solution": "<answer>A</answer>"}]),
        "webvid": "videoid,name,page_dir\na,red thing,\n",
    }  # fmt: skip
    names = sorted(IMPORTERS)
    return [bytes([names.index(kind)]) + text.encode() for kind, text in rows.items()]


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
    state = state_of(folder, asked=_asked())
    if state.manifest is not None:
        f"{state.manifest.steps} steps, {state.manifest.seconds / 60:.1f} {state.manifest.identity[:8]}"
    "; ".join(state.reasons)


def _begun(data: bytes, folder: Path) -> None:
    (folder / STARTED_NAME).write_bytes(data)
    (folder / "checkpoints" / "step-3").mkdir(parents=True)
    (folder / "checkpoints" / "step-3" / "manifest.json").write_bytes(b"{}")
    "; ".join(state_of(folder, asked=_asked()).reasons)


def _asked() -> Wanted:
    return Wanted(stage="sft", config=_config(), parent="0" * 64, data="1" * 64, code={"arcvideo.types": "0" * 16})


def _config() -> dict[str, Any]:
    stage = {"name": "sft", "objective": "next_token", "train": ["llm"]}
    return {"stage": stage, "runner": {"steps": 10}, "evaluation": {"shards": None}, "data": {"sources": {}}}


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
    shard.write_bytes(_tar(("a.json", good)))
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


def manifest_seeds(folder: Path) -> list[bytes]:
    manifest = Manifest(
        stage="sft", identity="a" * 64, parent="0" * 64, parent_path="runs/base", code={"arcvideo.types": "0" * 16},
        data="1" * 64, config=_config(), seen={"s": 3}, metrics={"eval/mcq_accuracy": 0.5}, steps=10,
        trainable=[{"module": "llm", "parameters": 1, "trained": True, "lrs": [0.1]}],
        exported={"config.json": {"size": 2, "sha256": "0" * 64}},
    )  # fmt: skip
    state = {"size": 2, "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}
    checkpoint = {"format": 3, "step": 3, "identity": "a" * 64, "written": 0, "files": {"state.json": state}}
    started = {"config": _config(), "data": "1" * 64, "parent": "0" * 64, "code": {"arcvideo.types": "0" * 16}}
    meta = {"digest": "0" * 64, "tasks": ["qa"], "tagsets": [["a"]], "clips": 1, "items": 7}
    parts = ((b"s", asdict(manifest)), (b"c", checkpoint), (b"b", started), (b"i", meta))
    return [kind + json.dumps(content).encode() for kind, content in parts]


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


def recipe_seeds(folder: Path) -> list[bytes]:
    root = Path(__file__).resolve().parents[2] / "recipes"
    small = b"name: x\nrun_dir: $where/x\nstages: [sft, {stage: grpo, runner: {steps: 3}}]\ngiven: {where: runs}\n"
    return [small, *(path.read_bytes() for path in sorted(root.glob("*.yaml")))]


# summaries: what the page of a run is made of; it is written whatever stands in the files


def read_summaries(data: bytes, folder: Path) -> None:
    run = folder / "run"
    run.mkdir()
    make_run(run)
    names = SUMMARIES
    name = names[(data[0] if data else 0) % len(names)]
    (run / name).write_bytes(data[1:])
    assert write_page(run).read_text(encoding="utf-8").startswith("<!")


SUMMARIES = (
    "summary.json", "sft/evaluation.json", "sft/manifest.json", "sft/started.json", "sft/metrics.jsonl",
    "sft/predictions.jsonl", "grpo/rollouts.jsonl", "sft/quarantine.jsonl",
)  # fmt: skip


def summary_seeds(folder: Path) -> list[bytes]:
    run = folder / "seed"
    run.mkdir(parents=True)
    make_run(run)
    frozen = {"vit": "c" * 64}
    manifest = {
        "stage": "sft", "identity": "a" * 64, "parent": "0" * 64, "parent_path": "runs/base", "config": _config(),
        "config_diff": {"optimizer.lr": [0.1, 0.2]}, "quarantined": {"clips": 1}, "frozen_before": frozen,
        "frozen_after": frozen, "mixture": {"clips": {"realised": {"items": 7, "tokens": 9, "share": 1.0,
                                                                  "tasks": {"mcq": 5}}}},
        "trainable": [{"module": "llm", "parameters": 10, "trained": True}], "steps": 10, "skipped": [],
        "seconds": 61.0,
        "liveness": {"gradients": {"llm": 0.5}, "moved": {"video/zeroed": 3.25}, "notes": ["x"]},
    }  # fmt: skip
    (run / "sft" / "manifest.json").write_text(json.dumps(manifest))
    (run / "sft" / "started.json").write_text(json.dumps({"config": _config(), "parent": "0" * 64}))
    lost = {"source": "clips", "key": "k", "stage": "media", "reason": "corrupt", "detail": "x", "shard": "s"}
    (run / "sft" / "quarantine.jsonl").write_text(json_line(lost))
    return [bytes([number]) + (run / name).read_bytes() for number, name in enumerate(SUMMARIES)]


# tars and media headers


def read_tar(data: bytes, folder: Path) -> None:
    path = folder / "x.tar"
    path.write_bytes(data)
    groups, problems = read_groups(path)
    for group in groups:
        for member in group.members:
            assert 0 <= member.offset <= member.offset + member.size <= len(data)
            member.name.encode()
    for problem in problems:
        json_line(asdict(problem)).encode("ascii")


def tar_seeds(folder: Path) -> list[bytes]:
    good = json.dumps({"items": build.items(0)}).encode()
    pairs = [(f"{key}.{kind}", data) for key in "abc" for kind, data in (("json", good), ("png", build.png()))]
    plain = _tar(*pairs)
    long = io.BytesIO()
    with tarfile.open(fileobj=long, mode="w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("d" * 120 + "/é.json")
        info.size, info.pax_headers = len(good), {"comment": "x", "mtime": "1.5"}
        file.addfile(info, io.BytesIO(good))
    (path,) = write_shards([Record(key="k", content={"items": build.items(0)}, media={})], out=folder / "w")
    return [plain, long.getvalue(), plain[:-10240] + long.getvalue(), path.read_bytes()]


def read_media(data: bytes, folder: Path) -> None:
    try:
        facts = probe(data, name="x.bin", limits=LIMITS)
    except (MediaError, MemoryError) as error:
        str(error).encode()
        return
    assert 0 <= facts.duration < 1e9
    assert facts.sound_samples >= 0


def media_seeds(folder: Path) -> list[bytes]:
    from PIL import Image

    jpeg, gif, webp = io.BytesIO(), io.BytesIO(), io.BytesIO()
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (0, 200)]
    frames[1].save(jpeg, "JPEG")
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:], duration=500)
    frames[1].save(webp, "WEBP")
    small = [build.mp4(1.0), build.mp4(1.0, sound=False), build.wav(0.1), build.png()]
    return [*small, jpeg.getvalue(), gif.getvalue(), webp.getvalue(), *_other_containers()]


def _other_containers() -> list[bytes]:
    from tests.media.files import Picture, Sound, write

    frames = [np.full((32, 32, 3), shade, dtype=np.uint8) for shade in (0, 90, 200)]
    tone = np.zeros((1, 1600), dtype=np.float32)
    return [
        write(Picture(frames=frames), Sound(runs=[(0.0, tone)])),
        write(Picture(frames=frames, codec="mpeg4", options={}, clock=_quarter()), container="avi"),
        write(Sound(runs=[(0.0, tone)], codec="flac"), container="flac"),
    ]


def _quarter() -> Any:
    from fractions import Fraction

    return Fraction(1, 4)


READERS = {
    "records": Reader(read=read_record, seeds=record_seeds, mutate=in_json),
    "lines": Reader(read=read_json_lines, seeds=line_seeds, mutate=in_json),
    "annotations": Reader(read=read_annotations, seeds=annotation_seeds, mutate=in_annotations),
    "manifests": Reader(read=read_manifests, seeds=manifest_seeds, mutate=in_manifest),
    "recipes": Reader(read=read_recipe, seeds=recipe_seeds),
    "summaries": Reader(read=read_summaries, seeds=summary_seeds, mutate=in_annotations),
    "tars": Reader(read=read_tar, seeds=tar_seeds),
    "media": Reader(read=read_media, seeds=media_seeds),
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
