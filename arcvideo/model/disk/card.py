"""The model card of an export: what it was made from, with what, and how well it does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE = "README.md"
SHOWN = ("stage", "data", "optimizer", "schedule", "runner", "lora", "grpo", "dpo", "next_token")
"""Blocks of the settings that the card lists; all of them stand in the stage's manifest."""

USE = """```python
import arcvideo  # pip install arcvideo; or leave this out and pass trust_remote_code=True twice below
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("THIS FOLDER")
model = AutoModelForImageTextToText.from_pretrained("THIS FOLDER", dtype="auto")
question = [{"type": "video", "url": "clip.mp4"}, {"type": "text", "text": "What happens?"}]
inputs = processor.apply_chat_template([{"role": "user", "content": question}], tokenize=True, return_dict=True)
answer = model.generate(**inputs, max_new_tokens=256)
print(processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```"""
"""How an export is used; with `trust_remote_code=True` the package need not be installed."""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What the card of a stage's export says."""

    stage: str
    parent: str
    """Identity or path of the weights that the stage started from."""
    identity: str
    """Of the stage: settings, code, data and parent."""
    steps: int
    trained: Iterable[str]
    """Modules that learnt."""
    mixture: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Source -> what was requested and what was trained on."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The run's settings as plain values."""
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name -> value, n, and the interval where there is one."""


def write_card(folder: Path, card: Card) -> None:
    """Write the model card into an export."""
    text = "\n\n".join([_header(card), _origin(card), _data(card), _metrics(card), _settings(card), "## Use", USE])
    (folder / FILE).write_text(text + "\n", encoding="utf-8")


def _header(card: Card) -> str:
    return (
        "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\ntags:\n- video\n- audio\n- arcvideo\n---\n"
        f"# {card.stage}\n\nWeights of the stage `{card.stage}`, in the layout of ARC-Hunyuan-Video."
    )


def _origin(card: Card) -> str:
    return (
        f"Trained for {card.steps} steps from `{card.parent}`; what learnt: {', '.join(card.trained) or 'nothing'}. "
        f"Identity of the stage: `{card.identity}`."
    )


def _data(card: Card) -> str:
    if not card.mixture:
        return "## Data\n\nNot recorded."
    sources = (card.settings.get("data") or {}).get("sources") or {}
    rows = []
    for name, row in card.mixture.items():
        got = row.get("realised") or {}
        tasks = ", ".join(f"{task} {count}" for task, count in (got.get("tasks") or {}).items() if count)
        seen = [_said(got.get(column)) for column in ("items", "tokens", "share")]
        rows.append([name, f"`{(sources.get(name) or {}).get('shards', '')}`", *seen, tasks])
    return "## Data\n\nWhat was trained on, repeats counted.\n\n" + _table(
        ["source", "shards", "items", "tokens", "share of tokens", "items of each task"], rows
    )


def _metrics(card: Card) -> str:
    if not card.metrics:
        return "## Metrics\n\nNot measured when the weights were written."
    rows = [[name, _said(row.get("value")), _said(row.get("n")), _interval(row)] for name, row in card.metrics.items()]
    return (
        "## Metrics\n\nOn held-out items when the weights were written; the stage's `evaluation.json` may hold later "
        "ones.\n\n" + _table(["metric", "value", "n", "95 % interval"], rows)
    )


def _settings(card: Card) -> str:
    rows = [
        [f"`{block}.{key}`", f"`{value}`"]
        for block in SHOWN
        for key, value in (card.settings.get(block) or {}).items()
        if _plain(value)
    ]
    return "## Settings\n\n" + (_table(["setting", "value"], rows) if rows else "Not recorded.")


def _interval(row: Mapping[str, Any]) -> str:
    low, high = row.get("low"), row.get("high")
    return "" if low is None or high is None else f"{_said(low)} to {_said(high)}"


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _said(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(names: list[str], rows: list[list[str]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
