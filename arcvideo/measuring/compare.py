"""Two measurements side by side: paired differences with their intervals, as text and as a picture. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from arcvideo.bench.published import marked, published
from arcvideo.evaluation.answers import FULL, Answer
from arcvideo.evaluation.figures import measured
from arcvideo.evaluation.settings import EvaluationSettings
from arcvideo.files import write_whole
from arcvideo.measuring.folder import read_answers, read_card
from arcvideo.measuring.scores import beside, default_metrics, differences, figures_of

_WIDTH, _ROW, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 30, 260, 190, 50, 40
_INK, _FAINT, _GOOD, _BAD = (30, 30, 30), (200, 200, 200), (40, 130, 70), (190, 60, 50)


def compare(
    first: Path, second: Path, *, metrics: Sequence[str] = (), bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return the differences, first minus second, over the questions that were asked in both.

    Args:
        first: folder of a measurement.
        second: of the one that is subtracted.
        metrics: figures; by default all that the questions' tasks have.
        bootstrap: resamples behind each interval.
        seed: of the resampling.

    Raises:
        ValueError: no measurements, or measurements of different questions, or none that the figures are about.
    """
    cards = [read_card(folder) for folder in (first, second)]
    if cards[0]["origin"]["questions"] != cards[1]["origin"]["questions"]:
        raise ValueError(
            f"compare: {first} ({cards[0].get('bench')}) and {second} ({cards[1].get('bench')}) asked different "
            "questions, so no difference between them means anything"
        )
    measurements = [read_answers(folder) for folder in (first, second)]
    sides = [_full(measurement.answers) for measurement in measurements]
    keys = [key for key in sides[0] if key in sides[1]]
    if not keys:
        raise ValueError(f"compare: {first} and {second} have no question in common")
    here, there = ([side[key] for key in keys] for side in sides)
    how = EvaluationSettings(bootstrap=bootstrap, seed=seed)
    wanted = list(metrics) or default_metrics(measurements[0])
    rows = {
        metric: {**row, "lower_is_better": measured(metric)[1].lower_is_better}
        for metric, row in differences(here, there, metrics=wanted, settings=how).items()
    }
    if not rows:
        raise ValueError(f"compare: no question that was asked in both is measured by {', '.join(wanted)}")
    values = EvaluationSettings(metrics=list(rows), items=0, bootstrap=1)
    figures = [
        {name: row["value"] for name, row in figures_of(side, settings=values).items()} for side in (here, there)
    ]
    bench, tasks = str(cards[0].get("bench", "")), sorted({answer.task for answer in here})
    same = ("parser", "decoder", "layout", "style", "decoding")
    differing = [name for name in same if cards[0]["origin"].get(name) != cards[1]["origin"].get(name)]
    return {
        "first": str(first), "second": str(second), "folders": [str(first.resolve()), str(second.resolve())],
        "names": _names(first, second), "questions": len(keys),
        "only_first": len(sides[0]) - len(keys), "only_second": len(sides[1]) - len(keys),
        "asked_differently": differing, "differences": rows, "bench": bench, "tasks": tasks, "figures": figures,
        "published": [asdict(row) for row in published(bench)], "marked": [asdict(row) for row in marked(tasks)],
    }  # fmt: skip


def _names(first: Path, second: Path) -> list[str]:
    """Return what the two are called: their folders, and what tells the places apart in which these lie."""
    names = [path.resolve().name for path in (first, second)]
    places = zip(first.resolve().parent.parts[::-1], second.resolve().parent.parts[::-1], strict=False)
    apart = next((pair for pair in places if pair[0] != pair[1]), None)
    return [f"{place}/{name}" for place, name in zip(apart, names, strict=True)] if apart else names


def _full(answers: Mapping[tuple[str, str], Answer]) -> dict[str, Answer]:
    return {key: answer for (arm, key), answer in answers.items() if arm == FULL}


def compare_text(comparison: Mapping[str, Any]) -> str:
    """Return the differences for a terminal."""
    lines = [f"{comparison['first']} minus {comparison['second']}, {comparison['questions']} questions asked in both"]
    for which in ("first", "second"):
        if comparison[f"only_{which}"]:
            lines.append(
                f"  {comparison[f'only_{which}']} questions were asked in {comparison[which]} alone and do not count"
            )
    if comparison["asked_differently"]:
        lines.append(f"  they were asked differently: {', '.join(comparison['asked_differently'])}")
    for name, row in comparison["differences"].items():
        less = "  less is better" if row["lower_is_better"] else ""
        lines.append(f"  {name:<27} {row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]  n {row['n']}{less}")
    ours = {name[-23:]: figures for name, figures in zip(comparison["names"], comparison["figures"], strict=True)}
    return "\n".join([*lines, *beside(comparison, ours=ours)])


def write_comparison(comparison: Mapping[str, Any], *, out: Path) -> tuple[Path, Path]:
    """Write the differences as JSON and as a PNG beside it; return both paths.

    Raises:
        ValueError: files of that name hold the differences of two others.
    """
    name = "-minus-".join(name.replace("/", "-") for name in comparison["names"])
    text, picture = out / f"{name}.json", out / f"{name}.png"
    if text.exists():
        try:
            there = json.loads(text.read_text(encoding="utf-8")).get("folders")
        except (ValueError, AttributeError):
            there = None
        if there != comparison["folders"]:
            raise ValueError(f"{text} holds the differences of two other folders; give another out=")
    out.mkdir(parents=True, exist_ok=True)
    write_whole(text, json.dumps(comparison, indent=1) + "\n")
    draw(comparison, path=picture)
    return text, picture


def draw(comparison: Mapping[str, Any], *, path: Path) -> None:
    """Write a PNG: a row a figure, its difference as a dot, its 95 % interval as a line, zero as an axis."""
    rows = comparison["differences"]
    most = max([0.01, *(max(abs(row["low"]), abs(row["high"])) for row in rows.values())])
    image = Image.new("RGB", (_WIDTH, _TOP + _ROW * len(rows) + _BOTTOM), "white")
    pen, font = ImageDraw.Draw(image), ImageFont.load_default(size=15)

    def across(value: float) -> float:
        middle, half = (_LEFT + _WIDTH - _RIGHT) / 2, (_WIDTH - _RIGHT - _LEFT) / 2
        return middle + value / most * half

    title = f"{' minus '.join(comparison['names'])} (95 % over clips, n {comparison['questions']})"
    pen.text((12, 12), title, fill=_INK, font=font)
    bottom = _TOP + _ROW * len(rows)
    pen.line([(across(0), _TOP - 6), (across(0), bottom)], fill=_FAINT, width=2)
    for place, (name, row) in enumerate(rows.items()):
        y = _TOP + _ROW * place + _ROW / 2
        sign = -1 if row["lower_is_better"] else 1
        colour = _GOOD if sign * row["low"] > 0 and sign * row["high"] > 0 else _INK
        colour = _BAD if sign * row["low"] < 0 and sign * row["high"] < 0 else colour
        pen.text((12, y - 9), f"{name} (less)" if row["lower_is_better"] else name, fill=_INK, font=font)
        pen.line([(across(row["low"]), y), (across(row["high"]), y)], fill=colour, width=3)
        pen.ellipse([(across(row["mean"]) - 5, y - 5), (across(row["mean"]) + 5, y + 5)], fill=colour)
        text = f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        pen.text((_WIDTH - _RIGHT + 12, y - 9), text, fill=_INK, font=font)
    for value in (-most, 0.0, most):
        pen.text((across(value), bottom + 8), f"{value:+.2g}" if value else "0", fill=_INK, font=font, anchor="ma")
    image.save(path)
