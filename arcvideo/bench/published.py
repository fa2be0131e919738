"""Published figures, to print beside ours: who says what a model reaches, under which conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PAPER = "arXiv 2507.20939, table 1"
"""The paper of ARC-Hunyuan-Video-7B: 1 frame a second, at most 150 frames."""
RELEASE = "https://github.com/TencentARC/ARC-Hunyuan-Video-7B, README"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One figure that somebody published."""

    bench: str
    """`Bench.name` that it belongs to."""
    model: str
    thinks: bool
    """Whether it was asked to reason before it answers."""
    metric: str
    """Our name of the figure."""
    value: float
    """As published: 0 to 100."""
    source: str


_QWEN_VL, _QWEN_OMNI = ("Qwen2.5-VL-7B", False), ("Qwen2.5-Omni-7B", False)
_KEYE, _ARC = ("Keye-VL-8B", True), ("ARC-Hunyuan-Video-7B", True)
_MODELS = (_QWEN_VL, _QWEN_OMNI, _KEYE, _ARC)


def _row(bench: str, values: Sequence[float], *, metric: str = "mcq_accuracy", source: str = PAPER) -> list[Published]:
    return [
        Published(bench=bench, model=model, thinks=thinks, metric=metric, value=value, source=source)
        for (model, thinks), value in zip(_MODELS, values, strict=True)
    ]


PUBLISHED: tuple[Published, ...] = (
    *_row("shortvid-bench-400", (67.8, 68.3, 53.5, 74.3)),
    *_row("shortvid-bench-1000", (69.3, 69.7, 56.3, 73.0), source=RELEASE),
    *_row("charades-sta", (46.9, 30.5, 25.1, 54.8), metric="grounding_miou"),
    *_row("activitynet-captions", (25.1, 13.0, 14.9, 41.7), metric="grounding_miou"),
    *_row("mvbench", (62.9, 64.8, 35.7, 62.6)),
    *_row("vcr-bench-mcq", (53.7, 51.0, 34.9, 50.5)),
    *_row("video-holmes", (41.6, 43.9, 35.7, 40.9)),
)
"""The paper's main table, and what its release says of the larger ShortVid-Bench."""


@dataclass(frozen=True, kw_only=True)
class Marked:
    """How people marked 100 answers of a task that was trained on 1,000 (the paper's table 2)."""

    task: str
    model: str
    marks: tuple[int, int, int]
    """Answers marked 0, 1 and 2."""
    passed: float
    """Share marked 1 or 2."""


PAPER_TASKS = "arXiv 2507.20939, table 2"
MARKED: tuple[Marked, ...] = (
    Marked(task="brief summary", model="baseline", marks=(29, 22, 49), passed=0.71),
    Marked(task="brief summary", model="ARC-Hunyuan-Video-7B", marks=(18, 4, 78), passed=0.82),
    Marked(task="detailed summary", model="baseline", marks=(37, 44, 19), passed=0.63),
    Marked(task="detailed summary", model="ARC-Hunyuan-Video-7B", marks=(26, 35, 39), passed=0.74),
    Marked(task="extended browsing words", model="baseline", marks=(18, 36, 46), passed=0.82),
    Marked(task="extended browsing words", model="ARC-Hunyuan-Video-7B", marks=(12, 34, 54), passed=0.88),
)
"""The paper's downstream tasks."""


def published(bench: str, *, metric: str = "") -> list[Published]:
    """Return what is published of a benchmark, in the order of the papers.

    Args:
        bench: `Bench.name`; a set of another size or split has a name of its own, and no figures of this one.
        metric: only figures of this metric.
    """
    return [row for row in PUBLISHED if row.bench == bench and metric in ("", row.metric)]


def published_table(bench: str, *, ours: Mapping[str, float] | None = None) -> str:
    """Return the published figures of a benchmark as lines of text with their source; empty when there are none.

    Args:
        bench: `Bench.name`.
        ours: metric -> what was measured here, 0 to 1; it stands above the published figures of that metric.
    """
    lines = []
    for metric in dict.fromkeys(row.metric for row in published(bench)):
        lines.append(f"{bench}, published ({metric}, of 100):")
        if ours and metric in ours:
            lines.append(f"  {'this measurement':<24}{100 * ours[metric]:5.1f}")
        lines += [
            f"  {row.model:<24}{row.value:5.1f}  {'thinks' if row.thinks else '':<7} {row.source}"
            for row in published(bench, metric=metric)
        ]
    return "\n".join(lines)
