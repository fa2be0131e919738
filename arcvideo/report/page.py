"""One self-contained HTML page about the stages of a pipeline: what each moved, took, read and proved, and examples.

Everything that was written by a model or a data set is escaped by the templates; the page has no script, and its policy
forbids the browser to load anything or to run any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from arcvideo.files import write_whole
from arcvideo.report import facts
from arcvideo.report.benches import BenchRecord, benches
from arcvideo.report.curves import curve
from arcvideo.report.records import StageRecord, read_json, read_stage, stage_names
from arcvideo.report.samples import held_out_examples, rollout_examples
from arcvideo.report.sets import metric_rows, question_sets, told_sets

PAGE = "report.html"
CURVES = {
    "train/loss": "loss",
    "train/reward": "reward",
    "train/token_accuracy": "token accuracy",
    "train/kl": "KL to the parent",
    "train/completions/mean_length": "tokens of a completion",
    "train/frac_reward_zero_std": "groups with equal rewards",
    "train/entropy": "entropy",
    "train/grad_norm": "gradient norm",
    "train/lr": "learning rate",
}
"""Key in metrics.jsonl -> title; a stage shows those it has, and the mean of each reward."""


def write_page(run_dir: Path, *, stages: Sequence[str] | None = None) -> Path:
    """Write `run_dir`/report.html and return its path.

    Args:
        run_dir: folder of a pipeline: one sub-folder a stage, and summary.json once it is finished.
        stages: names of the sub-folders in order; None takes the order of summary.json, then the time they began.

    Raises:
        ValueError: the folder has nothing to report, or nothing that can be read.
        OSError: the folder cannot be looked into.
    """
    unread: list[str] = []
    summary = read_json(run_dir / "summary.json", unread=unread)
    names = list(stages) if stages is not None else stage_names(run_dir, summary=summary, unread=unread)
    if not names and unread:
        raise ValueError(f"{run_dir}: nothing there can be read ({'; '.join(unread)}); change the permissions")
    if not names:
        raise ValueError(f"{run_dir} has neither summary.json nor a stage with metrics.jsonl; train a stage first")
    records = [read_stage(run_dir / name) for name in names]
    measured = benches(run_dir, unread=unread)
    text = _rendered_all(run_dir.name, records, summary=summary, measured=measured, unread=unread)
    return save(run_dir / PAGE, text)


_ODD = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError, TemplateError)
"""What a file of another kind than ours may end in; one such file never keeps the page from being written."""


def _rendered_all(
    name: str,
    stages: Sequence[StageRecord],
    *,
    summary: Mapping[str, Any],
    measured: Sequence[BenchRecord],
    unread: list[str],
) -> str:
    """Return the page; of what cannot be shown, a line says so."""
    try:
        return _page(name, stages, summary=summary, measured=measured, unread=unread)
    except _ODD:
        shown = [stage if _shows(stage) else _without_odd(stage) for stage in stages]
    try:
        return _page(name, shown, summary=summary, measured=measured, unread=unread)
    except _ODD:
        pass
    try:
        return _page(name, shown, summary={}, measured=measured, unread=[*unread, "summary.json: what it says"])
    except _ODD:  # each alone, but not together
        bare = [StageRecord(name=stage.name, unread=(*stage.unread, "all of its files")) for stage in stages]
        return _page(name, bare, summary={}, measured=measured, unread=unread)


def _page(
    name: str,
    stages: Sequence[StageRecord],
    *,
    summary: Mapping[str, Any],
    measured: Sequence[BenchRecord] = (),
    unread: Sequence[str],
) -> str:
    text = rendered("page.html", unread=unread, benches=measured, **_content(name, stages, summary=summary))
    return text.encode("utf-8", "backslashreplace").decode()  # half a character has no place in a file


def _shows(stage: StageRecord) -> bool:
    try:
        _page("", [stage], summary={}, unread=())
    except _ODD:
        return False
    return True


_PARTS = ("predictions", "rollouts", "quarantine", "evaluation", "steps", "started", "manifest")


def _without_odd(stage: StageRecord) -> StageRecord:
    """Return the stage without the file that cannot be shown, or without any when it is more than one."""
    empty = StageRecord(name=stage.name)
    for part in _PARTS:
        rest = replace(stage, unread=(*stage.unread, f"{part}: what it says"), **{part: getattr(empty, part)})
        if _shows(rest):
            return rest
    return replace(empty, unread=(*stage.unread, "all of its files"))


def rendered(template: str, **content: Any) -> str:
    """Return a page from one of the templates; every value is escaped there unless it is Markup."""
    return _templates().get_template(template).render(**content)


def save(path: Path, text: str) -> Path:
    """Write a page so that it is there whole or as it was; returns its path."""
    write_whole(path, text)
    return path


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=PackageLoader("arcvideo.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": _duration, "amount": _amount, "clock": _clock}
    return environment


def _content(name: str, stages: Sequence[StageRecord], *, summary: Mapping[str, Any]) -> dict[str, Any]:
    costs = [facts.cost(stage) for stage in stages]
    measured = [stage for stage in stages if stage.evaluation]
    proven = [stage for stage in stages if stage.manifest]
    sets = {stage.name: question_sets(stage.predictions) for stage in measured}
    metrics = metric_rows({stage.name: stage.evaluation for stage in measured}, sets=sets)
    return {
        "name": name,
        "summary": summary,
        "nodes": facts.tree(stages),
        "costs": costs,
        "slowest": max((cost.seconds for cost in costs), default=0.0) or 1.0,
        "rolled": any(stage.rollouts for stage in stages),
        "measured": measured,
        "metrics": metrics,
        "unequal": told_sets(metrics),
        "sources": [row for stage in stages for row in facts.sources(stage)],
        "lost": facts.lost(stages),
        "proven": proven,
        "proofs": {stage.name: facts.proofs(stage) for stage in proven},
        "modules": list(
            dict.fromkeys(row["module"] for stage in proven for row in stage.manifest.get("trainable", []))
        ),
        "moves": list(
            dict.fromkeys(key for stage in proven for key in stage.manifest.get("liveness", {}).get("moved", {}))
        ),
        "stages": [_stage(stage) for stage in stages],
        "held_out": held_out_examples(stages),
    }


def _stage(stage: StageRecord) -> dict[str, Any]:
    rewards = sorted({key for row in stage.steps[:1] for key in row if key.startswith("train/rewards/")})
    titles = CURVES | {key: key.split("/")[2] for key in rewards if key.endswith("/mean")}
    drawn = [curve(stage.series(key), title=title) for key, title in titles.items()]
    return {
        "record": stage,
        "curves": [Markup(svg) for svg in drawn if svg],
        "differences": facts.differences(stage),
        "rollouts": rollout_examples(stage),
    }


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _amount(number: float | None) -> str:
    """Return a count in three digits: 481 K, 1.2 M."""
    if number is None:
        return ""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("K", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
