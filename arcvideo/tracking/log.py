"""What a run tells: metrics.jsonl, its mirrors, and one line for a person now and then. Rank 0 only."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arcvideo.tracking.callbacks import Callbacks
from arcvideo.tracking.metrics import MetricsFile, TensorBoardMirror, WandbMirror, read_metrics
from arcvideo.tracking.mirrors import close_all, open_mirrors
from arcvideo.tracking.settings import LoggerSettings


class RunLog:
    """The outlets of a run's numbers; silent on ranks other than the first."""

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
        callbacks: Callbacks | None = None,
    ) -> None:
        """Open.

        Args:
            folder: of the run.
            first: whether this is rank 0.
            start: first step that will be recorded.
            steps: of the whole run.
            every: steps between two lines on the terminal.
            logger: W&B and TensorBoard.
            name: of the W&B run.
            config: resolved settings, shown by W&B.
            wandb_id: of the run to continue, None for a new one.
            callbacks: hear every step.
        """
        self._first, self._steps, self._every = first, steps, every
        self._since: list[Mapping[str, Any]] = []
        self.callbacks = callbacks or Callbacks()
        self._file = MetricsFile(folder / "metrics.jsonl", keep_below=start) if first else None
        quiet = dataclasses.replace(logger, wandb="disabled", tensorboard=False, mirrors=[])
        settings = logger if first else quiet
        past = read_metrics(self._file.path) if self._file is not None and start else []
        self._wandb = WandbMirror(settings, folder=folder, name=name, config=config, run_id=wandb_id, past=past)
        self._tensorboard = TensorBoardMirror(settings, folder=folder, start=start)
        self._mirrors = open_mirrors(settings, folder=folder, name=name, config=config, start=start, past=past)

    def tell_missing(self, *, since: int | None, before: int) -> None:
        """Say which steps of an earlier process have no row any more.

        Args:
            since: the run's first step; None is that of the first row.
            before: the step that it resumes with.
        """
        if self._file is None:
            return
        there = {row["step"] for row in read_metrics(self._file.path)}
        first = min(there, default=before) if since is None else since
        gone = [step for step in range(first, before) if step not in there]
        if gone:
            self.say(
                f"metrics.jsonl: rows of {len(gone)} of the {before} steps before are gone, the first is that of step "
                f"{gone[0]}; put the file back to have them in curves and reports, training goes on without"
            )

    @property
    def wandb_id(self) -> str | None:
        """Kept in checkpoints, so that a resumed run continues the same curves."""
        return self._wandb.run_id

    def record(self, values: Mapping[str, Any], *, rollouts: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write one step's numbers; `values` has `step`. Rollouts become a W&B table, as often as there is a line."""
        if self._file is not None:
            self._file.write(values)
        shown = rollouts and (values["step"] == 0 or (values["step"] + 1) % self._every == 0)
        self._wandb.write({**values, "rollouts": list(rollouts)} if shown else values)
        self._tensorboard.write(values)
        for mirror in self._mirrors:
            mirror.write(values)
        self.callbacks.step(values)
        if "train/loss" in values:  # a step that was passed over has none
            self._since.append(values)
        done = values["step"] + 1
        if self._since and (done % self._every == 0 or done == self._steps):
            self.say(progress_line(self._since, steps=self._steps))
            self._since = []

    def say(self, text: str) -> None:
        """A line for a person."""
        if self._first:
            print(text, file=sys.stderr, flush=True)

    def close(self, *, exit_code: int) -> None:
        """Close the file and the mirrors."""
        if self._file is not None:
            self._file.close()
        self._wandb.close(exit_code=exit_code)
        self._tensorboard.close()
        close_all(self._mirrors, exit_code=exit_code)


def progress_line(interval: Sequence[Mapping[str, Any]], *, steps: int) -> str:
    """Step, time left, loss or (GRPO, whose loss is 0 by construction) reward, KL and length of the answers, rate,
    gradient, speed, share of time spent waiting for data, memory.

    Args:
        interval: the numbers of the steps since the last line; speeds are over all of them, the rest is the last's.
        steps: of the whole run.
    """
    last = interval[-1]
    done = last["step"] + 1
    seconds = max(sum(values["time/step"] for values in interval), 1e-9)
    left = int((steps - done) * seconds / len(interval))
    waited = sum(values["time/data"] for values in interval)
    tokens = sum(values["train/tokens"] for values in interval)
    parts = [
        f"step {done}/{steps}",
        f"left {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}",
        *_course(last),
        f"lr {last['train/lr']:.2e}",
        f"grad {last['train/grad_norm']:.3g}",
        f"{tokens / seconds:,.0f} tok/s",
    ]
    if "speed/mfu" in last:
        mfu = sum(values["speed/mfu"] * values["time/step"] for values in interval) / seconds
        parts.append(f"MFU {100 * mfu:.1f}%")
    elif "speed/tflops" in last:
        tflops = sum(values["speed/tflops"] * values["time/step"] for values in interval) / seconds
        parts.append(f"{tflops:.3g} TFLOP/s")
    parts += [f"data {100 * waited / seconds:.0f}%", f"mem {last['memory/gib']:.1f} GiB"]
    return "  ".join(parts)


def _course(last: Mapping[str, Any]) -> list[str]:
    """Return the words that say whether it learns."""
    if "train/reward" not in last:
        return [f"loss {last['train/loss']:.4f}"]
    parts = [f"reward {last['train/reward']:.3f}"]
    if "train/kl" in last:
        parts.append(f"kl {last['train/kl']:.3g}")
    if "train/completions/mean_length" in last:
        parts.append(f"length {last['train/completions/mean_length']:.0f}")
    return parts
