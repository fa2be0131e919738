"""Per-item predictions on disk, so that stages can be compared item by item and a reader can look."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


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

    @property
    def clip(self) -> str:
        """Key of the record that the item is about."""
        return self.key.rpartition("/")[0] or self.key


def write_predictions(path: Path, *, predictions: Iterable[Prediction]) -> None:
    """Write one JSON object a line, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        for prediction in predictions:
            file.write(json.dumps(asdict(prediction), ensure_ascii=False) + "\n")
    temporary.replace(path)


def read_predictions(path: Path) -> Iterator[Prediction]:
    """The predictions of a file."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield Prediction(**json.loads(line))


def read_scores(path: Path, *, metric: str) -> dict[str, Prediction]:
    """Return item key -> its prediction for one metric: the scores and weights that `paired_difference` compares.

    Raises:
        ValueError: the file has no prediction of this metric.
    """
    rows = {row.key: row for row in read_predictions(path) if row.metric == metric}
    if not rows:
        raise ValueError(f"{path} has no predictions of {metric}; evaluate the stage with this metric")
    return rows
