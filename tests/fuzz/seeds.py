"""Good inputs of every reader, to begin with."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from arcvideo.data.importers import IMPORTERS
from arcvideo.files import json_line
from arcvideo.lineage.manifest import Manifest
from arcvideo.shards.write import Record, write_shards
from tests.data import build
from tests.media.files import Picture, Sound, write
from tests.report.runs import make_run

SUMMARIES = (
    "summary.json", "sft/evaluation.json", "sft/manifest.json", "sft/started.json", "sft/metrics.jsonl",
    "sft/predictions.jsonl", "grpo/rollouts.jsonl", "sft/quarantine.jsonl",
)  # fmt: skip


def tar_of(*members: tuple[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return target.getvalue()


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


def line_seeds(folder: Path) -> list[bytes]:
    problem = {"source": "s", "key": "a", "stage": "media", "reason": "corrupt", "detail": "x", "shard": "s.tar"}
    drawn = {"key": "a/0", "task": "qa", "answer": "x", "texts": ["y"], "finished": [True], "scores": [1.0]}
    journal = [{"origin": {"seed": 1}}, drawn, {"key": "b/0", "lost": "corrupt"}, {"written": {"keep": 1}}]
    steps = [{"step": number, "key": "a", "completion": "\u2028"} for number in range(5)]
    return ["".join(map(json_line, rows)).encode() for rows in ([problem], journal, steps)]


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


def config_of() -> dict[str, Any]:
    stage = {"name": "sft", "objective": "next_token", "train": ["llm"]}
    return {"stage": stage, "runner": {"steps": 10}, "evaluation": {"shards": None}, "data": {"sources": {}}}


def manifest_seeds(folder: Path) -> list[bytes]:
    manifest = Manifest(
        stage="sft", identity="a" * 64, parent="0" * 64, parent_path="runs/base", code={"arcvideo.types": "0" * 16},
        data="1" * 64, config=config_of(), seen={"s": 3}, metrics={"eval/mcq_accuracy": 0.5}, steps=10,
        trainable=[{"module": "llm", "parameters": 1, "trained": True, "lrs": [0.1]}],
        exported={"config.json": {"size": 2, "sha256": "0" * 64}},
    )  # fmt: skip
    state = {"size": 2, "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}
    checkpoint = {"format": 3, "step": 3, "identity": "a" * 64, "written": 0, "files": {"state.json": state}}
    started = {"config": config_of(), "data": "1" * 64, "parent": "0" * 64, "code": {"arcvideo.types": "0" * 16}}
    meta = {"digest": "0" * 64, "tasks": ["qa"], "tagsets": [["a"]], "clips": 1, "items": 7}
    parts = ((b"s", asdict(manifest)), (b"c", checkpoint), (b"b", started), (b"i", meta))
    return [kind + json.dumps(content).encode() for kind, content in parts]


def recipe_seeds(folder: Path) -> list[bytes]:
    root = Path(__file__).resolve().parents[2] / "recipes"
    small = b"name: x\nrun_dir: $where/x\nstages: [sft, {stage: grpo, runner: {steps: 3}}]\ngiven: {where: runs}\n"
    return [small, *(path.read_bytes() for path in sorted(root.glob("*.yaml")))]


def summary_seeds(folder: Path) -> list[bytes]:
    run = folder / "seed"
    run.mkdir(parents=True)
    make_run(run)
    frozen = {"vit": "c" * 64}
    manifest = {
        "stage": "sft", "identity": "a" * 64, "parent": "0" * 64, "parent_path": "runs/base", "config": config_of(),
        "config_diff": {"optimizer.lr": [0.1, 0.2]}, "quarantined": {"clips": 1}, "frozen_before": frozen,
        "frozen_after": frozen, "mixture": {"clips": {"realised": {"items": 7, "tokens": 9, "share": 1.0,
                                                                  "tasks": {"mcq": 5}}}},
        "trainable": [{"module": "llm", "parameters": 10, "trained": True}], "steps": 10, "skipped": [],
        "seconds": 61.0,
        "liveness": {"gradients": {"llm": 0.5}, "moved": {"video/zeroed": 3.25}, "notes": ["x"]},
    }  # fmt: skip
    (run / "sft" / "manifest.json").write_text(json.dumps(manifest))
    (run / "sft" / "started.json").write_text(json.dumps({"config": config_of(), "parent": "0" * 64}))
    lost = {"source": "clips", "key": "k", "stage": "media", "reason": "corrupt", "detail": "x", "shard": "s"}
    (run / "sft" / "quarantine.jsonl").write_text(json_line(lost))
    return [bytes([number]) + (run / name).read_bytes() for number, name in enumerate(SUMMARIES)]


def tar_seeds(folder: Path) -> list[bytes]:
    good = json.dumps({"items": build.items(0)}).encode()
    pairs = [(f"{key}.{kind}", data) for key in "abc" for kind, data in (("json", good), ("png", build.png()))]
    plain = tar_of(*pairs)
    long = io.BytesIO()
    with tarfile.open(fileobj=long, mode="w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("d" * 120 + "/é.json")
        info.size, info.pax_headers = len(good), {"comment": "x", "mtime": "1.5"}
        file.addfile(info, io.BytesIO(good))
    (path,) = write_shards([Record(key="k", content={"items": build.items(0)}, media={})], out=folder / "w")
    return [plain, long.getvalue(), plain[:-10240] + long.getvalue(), path.read_bytes()]


def media_seeds(folder: Path) -> list[bytes]:
    jpeg, gif, webp = io.BytesIO(), io.BytesIO(), io.BytesIO()
    frames = [Image.new("RGB", (16, 16), (shade, 0, 0)) for shade in (0, 200)]
    frames[1].save(jpeg, "JPEG")
    frames[0].save(gif, "GIF", save_all=True, append_images=frames[1:], duration=500)
    frames[1].save(webp, "WEBP")
    small = [build.mp4(1.0), build.mp4(1.0, sound=False), build.wav(0.1), build.png()]
    return [*small, jpeg.getvalue(), gif.getvalue(), webp.getvalue(), *_other_containers()]


def _other_containers() -> list[bytes]:
    frames = [np.full((32, 32, 3), shade, dtype=np.uint8) for shade in (0, 90, 200)]
    tone = np.zeros((1, 1600), dtype=np.float32)
    return [
        write(Picture(frames=frames), Sound(runs=[(0.0, tone)])),
        write(Picture(frames=frames, codec="mpeg4", options={}, clock=Fraction(1, 4)), container="avi"),
        write(Sound(runs=[(0.0, tone)], codec="flac"), container="flac"),
    ]
