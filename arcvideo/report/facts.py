"""What the page says about stages, as plain rows: the tree, cost, data and proofs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from arcvideo.report.records import StageRecord


@dataclass(frozen=True, kw_only=True)
class Node:
    """A stage in the tree."""

    stage: StageRecord
    depth: int
    """Forks above it: a chain stays at one depth."""
    parent: str
    """Name of the stage, or the folder of weights, that it started from."""
    state: str
    """finished, or how far it is."""


def tree(stages: Sequence[StageRecord]) -> list[Node]:
    """Return the stages, children below their parents; siblings are set off from each other by their depth."""
    own = {stage.manifest.get("identity"): stage.name for stage in stages if stage.manifest}
    parents = {stage.name: _parent(stage, own=own) for stage in stages}
    children: dict[str, list[StageRecord]] = {}
    for stage in stages:
        children.setdefault(parents[stage.name], []).append(stage)
    nodes: list[Node] = []

    def walk(parent: str, depth: int) -> None:
        below = children.get(parent, [])
        for stage in below:
            deeper = depth + (1 if len(below) > 1 else 0)
            nodes.append(Node(stage=stage, depth=deeper, parent=parent, state=_state(stage)))
            walk(stage.name, deeper)

    names = {stage.name for stage in stages}
    for root in [name for name in children if name not in names]:
        walk(root, 0)
    return nodes


def _parent(stage: StageRecord, *, own: Mapping[Any, str]) -> str:
    identity = stage.manifest.get("parent") or stage.started.get("parent")
    if identity in own and own[identity] != stage.name:
        return own[identity]
    path = stage.manifest.get("parent_path") or stage.setting("parent") or stage.setting("stage", "parent")
    return str(path or "unknown weights")


def _state(stage: StageRecord) -> str:
    if stage.manifest:
        return "finished"
    planned = stage.setting("runner", "steps")
    return f"at step {stage.steps[-1]['step'] + 1 if stage.steps else 0}" + (f" of {planned}" if planned else "")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a stage took."""

    stage: str
    steps: int
    skipped: int
    tokens: int
    """Tokens of all packed rows."""
    speed: float | None
    """Median tokens a second."""
    waiting: float | None
    """Share of the steps' time spent waiting for data."""
    training: float
    """Seconds in steps."""
    seconds: float
    """Wall time of the stage; that of its steps while it runs."""
    flops: float | None
    """Useful FLOPs of all steps."""
    mfu: float | None
    """Median share of the devices' peak."""
    memory: float | None
    """GiB, the largest of any rank."""


def cost(stage: StageRecord) -> Cost:
    """Return the cost of a stage from its steps; seconds of a resumed stage's steps include those of earlier runs."""
    steps = [value for _, value in stage.series("time/step")]
    training = sum(steps)
    waits = [value for _, value in stage.series("time/data")]
    tflops = stage.series("speed/tflops")
    times = dict(stage.series("time/step"))
    memory = [value for _, value in stage.series("memory/gib")]
    return Cost(
        stage=stage.name,
        steps=stage.manifest.get("steps", len(stage.steps)),
        skipped=len(stage.manifest.get("skipped", [])) or sum(int(value) for _, value in stage.series("train/skipped")),
        tokens=int(sum(value for _, value in stage.series("train/tokens"))),
        speed=_median(stage, "speed/tokens_per_second"),
        waiting=min(sum(waits) / training, 1.0) if training else None,
        training=training,
        seconds=float(stage.manifest.get("seconds") or training),
        flops=sum(value * times.get(step, 0.0) for step, value in tflops) * 1e12 if tflops else None,
        mfu=_median(stage, "speed/mfu"),
        memory=max(memory) if memory else None,
    )


def _median(stage: StageRecord, key: str) -> float | None:
    values = [value for _, value in stage.series(key)]
    return median(values) if values else None


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """One source of one stage."""

    stage: str
    source: str
    items: int
    tokens: int
    share: float
    """Of the stage's tokens."""
    tasks: tuple[tuple[str, int, float], ...]
    """Task, items, share of the source's items; most first."""
    lost: int
    """Quarantined."""


def sources(stage: StageRecord) -> list[SourceRow]:
    """Return what a finished stage read, source by source."""
    rows = []
    for name, mixture in stage.manifest.get("mixture", {}).items():
        real = mixture.get("realised", {})
        tasks = {task: count for task, count in real.get("tasks", {}).items() if count}
        total = sum(tasks.values()) or 1
        rows.append(
            SourceRow(
                stage=stage.name,
                source=name,
                items=real.get("items", 0),
                tokens=real.get("tokens", 0),
                share=real.get("share", 0.0),
                tasks=tuple((t, n, n / total) for t, n in sorted(tasks.items(), key=lambda pair: -pair[1])),
                lost=stage.manifest.get("quarantined", {}).get(name, 0),
            )
        )
    return rows


@dataclass(frozen=True, kw_only=True)
class Lost:
    """Samples refused for one reason."""

    stages: tuple[str, ...]
    source: str
    reason: str
    count: int
    example: str
    """Key and detail of the first."""


def lost(stages: Sequence[StageRecord]) -> list[Lost]:
    """Return quarantined samples of all stages by source and reason; the same sample counts once."""
    by_kind: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    where: dict[tuple[str, str], Counter[str]] = {}
    for stage in stages:
        for row in stage.quarantine:
            kind = (row["source"], row["reason"])
            by_kind.setdefault(kind, {}).setdefault(row["key"], row)
            where.setdefault(kind, Counter())[stage.name] += 1
    rows = []
    for (source, reason), samples in by_kind.items():
        first = next(iter(samples.values()))
        example = f"{first['key']}: {first.get('detail', '')}".rstrip(": ")
        rows.append(
            Lost(
                stages=tuple(where[source, reason]),
                source=source,
                reason=reason,
                count=len(samples),
                example=example,
            )
        )
    return sorted(rows, key=lambda row: -row.count)


@dataclass(frozen=True, kw_only=True)
class Proof:
    """A module in a stage."""

    trained: bool
    gradient: float | None = None
    """Norm of the gradient that reached it before step 1."""
    before: str = ""
    after: str = ""
    """sha256 of its tensors, when frozen."""

    @property
    def held(self) -> bool:
        """A frozen module that did not change, or a trained one that a gradient reached."""
        return bool(self.gradient) if self.trained else bool(self.before) and self.before == self.after


def proofs(stage: StageRecord) -> dict[str, Proof]:
    """Module -> what was proven of it in a finished stage."""
    manifest = stage.manifest
    gradients = manifest.get("liveness", {}).get("gradients", {})
    before, after = manifest.get("frozen_before", {}), manifest.get("frozen_after", {})
    return {
        row["module"]: Proof(
            trained=row["trained"],
            gradient=gradients.get(row["module"]),
            before=before.get(row["module"], ""),
            after=after.get(row["module"], ""),
        )
        for row in manifest.get("trainable", [])
    }


def differences(stage: StageRecord) -> list[tuple[str, str, str]]:
    """Return (setting, parent's value, own value) of a stage."""
    return [(key, _told(old), _told(new)) for key, (old, new) in sorted(stage.manifest.get("config_diff", {}).items())]


def _told(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(_told, value)) if isinstance(value, list) else str(value)
