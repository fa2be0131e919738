"""Which stages were asked the same questions: figures over different ones never share a row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Cells = Mapping[str, Mapping[str, Any]]
"""Metric -> its figures, of one stage."""


@dataclass(frozen=True, kw_only=True)
class MetricRow:
    """A metric over one set of questions."""

    metric: str
    about: str
    """Which questions; empty where all stages were asked the same."""
    cells: Mapping[str, Mapping[str, Any]]
    """Stage -> its figures; stages that were asked other questions are not among them."""

    @property
    def title(self) -> str:
        """The metric, with its questions where they have to be told."""
        return f"{self.metric} ({self.about})" if self.about else self.metric


def question_sets(predictions: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Return metric -> digest of the questions it was measured on: their keys, words and true answers.

    Args:
        predictions: objects of predictions.jsonl; those of another make are passed over.
    """
    by_metric: dict[str, set[str]] = {}
    for row in predictions:
        if "metric" in row and "key" in row:
            question = [row["key"], row.get("question"), row.get("truth")]
            by_metric.setdefault(str(row["metric"]), set()).add(json.dumps(question, sort_keys=True))
    return {
        metric: hashlib.sha256("\n".join(sorted(questions)).encode("utf-8", "surrogatepass")).hexdigest()
        for metric, questions in by_metric.items()
    }


def metric_rows(measured: Mapping[str, Cells], *, sets: Mapping[str, Mapping[str, str]]) -> list[MetricRow]:
    """Return the rows of a table of metrics by stage.

    Args:
        measured: stage -> its figures.
        sets: stage -> metric -> digest of its questions (`question_sets`); an unknown one is a set of its own kind.
    """
    rows = []
    for metric in dict.fromkeys(name for cells in measured.values() for name in cells):
        by_set: dict[str, dict[str, Mapping[str, Any]]] = {}
        for stage, cells in measured.items():
            if metric in cells:
                by_set.setdefault(sets.get(stage, {}).get(metric, ""), {})[stage] = cells[metric]
        for number, cells in enumerate(by_set.values(), 1):
            about = f"questions {_letter(number)}" if len(by_set) > 1 else ""
            rows.append(MetricRow(metric=metric, about=about, cells=cells))
    return rows


def told_sets(rows: Sequence[MetricRow]) -> str:
    """Return the sentence that says why a metric has several rows; empty when none has."""
    if not any(row.about for row in rows):
        return ""
    return "Stages in different rows of a metric were asked different questions; their figures do not compare."


def _letter(number: int) -> str:
    return chr(ord("A") + number - 1) if number <= 26 else str(number)
