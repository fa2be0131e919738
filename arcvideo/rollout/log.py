"""Some completions of every step for people to read: rollouts.jsonl, and a picture of spans, rollouts.png."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from arcvideo.files import json_line, read_lines, write_lines
from arcvideo.rollout.rewards.score import Scores
from arcvideo.rollout.timeline import Asked, draw
from arcvideo.sampling.groups import Completion, Group
from arcvideo.tasks.blocks import answer_text
from arcvideo.tasks.spans import parse_span

PICTURED = 6
"""Prompts about spans on the picture."""


def sample_rows(groups: Sequence[Group], scores: Scores, *, gains: Tensor, count: int) -> list[dict[str, Any]]:
    """Return the first `count` completions with their rewards and why they got them, JSON-able; whole groups first."""
    pairs = [(group, completion) for group in groups for completion in group.completions][:count]
    rows = []
    for index, (group, completion) in enumerate(pairs):
        prompt = group.prompt
        parts = {name: float(part[index]) for name, part in scores.parts.items()}
        true = prompt.truth.get("span")
        rows.append(
            {
                "key": prompt.key,
                "source": prompt.source,
                "place": prompt.place,
                "task": prompt.task,
                "question": prompt.question,
                "truth": dict(prompt.truth),
                "completion": completion.text,
                "finished": completion.finished,
                "span": None if true is None else parse_span(completion.text),
                "rewards": {name: value for name, value in parts.items() if value == value},
                "notes": _notes(scores, index=index),
                "reward": float(scores.total[index]),
                "advantage": round(float(gains[index]), 4),
            }
        )
    return rows


def _notes(scores: Scores, *, index: int) -> dict[str, dict[str, Any]]:
    """Reward -> what it read, or why it could not; without what does not apply."""
    all_notes = {
        reward: {note: values[index] for note, values in notes.items() if values[index] is not None}
        for reward, notes in scores.notes.items()
    }
    return {reward: notes for reward, notes in all_notes.items() if notes}


class RolloutLog:
    """Writes what was sampled; a step that is done again replaces what it and later steps wrote."""

    def __init__(self, path: Path | None) -> None:
        """Write to `path` (None: nowhere); the picture stands beside it."""
        self.path = path
        self._next = -1

    def write(self, rows: Sequence[dict[str, Any]], *, step: int, groups: Sequence[Group]) -> None:
        """Append the rows of a step, and draw its prompts about spans in place of the last picture."""
        if self.path is None or not rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._drop_from(step)
        with self.path.open("a", encoding="ascii") as file:
            file.writelines(json_line({"step": step} | row, checked=True) for row in rows)
        panels = [_asked(group) for group in groups if group.prompt.truth.get("span") is not None][:PICTURED]
        if panels:
            draw(panels, title=f"step {step}", path=self.path.with_suffix(".png"))

    def _drop_from(self, step: int) -> None:
        """Forget this step and later ones, unless this process has just written the step before."""
        assert self.path is not None
        if step < self._next or self._next < 0:
            old = read_lines(self.path, fields={"step": int}) if self.path.exists() else []
            write_lines(self.path, (row for row in old if row["step"] < step), checked=True)
        self._next = step + 1


def _asked(group: Group) -> Asked:
    """Return a prompt about a span as the picture shows it."""
    media = group.prompt.media
    true = tuple(float(second) for second in group.prompt.truth["span"])
    said = [parse_span(completion.text) for completion in group.completions]
    clip = float(max((max(item.seconds, item.frame_count) for item in media), default=0))
    return Asked(
        question=group.prompt.question,
        key=group.prompt.key,
        true=(true[0], true[1]),
        said=said,
        texts=[_short(completion) for completion in group.completions],
        seconds=max([clip, true[1], 1.0]),
    )


def _short(completion: Completion) -> str:
    return answer_text(completion.text) or completion.text
