"""rollouts.jsonl: some completions of every step, for people to read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from arcvideo.rollout.groups import Group
from arcvideo.rollout.rewards.score import Scores


class RolloutLog:
    """Writes completions with their rewards; a step that is done again replaces what it and later steps wrote."""

    def __init__(self, path: Path | None, *, count: int) -> None:
        """Write to `path` (None: nowhere) at most `count` completions a step, whole groups first."""
        self.path, self.count = path, count
        self._next = -1

    def write(self, *, step: int, groups: Sequence[Group], scores: Scores, advantages: Tensor) -> None:
        """Append the first completions of a step."""
        if self.path is None or not self.count:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        rows = [(group.prompt, completion) for group in groups for completion in group.completions][: self.count]
        self._drop_from(step)
        with self.path.open("a", encoding="utf-8") as file:
            for index, (prompt, completion) in enumerate(rows):
                parts = {name: float(part[index]) for name, part in scores.parts.items()}
                row = {
                    "step": step,
                    "key": prompt.key,
                    "task": prompt.task,
                    "question": prompt.question,
                    "truth": dict(prompt.truth),
                    "completion": completion.text,
                    "finished": completion.finished,
                    "rewards": {name: value for name, value in parts.items() if value == value},
                    "advantage": round(float(advantages[index]), 4),
                }
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _drop_from(self, step: int) -> None:
        """Forget this step and later ones, unless this process has just written the step before."""
        assert self.path is not None
        if step < self._next or self._next < 0:
            old = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
            kept = [line for line in old if line.endswith("}") and json.loads(line)["step"] < step]
            self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self._next = step + 1
