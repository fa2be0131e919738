"""Per-item predictions on disk, so that stages can be compared item by item and a reader can look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from arcvideo.files import Fields, read_lines, write_lines


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One item of one metric."""

    metric: str
    key: str
    """Sample key."""
    question: str
    truth: Any
    """What was compared with: a text, a letter or a span in seconds."""
    prediction: str
    """The completion, unparsed."""
    score: float
    """Per item: 0 or 1, IoU, or edits."""
    weight: float = 1.0
    """Share in the mean: reference words when the score is edits, else 1."""
    about: str = ""
    """The clip; empty when it is the part of the key before its last slash."""

    @property
    def clip(self) -> str:
        """Key of the record that the item is about."""
        return self.about or self.key.rpartition("/")[0] or self.key


_TEXTS: Fields = dict.fromkeys(("metric", "key", "question", "prediction"), str)
_FIELDS: Fields = {**_TEXTS, "score": (int, float), "weight": (int, float)}


def write_predictions(path: Path, *, predictions: Iterable[Prediction]) -> None:
    """Write one JSON object a line, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_lines(path, map(asdict, predictions), checked=True)


def read_predictions(path: Path) -> Iterator[Prediction]:
    """Yield the predictions of a file."""
    for row in read_lines(path, fields=_FIELDS):
        yield Prediction(**row)


def read_scores(path: Path, *, metric: str) -> dict[str, Prediction]:
    """Return item key -> its prediction for one metric: the scores and weights that `paired_difference` compares.

    Raises:
        ValueError: the file has no prediction of this metric.
    """
    rows = {row.key: row for row in read_predictions(path) if row.metric == metric}
    if not rows:
        raise ValueError(f"{path} has no predictions of {metric}; evaluate the stage with this metric")
    return rows
