"""Published figures, to print beside ours: who says what a model reaches, under which conditions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
    """How people marked a model's 100 answers of a task, 1,000 examples of which it was trained on (table 2)."""

    task: str
    model: str
    marks: tuple[int, int, int]
    """Answers marked 0, 1 and 2."""
    passed: float
    """Share marked 1 or 2."""
    better: tuple[int, int, int] | None = None
    """Of 100 pairs: the baseline better, the same, this model better. Which number is which is read from the layout."""
    source: str = "arXiv 2507.20939, table 2"


_TASKS = (
    ("brief summary", (29, 22, 49), 0.71, (18, 4, 78), 0.82, (16, 4, 80)),
    ("detailed summary", (37, 44, 19), 0.63, (26, 35, 39), 0.74, (8, 15, 77)),
    ("extended browsing words", (18, 36, 46), 0.82, (12, 34, 54), 0.88, (14, 44, 42)),
)
MARKED: tuple[Marked, ...] = tuple(
    row
    for task, theirs, passed, marks, ours, better in _TASKS
    for row in (
        Marked(task=task, model="baseline", marks=theirs, passed=passed),
        Marked(task=task, model=_ARC[0], marks=marks, passed=ours, better=better),
    )
)
"""The paper's downstream tasks."""
FREE = ("summary",)
"""Tasks of ours whose answers are of the kind that the paper had marked."""


def published(bench: str, *, metric: str = "") -> list[Published]:
    """Return what is published of a benchmark, in the order of the papers.

    Args:
        bench: `Bench.name`; a set of another size or split has a name of its own, and no figures of this one.
        metric: only figures of this metric.
    """
    return [row for row in PUBLISHED if row.bench == bench and metric in ("", row.metric)]


def published_table(bench: str, *, ours: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """Return the published figures of a benchmark as lines of text with their source; empty when there are none.

    Args:
        bench: `Bench.name`.
        ours: who -> metric -> what was measured here, 0 to 1; it stands above the published figures of that metric.
    """
    lines = []
    for metric in dict.fromkeys(row.metric for row in published(bench)):
        lines.append(f"{bench}, published ({metric}, of 100):")
        lines += [
            f"  {who:<23} {100 * figures[metric]:5.1f}" for who, figures in (ours or {}).items() if metric in figures
        ]
        lines += [
            f"  {row.model:<24}{row.value:5.1f}  {'thinks' if row.thinks else '':<7} {row.source}"
            for row in published(bench, metric=metric)
        ]
    return "\n".join(lines)


def marked(tasks: Iterable[str]) -> list[Marked]:
    """Return the paper's marks where answers of their kind are among the tasks, else nothing."""
    return list(MARKED) if set(tasks) & set(FREE) else []


def marked_table(tasks: Iterable[str], *, ours: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """Return the paper's marks of summaries as lines of text; empty when none of the tasks is of that kind.

    Args:
        tasks: of the questions that were asked.
        ours: who -> metric -> what was measured here. Figures of summaries and a user's own stand above the marks:
            a judge that gives 0, 1 or 2, or whether an answer passes, is what comes closest to them.
    """
    rows = marked(tasks)
    if not rows:
        return ""
    lines = [
        "summaries, published (100 answers a task, marked 0/1/2 by people; the share of 1 and 2; better against the"
    ]
    lines.append("baseline, worse/same/better). Figures here are on other clips and by other means:")
    for who, figures in (ours or {}).items():
        mine = {name: value for name, value in figures.items() if ":" in name or name.startswith(FREE)}
        lines += [f"  {who:<23} {name:<31} {value:.2f}" for name, value in mine.items()]
    for row in rows:
        better = "/".join(map(str, row.better)) if row.better else ""
        marks = "/".join(map(str, row.marks))
        lines.append(f"  {row.task:<24}{row.model:<22}{marks:<10}{row.passed:.2f}  {better:<9} {row.source}")
    return "\n".join(lines)
