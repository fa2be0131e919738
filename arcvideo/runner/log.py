"""What a run tells: metrics.jsonl, its W&B mirror, and one line for a person now and then. Rank 0 only."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arcvideo.runner.metrics import MetricsFile, WandbMirror
from arcvideo.runner.settings import LoggerSettings


class RunLog:
    """The three outlets of a run's numbers; silent on ranks other than the first."""

    def __init__(
        self,
        folder: Path,
        *,
        first: bool,
        start: int,
        steps: int,
        every: int,
        logger: LoggerSettings,
        name: str,
        config: Mapping[str, Any],
        wandb_id: str | None,
    ) -> None:
        """Open.

        Args:
            folder: of the run.
            first: whether this is rank 0.
            start: first step that will be recorded.
            steps: of the whole run.
            every: steps between two lines on the terminal.
            logger: W&B settings.
            name: of the W&B run.
            config: resolved settings, shown by W&B.
            wandb_id: of the run to continue, None for a new one.
        """
        self._first, self._steps, self._every = first, steps, every
        self._file = MetricsFile(folder / "metrics.jsonl", keep_below=start) if first else None
        mode = logger if first else dataclasses.replace(logger, wandb="disabled")
        self._mirror = WandbMirror(mode, folder=folder, name=name, config=config, run_id=wandb_id)

    @property
    def wandb_id(self) -> str | None:
        """Kept in checkpoints, so that a resumed run continues the same curves."""
        return self._mirror.run_id

    def record(self, values: Mapping[str, Any]) -> None:
        """Write one step's numbers; `values` has `step`."""
        if self._file is not None:
            self._file.write(values)
        self._mirror.write(values)
        done = values["step"] + 1
        if done % self._every == 0 or done == self._steps:
            self.say(progress_line(values, steps=self._steps))

    def say(self, text: str) -> None:
        """A line for a person."""
        if self._first:
            print(text, file=sys.stderr, flush=True)

    def close(self, *, exit_code: int) -> None:
        """Close file and mirror."""
        if self._file is not None:
            self._file.close()
        self._mirror.close(exit_code=exit_code)


def progress_line(values: Mapping[str, Any], *, steps: int) -> str:
    """Step, loss, rate, gradient, speed, share of time spent waiting for data, time left."""
    done = values["step"] + 1
    left = int((steps - done) * values["time/step"])
    waiting = 100 * values["time/data"] / max(values["time/step"], 1e-9)
    return "  ".join(
        [
            f"step {done}/{steps}",
            f"loss {values['train/loss']:.4f}",
            f"lr {values['train/lr']:.2e}",
            f"grad {values['train/grad_norm']:.3g}",
            f"{values['speed/tokens_per_second']:,.0f} tok/s",
            f"data {waiting:.0f}%",
            f"left {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}",
        ]
    )
