"""ShortVid-Bench as a task of lmms-eval: questions, holes and reading of answers are those of `arcvideo evaluate`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from lmms_eval.api.task import ConfigurableTask
from loguru import logger

from arcvideo.bench import read_bench
from arcvideo.tasks import TASKS, make_sample

VARIABLE = "SHORTVID_BENCH"
"""Environment variable with the folder of the benchmark."""
METRIC = "mcq_accuracy_score"
"""lmms-eval finds the score of a sample by this ending."""


class ShortVidBench(ConfigurableTask):
    """A task whose questions come from a folder on this machine; nothing is downloaded."""

    def __init__(self, config: Mapping[str, Any] | None = None) -> None:
        """Take the YAML's fields."""
        super().__init__(config={name: value for name, value in (config or {}).items() if name != "class"})

    def download(self, dataset_kwargs: Mapping[str, Any] | None = None) -> None:
        """Read the questions; those that cannot be asked are told and left out.

        Raises:
            ValueError: no folder is named, or it is incomplete; one line that says what is missing.
        """
        folder = os.environ.get(VARIABLE) or (dataset_kwargs or {}).get("folder")
        if not folder:
            raise ValueError(f"{VARIABLE} must name the folder of ShortVid-Bench")
        bench = read_bench("shortvid-bench", Path(folder))
        for hole in bench.holes:
            logger.warning(f"{bench.name}: {hole.id} is not asked: {hole.reason}: {hole.detail}")
        self.dataset = DatasetDict({"test": Dataset.from_list([_row(item) for item in bench.items])})
        self.dataset_no_image = self.dataset
        for dimension in sorted({name for item in bench.items for name in _dimensions(item.tags)}):
            name = _metric(dimension)
            self._metric_fn_list[name], self._metric_fn_kwargs[name] = None, {}
            self._aggregation_list[name], self._higher_is_better[name] = mean, True


def _row(item: Any) -> dict[str, Any]:
    sample = make_sample({"task": "mcq", **item.fields}, key=item.id, media_key=item.id, style="plain")
    return {
        "id": item.id,
        "video": str(item.clip),
        "question": sample.turns[0].question,
        "options": list(sample.truth["options"]),
        "answer": sample.truth["letter"],
        "dimensions": list(_dimensions(item.tags)),
        "arcvideo_task": "mcq",
    }


def _dimensions(tags: Iterable[str]) -> list[str]:
    return [tag for tag in tags if tag.startswith("dimension:")]


def _metric(dimension: str) -> str:
    return f"mcq_accuracy[{dimension}]"


def doc_to_visual(doc: Mapping[str, Any]) -> list[str]:
    """Return the path of the video."""
    return [doc["video"]]


def doc_to_text(doc: Mapping[str, Any], lmms_eval_specific_kwargs: Mapping[str, Any] | None = None) -> str:
    """Return the question with its options."""
    return f"{doc['question']}{(lmms_eval_specific_kwargs or {}).get('post_prompt', '')}"


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what an answer counts, overall and in its dimension; one that cannot be read is wrong."""
    truth = {"letter": doc["answer"], "options": tuple(doc["options"])}
    read = TASKS["mcq"].read(results[0], truth)
    counted = {
        "score": float(read.value == doc["answer"]),
        "video": doc["video"],
        "id": doc["id"],
        "pred_answer": read.value or "",
        "answer": doc["answer"],
        "problem": read.problem or "",
    }
    return {METRIC: counted} | {_metric(dimension): counted for dimension in doc["dimensions"]}


def mean(results: Sequence[Mapping[str, Any]]) -> float:
    """Return the share of right answers."""
    return sum(one["score"] for one in results) / len(results)
