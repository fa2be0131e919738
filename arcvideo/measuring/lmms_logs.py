"""A measurement in the shape of lmms-eval's logs: `DATE_results.json` and `DATE_samples_TASK.jsonl`. No torch.

What compares, shows or uploads logs of lmms-eval reads them (tried with 0.7.3). Scores of samples are called
`METRIC_score`, an ending by which lmms-eval finds them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from arcvideo.evaluation.answers import FULL, Answer
from arcvideo.evaluation.figures import measured
from arcvideo.evaluation.predictions import read_predictions
from arcvideo.files import json_line, write_whole
from arcvideo.measuring.folder import PREDICTIONS, SCORES, read_answers, read_card
from arcvideo.seals import read_object

_FILTER = "none"
"""Name that lmms-eval gives to answers that went through no filter."""
_WIDTH = 3.92
"""Standard errors between the ends of a 95 % interval."""


def write_lmms_logs(folder: Path, *, out: Path) -> tuple[Path, Path]:
    """Write the logs of a measurement that was scored; return the files of results and of samples.

    Args:
        folder: of the measurement.
        out: receives a folder named by the model, as `--output_path` of lmms-eval.

    Raises:
        ValueError: no measurement there, or one without scores.
    """
    card = read_card(folder)
    try:
        scores = read_object(folder / SCORES)
    except FileNotFoundError:
        raise ValueError(f"{folder} has no {SCORES}; `arcvideo evaluate rescore={folder}` writes it") from None
    task = _name(card["name"])
    model = card["settings"].get("model") or str(card["checkpoint"])
    place = out / _name("__".join(Path(model).parts[-2:]))
    date = f"{datetime.fromisoformat(card['began']):%Y%m%d_%H%M%S}"
    samples = list(_samples(folder))
    rows = {
        "results": {task: {"alias": task, **_figures(scores)}},
        "group_subtasks": {task: []},
        "configs": {task: _config(card, task=task)},
        "versions": {task: card["origin"]["questions"][:16]},
        "n-shot": {task: 0},
        "higher_is_better": {task: {f"{name}_score": _more_is_better(name) for name in scores["metrics"]}},
        "n-samples": {task: {"original": scores["questions"], "effective": scores["asked"]}},
        "config": {"model": "arcvideo", "model_args": f"pretrained={model}", "batch_size": 1, "limit": None},
        "date": date,
        "task_hashes": {task: _digest("".join(row["doc_hash"] for row in samples))},
        "model_source": "arcvideo",
        "model_name": model,
        "model_name_sanitized": place.name,
        "arcvideo": card["origin"],
    }
    results, lines = place / f"{date}_results.json", place / f"{date}_samples_{task}.jsonl"
    place.mkdir(parents=True, exist_ok=True)
    write_whole(results, json.dumps(rows, indent=2) + "\n")
    write_whole(lines, "".join(map(json_line, samples)))
    return results, lines


def _name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "_", text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _more_is_better(name: str) -> bool:
    return not measured(name)[1].lower_is_better


def _figures(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures as lmms-eval names them; errors are those of whole clips."""
    figures: dict[str, float] = {}
    named = [(f"{name}_score", row) for name, row in scores["metrics"].items()]
    for tag, rows in scores["tags"].items():
        named += [(f"{name}[{tag}]", row) for name, row in rows.items()]
    for name, row in named:
        error = (row["high"] - row["low"]) / _WIDTH
        figures |= {
            f"{name},{_FILTER}": row["value"],
            f"{name}_stderr,{_FILTER}": error,
            f"{name}_stderr_clustered,{_FILTER}": error,
        }
    return figures


def _config(card: Mapping[str, Any], *, task: str) -> dict[str, Any]:
    decoding = card["origin"].get("decoding", {})
    return {
        "task": task,
        "dataset_path": card["data"],
        "test_split": "test",
        "output_type": "generate_until",
        "generation_kwargs": {"do_sample": False, "temperature": 0.0, "until": [],
                              "max_new_tokens": decoding.get("max_new_tokens")},
        "cluster_key": "video",
        "num_fewshot": 0,
        "metadata": {"prompt": card["prompt"], "source": card["source"], "notes": card["notes"]},
    }  # fmt: skip


def _samples(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield each question that was asked with everything in its clip."""
    counted: dict[str, dict[str, float]] = {}
    for row in read_predictions(folder / PREDICTIONS):
        counted.setdefault(row.key, {})[f"{row.metric}_score"] = row.score
    for (arm, key), answer in read_answers(folder).answers.items():
        if arm == FULL:
            yield _sample(answer, counted=counted.get(key, {}))


def _sample(answer: Answer, *, counted: Mapping[str, float]) -> dict[str, Any]:
    question = {"question": answer.question, "truth": dict(answer.truth), "video": answer.clip}
    return {
        "doc_id": answer.number,
        "target": answer.reference,
        "filtered_resps": answer.text,
        "token_counts": [{"output_tokens": answer.tokens}],
        "doc_hash": _digest(json.dumps(question, sort_keys=True)),
        **counted,
        "id": answer.key,
        "video": answer.clip,
        "input": answer.question,
    }
