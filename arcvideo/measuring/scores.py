"""The scores of a measurement, from its answers alone: overall, per tag, per arm. No torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arcvideo.bench.published import marked, marked_table, published, published_table
from arcvideo.evaluation.answers import FULL, NO_SOUND, Answer
from arcvideo.evaluation.bootstrap import paired_difference
from arcvideo.evaluation.figures import choose, counts, figures, measured
from arcvideo.evaluation.predictions import Prediction, write_predictions
from arcvideo.evaluation.settings import EvaluationSettings, metric_names
from arcvideo.files import write_lines
from arcvideo.measuring.folder import SCORES, Found, Lost, read_answers, read_card
from arcvideo.measuring.needs import classes
from arcvideo.measuring.needs_page import PAGE as NEEDS_PAGE
from arcvideo.measuring.needs_page import write_needs_page
from arcvideo.measuring.settings import ARMS
from arcvideo.seals import digest_of, write_sealed
from arcvideo.tasks import TASKS
from arcvideo.tasks.grounding import GROUNDING
from arcvideo.tasks.spans import read_span

NEEDS = "needs.jsonl"
UNREAD = "unread.jsonl"
Figures = dict[str, dict[str, float]]


def score_folder(
    folder: Path, *, metrics: Sequence[str] = (), bootstrap: int = 0, seed: int | None = None
) -> dict[str, Any]:
    """Score the answers of a measurement and write `scores.json`, `predictions.jsonl`, `unread.jsonl`, `needs.*`.

    Other figures than the measurement's own are written beside these, so that nothing of it is replaced.

    Args:
        folder: of the measurement.
        metrics: figures; by default those of the card, or all that its tasks have.
        bootstrap: resamples; 0 takes the card's.
        seed: of the resampling; None takes the card's.

    Raises:
        ValueError: no measurement there, or nothing was answered.
    """
    card = read_card(folder)
    measurement = read_answers(folder)
    if not measurement.answers:
        raise ValueError(f"{folder} has no answers; ask them first with the command of its card")
    how = card.get("scoring", {})
    settings = EvaluationSettings(
        metrics=list(metrics) or list(how.get("metrics") or default_metrics(measurement)),
        items=0,
        bootstrap=bootstrap or int(how.get("bootstrap", 1000)),
        seed=int(how.get("seed", 0)) if seed is None else seed,
    )
    # A stage measures some figures on some of its questions; other figures are over whatever was answered.
    chosen = None if metrics else how.get("chosen")
    holes = [*(Lost(**row) for row in card.get("holes", ())), *measurement.lost.values()]
    scores, predictions = scored(measurement, settings=settings, holes=holes, chosen=chosen)
    scores = {"name": card["name"], "bench": card.get("bench", ""), "asked_of": card["origin"].get("questions", ""),
              **scores, "notes": list(card.get("notes", ())),
              "published": [asdict(row) for row in published(str(card.get("bench", "")))],
              "marked": [asdict(row) for row in marked(scores["tasks"])]}  # fmt: skip
    lacking = [name for name in metrics if name not in scores["metrics"]]
    scores |= {"without_items": lacking} if lacking else {}
    path = folder / scores_name(card, metrics=metrics)
    write_predictions(path.with_name(path.name.replace("scores", "predictions") + "l"), predictions=predictions)
    if path.name != SCORES:
        write_sealed(path, json.dumps(scores, indent=1) + "\n")
        return scores
    write_lines(folder / UNREAD, _unread(measurement.answers.values()))
    needs = classes(measurement.answers)
    if needs:
        write_lines(folder / NEEDS, needs, checked=True)
        scores["needs"] = dict(Counter(tag for row in needs for tag in row["tags"]))
        write_needs_page(folder / NEEDS_PAGE, scores=scores, card=card, answers=measurement.answers)
    write_sealed(path, json.dumps(scores, indent=1) + "\n")
    return scores


def scores_name(card: Mapping[str, Any], *, metrics: Sequence[str]) -> str:
    """Return the name of the file with these figures: `scores.json` has the measurement's own."""
    own = card.get("scoring", {}).get("metrics") or []
    return SCORES if list(metrics) in ([], list(own)) else f"scores-{digest_of(list(metrics))[:8]}.json"


def default_metrics(measurement: Found) -> list[str]:
    """Return every figure that can be computed of these answers."""
    silent = any(arm == NO_SOUND for arm, _ in measurement.answers)
    return [name for name in metric_names() if silent or not measured(name)[1].silent]


def scored(
    measurement: Found,
    *,
    settings: EvaluationSettings,
    holes: Sequence[Lost],
    chosen: Mapping[str, Sequence[str]] | None = None,
) -> tuple[dict[str, Any], list[Prediction]]:
    """Return the scores as JSON has them, and what each item counted in the arm with everything.

    Args:
        measurement: the answers.
        settings: metrics, and how they are resampled.
        holes: questions that were not asked.
        chosen: metric -> keys of the questions that it is over; None takes all that were answered.
    """
    full = {key: answer for (arm, key), answer in measurement.answers.items() if arm == FULL}
    if chosen is None:
        chosen = choose(list(full.values()), settings=settings)
    metrics, predictions = figures(measurement.answers, chosen=chosen, settings=settings)
    answers = list(full.values())
    clipped = [answer.key for answer in answers if _beyond(answer)]
    unread = [answer for answer in answers if answer.problem is not None]
    scores: dict[str, Any] = {
        "questions": len(full) + len(holes),
        "asked": len(full),
        "clips": len({answer.clip for answer in answers}),
        "tasks": dict(Counter(answer.task for answer in answers)),
        "not_asked": dict(Counter(hole.reason for hole in holes)),
        "holes": [asdict(hole) for hole in holes],
        "unread": {"count": len(unread), "share": len(unread) / len(full) if full else 0.0},
        "cut_off": sum(not answer.finished for answer in answers),
        "beyond_the_clip": {"count": len(clipped), "keys": clipped},
        "tokens_per_answer": sum(answer.tokens for answer in answers) / max(len(answers), 1),
        "metrics": {name: asdict(metric) for name, metric in metrics.items()},
        "tags": _by_tag(full, settings=settings),
    }
    asked = {arm for arm, _ in measurement.answers}
    arms = [arm for arm in ARMS if arm in asked and arm != FULL]
    if arms:
        scores["arms"] = {arm: _arm(measurement, arm=arm, settings=settings) for arm in arms}
    return scores, predictions


def _by_tag(full: Mapping[str, Answer], *, settings: EvaluationSettings) -> dict[str, Figures]:
    tags = sorted({tag for answer in full.values() for tag in answer.tags})
    by_tag: dict[str, Figures] = {}
    for tag in tags:
        some = [answer for answer in full.values() if tag in answer.tags]
        by_tag[tag] = figures_of(some, settings=settings)
    return by_tag


def figures_of(answers: Sequence[Answer], *, settings: EvaluationSettings) -> Figures:
    """Return the figures of answers, whatever their arm, but not those of constant answers and silence."""
    names = [name for name in settings.metrics if not measured(name)[1].control]
    settings = EvaluationSettings(metrics=names, items=0, bootstrap=settings.bootstrap, seed=settings.seed)
    table = {(FULL, answer.key): answer for answer in answers}
    metrics, _ = figures(table, chosen=choose(answers, settings=settings), settings=settings)
    return {name: asdict(metric) for name, metric in metrics.items()}


def _arm(measurement: Found, *, arm: str, settings: EvaluationSettings) -> dict[str, Any]:
    """Figures in an arm, and what the whole clip is worth above them, on the items that were asked in both."""
    both = [key for its_arm, key in measurement.answers if its_arm == arm and (FULL, key) in measurement.answers]
    there = [measurement.answers[arm, key] for key in both]
    here = [measurement.answers[FULL, key] for key in both]
    return {
        "items": len(both),
        "metrics": figures_of(there, settings=settings),
        "full_minus_arm": differences(here, there, metrics=settings.metrics, settings=settings),
    }


def differences(
    first: Sequence[Answer], second: Sequence[Answer], *, metrics: Sequence[str], settings: EvaluationSettings
) -> dict[str, dict[str, float]]:
    """Return metric -> its paired difference between answers to the same questions; controls are left out."""
    rows: dict[str, dict[str, float]] = {}
    for metric in metrics:
        ours, theirs = _counted(first, metric=metric), _counted(second, metric=metric)
        keys = [key for key in ours if key in theirs]
        if measured(metric)[1].control or not keys:
            continue
        difference = paired_difference(
            [ours[key].score for key in keys],
            [theirs[key].score for key in keys],
            weights=[ours[key].weight for key in keys],
            clips=[ours[key].clip for key in keys],
            seed=settings.seed,
            resamples=settings.bootstrap,
        )
        rows[metric] = {"mean": difference.mean, "low": difference.low, "high": difference.high, "n": len(keys)}
    return rows


def _counted(answers: Sequence[Answer], *, metric: str) -> dict[str, Prediction]:
    """Return key -> what the answer counts, of the answers that a metric is measured on."""
    keys = set(choose(answers, settings=EvaluationSettings(metrics=[metric], items=0))[metric])
    return {row.key: row for row, _ in counts(metric, [answer for answer in answers if answer.key in keys])}


def _beyond(answer: Answer) -> bool:
    """Return whether the answer names a time behind the end of its clip."""
    if answer.task != GROUNDING.name or answer.seconds is None:
        return False
    said = read_span(answer.text).value
    return said is not None and said[1] > answer.seconds


def _unread(answers: Any) -> list[dict[str, Any]]:
    return [
        {"key": answer.key, "arm": answer.arm, "task": answer.task, "problem": answer.problem, "text": answer.text}
        for answer in answers
        if answer.problem is not None and answer.task in TASKS
    ]


def table_text(scores: Mapping[str, Any]) -> str:
    """Return the scores for a terminal: what is over all questions stands last, where it does not scroll away."""
    not_asked = sum(scores["not_asked"].values())
    reasons = ", ".join(f"{reason} {count}" for reason, count in scores["not_asked"].items())
    lines = []
    for tag, rows in scores["tags"].items():
        lines += [f"  [{tag}]", *(f"  {_line(name, row)}" for name, row in rows.items())]
    for arm, compared in scores.get("arms", {}).items():
        lines.append(f"  {arm}: {compared['items']} items, what the whole clip is worth above it:")
        lines += [
            f"    {name:<25} {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
            for name, row in compared["full_minus_arm"].items()
        ]
    if "needs" in scores:
        lines.append("  " + ", ".join(f"{tag} {count}" for tag, count in sorted(scores["needs"].items())))
    lines += [
        f"{scores['name']}: {scores['asked']} of {scores['questions']} questions were asked, "
        f"about {scores['clips']} clips"
        + (f"; {not_asked} could not be ({reasons}): {SCORES} lists them" if not_asked else ""),
        *(_line(name, row) for name, row in scores["metrics"].items()),
        *(f"  {name:<27} is of none of these answers" for name in scores.get("without_items", ())),
        f"  answers that cannot be read (counted as wrong): {scores['unread']['count']}; cut off: {scores['cut_off']}; "
        f"times beyond the clip (cut there): {scores['beyond_the_clip']['count']}",
    ]
    ours = {"this measurement": {name: row["value"] for name, row in scores["metrics"].items()}}
    notes = (f"  note: {note}" for note in scores.get("notes", ()))
    return "\n".join([*lines, *notes, *beside(scores, ours=ours)])


def beside(scores: Mapping[str, Any], *, ours: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the published tables that belong to what was asked, with our figures in them.

    Args:
        scores: with `bench` and `tasks`.
        ours: who -> metric -> value.
    """
    tables = (published_table(str(scores.get("bench", "")), ours=ours), marked_table(scores["tasks"], ours=ours))
    return [table for table in tables if table]


def _line(name: str, row: Mapping[str, float]) -> str:
    interval = f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
    return f"  {name:<27} {interval}  n {row['n']:.0f}, chance {row['chance']:.2f}"
