"""A pipeline's folder as the stages leave it, with a shard of real clips for its frames."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arcvideo.shards.index import ensure_indexes
from tests.data.build import shards

NASTY = "<script>alert('x')</script><answer>B</answer> & \"quotes\" <img src=x onerror=alert(1)>"
METRIC = {"value": 0.61, "low": 0.55, "high": 0.67, "chance": 0.25, "n": 200}


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def make_run(folder: Path) -> Path:
    """Two stages without manifests: what an early or a foreign folder holds."""
    summary = {"stages": {"sft": {"mcq_accuracy": METRIC}, "grpo": {"mcq_accuracy": METRIC}}, "seconds": {"sft": 60.0}}
    (folder / "summary.json").write_text(json.dumps({**summary, "passed": True}))
    for stage in ("grpo", "sft"):
        (folder / stage).mkdir()
        rows: list[dict[str, Any]] = [
            {"step": step, "train/loss": 1 / (step + 1), "train/reward": step / 9} for step in range(10)
        ]
        rows[3]["train/loss"] = "nan"  # as MetricsFile writes what JSON cannot hold
        write_lines(folder / stage / "metrics.jsonl", rows)
        with (folder / stage / "metrics.jsonl").open("a") as file:
            file.write('{"step": 10, "tr')
        (folder / stage / "evaluation.json").write_text(json.dumps({"mcq_accuracy": METRIC}))
        prediction = {"metric": "mcq_accuracy", "key": "a/0", "question": NASTY, "truth": "B", "prediction": NASTY}
        write_lines(folder / stage / "predictions.jsonl", [{**prediction, "score": 1.0, "weight": 1.0}])
    rollout = {"step": 0, "key": "a/0", "question": NASTY, "truth": {"span": [0, 1]}, "completion": NASTY}
    write_lines(folder / "grpo" / "rollouts.jsonl", [{**rollout, "rewards": {"format": 1.0}, "advantage": 0.5}])
    return folder


def finish(folder: Path, *, data: Path) -> None:
    """Manifests, quarantine and predictions about a real clip for both stages of `make_run`."""
    parents = {"sft": ("0" * 64, "runs/base"), "grpo": ("a" * 64, "runs/sft/export")}
    config = {
        "model": {"vision": {"force_image_size": 128}, "max_num_frame": 150},
        "data": {"sources": {"clips": {"shards": f"{data}/shard-*.tar"}}, "limits": {}},
        "evaluation": {"shards": f"{data}/shard-*.tar"},
        "stage": {"name": "sft", "objective": "next_token", "train": ["llm"]},
    }
    for stage, (parent, parent_path) in parents.items():
        frozen = {"vit": "c" * 64}
        manifest = {
            "stage": stage,
            "identity": ("a" if stage == "sft" else "b") * 64,
            "parent": parent,
            "parent_path": parent_path,
            "config": config,
            "config_diff": {"optimizer.lr": [0.1, NASTY]} if stage == "grpo" else {},
            "quarantined": {"clips": 1},
            "mixture": {
                "clips": {"realised": {"items": 7, "tokens": 900, "share": 1.0, "tasks": {"mcq": 5, NASTY: 2}}}
            },
            "frozen_before": frozen,
            "frozen_after": frozen,
            "trainable": [
                {"module": "llm", "parameters": 10, "trained": True},
                {"module": "vit", "parameters": 5, "trained": False},
            ],
            "liveness": {"gradients": {"llm": 0.5}, "moved": {"video/zeroed": 3.25}, "notes": [NASTY]},
            "steps": 10,
            "skipped": [],
            "seconds": 61.0,
        }
        (folder / stage / "manifest.json").write_text(json.dumps(manifest))
        lost = {"source": "clips", "key": NASTY, "stage": "media", "reason": "corrupt", "detail": NASTY, "shard": "s"}
        write_lines(folder / stage / "quarantine.jsonl", [lost])
        span = {"metric": "grounding_miou", "key": "clip-00008/4", "question": "When?", "truth": [1.0, 2.0]}
        answer = "00:00:01 - 00:00:03" if stage == "sft" else f"00:00:01 - 00:00:02 {NASTY}"
        write_lines(folder / stage / "predictions.jsonl", [{**span, "prediction": answer, "score": 0.5, "weight": 1.0}])


def make_clips(folder: Path) -> Path:
    """Shards of nine records with their indexes; clip-00008 has three seconds of picture and sound."""
    pattern = shards(folder, count=9)
    ensure_indexes(sorted(Path(pattern).parent.glob("*.tar")), progress=False)
    return folder
