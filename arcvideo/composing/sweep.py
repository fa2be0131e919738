"""Sweeps: each job in a folder named by what it changes, shared parents trained once, one table at the end."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Sweep
from hydra.types import RunMode

from arcvideo.composing.compose import search_words
from arcvideo.composing.config import RunConfig
from arcvideo.composing.grammar import parsed
from arcvideo.composing.overrides import DEFAULT_MODEL, as_overrides, beside, settings_words
from arcvideo.evaluation.settings import LOSS
from arcvideo.files import write_whole
from arcvideo.hidden import hidden
from arcvideo.lineage.manifest import finished
from arcvideo.lineage.parents import BASE
from arcvideo.processes.children import run_child
from arcvideo.seals import write_sealed

PLACES = ("run_dir", "data_dir", "base", "threads", "feature_cache", "logger", "train_parents", "parents")
"""Settings that say where and how a job runs: they do not name its folder."""
SHARED = ("model", "engine", *PLACES)
"""Words that a sweep's parents are trained with too."""
JOB_NAME = "job.json"
SWEPT, PLACED = "ARCVIDEO_SWEPT", "ARCVIDEO_SWEEP_PLACED"
"""Variables that tell a job, wherever it runs, which keys are swept and whether somebody chose the folder of jobs."""
LONGEST_NAME = 100


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """One job of a sweep."""

    config: RunConfig
    """With a folder of its own."""
    hydra_dir: Path
    """Hydra's folder of this job."""
    overrides: dict[str, str]
    """Key -> value, as they were typed."""
    optimizing: bool = False
    """Whether a sweeper reads the value and chooses the next jobs by it."""

    @staticmethod
    def of(hydra: Any, *, config: RunConfig) -> SweepJob | None:
        """Return the job that Hydra runs now; None outside of sweeps."""
        if hydra.mode != RunMode.MULTIRUN:
            return None
        overrides = dict(_pair(word) for word in hydra.overrides.task)
        if config.output is None and os.environ.get(PLACED):
            # Somebody said where Hydra shall keep the jobs: the jobs are kept there.
            config = replace(config, output=str(Path(hydra.runtime.output_dir).absolute()))
        elif config.output is None:
            swept = os.environ.get(SWEPT, "").split()
            config = replace(config, output=job_name(config.stage.name, overrides=overrides, swept=swept))
        return SweepJob(
            config=replace(config, train_parents=True),
            hydra_dir=Path(hydra.runtime.output_dir),
            overrides=overrides,
            optimizing=hydra.runtime.choices["hydra/sweeper"] != "basic",
        )

    def hide(self) -> None:
        """Take credentials out of what Hydra has written about the job, and about the sweep."""
        for path in (*self.hydra_dir.glob(".hydra/*.yaml"), self.hydra_dir.parent / "multirun.yaml"):
            text = path.read_text(encoding="utf-8") if path.is_file() else ""
            if hidden(text) != text:
                write_whole(path, hidden(text))

    def done(self, value: float | None, *, error: str = "") -> None:
        """Note the job for the table, on rank 0.

        Args:
            value: the metric that is optimised.
            error: why there is none; the other jobs go on.
        """
        if os.environ.get("RANK", "0") != "0":
            return
        manifest = finished(self.config.stage_dir)
        row = {
            "folder": str(self.config.stage_dir),
            "overrides": {key: hidden(value) for key, value in self.overrides.items()},
            "metric": self.config.evaluation.optimized,
            "direction": "minimize" if lower_is_better(self.config.evaluation.optimized) else "maximize",
            "value": value,
            "error": hidden(error),
            "metrics": manifest.metrics if manifest else {},
            "seconds": manifest.seconds if manifest else 0.0,
        }
        self.hydra_dir.mkdir(parents=True, exist_ok=True)
        write_sealed(self.hydra_dir / JOB_NAME, json.dumps(row, indent=1) + "\n")


def job_name(stage: str, *, overrides: Mapping[str, str], swept: Sequence[str] = ()) -> str:
    """Return the folder of a job: its stage and what was swept, so that the same job is found again.

    Args:
        stage: its name.
        overrides: key -> value of all words of the job.
        swept: keys that have several values in the sweep; the other words are told apart by a digest. Without any, all
            words are in the name.
    """
    deciding = {key: value for key, value in overrides.items() if key.split(".")[0] not in (*PLACES, "stage")}
    named = {key: value for key, value in deciding.items() if key in swept} or deciding
    rest = sorted(f"{key}={value}" for key, value in deciding.items() if key not in named)
    text = re.sub(r"[^\w.=,+-]", "_", hidden(",".join([stage, *(f"{key}={value}" for key, value in named.items())])))
    if rest or len(text) > LONGEST_NAME:
        digest = hashlib.sha256(",".join([text, *rest]).encode()).hexdigest()[:8]
        return f"{text[: LONGEST_NAME - 9]}-{digest}"
    return text


def swept_keys(words: Sequence[str]) -> list[str]:
    """Return the keys of these words that have several values."""
    plain = [word for word in words if "=" in word and not word.startswith(("-", "~"))]
    return [word.lstrip("+").partition("=")[0] for word in plain if parsed(word).is_sweep_override()]


def parent_words(overrides: Sequence[str]) -> list[str]:
    """Return the words of a job that its parents are trained with too: model, engine, places, and `parents.`'s."""
    shared, theirs = [], []
    for word in (override.lstrip("+") for override in overrides):
        group = word.partition("=")[0].partition(".")[0]
        if group in SHARED:
            shared.append(word)
        if group == "parents":
            theirs.append(word.removeprefix("parents."))
    return shared + theirs


def train_parents(config: RunConfig, *, overrides: Sequence[str], chosen: Mapping[str, str]) -> None:
    """Train the parent stage in a process of its own if it is not finished; that process does the same for its parent.

    A parent that was killed after its training and before its measurement is measured now; when that fails, its weights
    are started from all the same.
    Jobs that ask at the same time wait for each other: a stage's folder has a lock.

    Args:
        chosen: group -> option; parents are pages of the same model.

    Raises:
        ValueError: inside a job of several processes, where none of them may start others.
        SystemExit: the parent failed; its exit status is passed on.
    """
    stage = config.stage.parent
    if config.parent or stage == BASE:
        return
    trained = finished(Path(config.run_dir) / stage)
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    if trained is not None and (trained.evaluation or several):
        return
    if several:
        raise ValueError(
            f"stage {config.stage.name} needs {stage}, which has not finished in {config.run_dir}, and a job of "
            "several processes cannot train it on the way: run `python -m arcvideo.pipeline` or that stage first"
        )
    shared = [word for word in parent_words(overrides) if not word.startswith("train_parents=")]
    if not any(word.startswith("model=") for word in shared) and chosen["model"] != DEFAULT_MODEL:
        shared.append(f"model={chosen['model']}")
    words = [f"stage={beside(chosen['stage'], stage=stage)}", *shared, *search_words(), "train_parents=true"]
    command = [sys.executable, "-m", "arcvideo.train", *words]
    print(f"parent first: {' '.join(command[1:])}", flush=True)
    status = run_child(command)
    if status in (1, 2) and trained is not None:
        print(f"{stage} is trained but could not be measured; its weights are started from", flush=True)
    elif status:
        sys.exit(status)


def first_words(words: Sequence[str]) -> list[str]:
    """Return the words of the first job that these words start; what a search draws from a range is left out."""
    plain = settings_words(words)
    first = {word: first_choice(given) for word, given in zip(plain, settings_words(as_overrides(words)), strict=True)}
    return [word for given in words if (word := first.get(given, given)) is not None]


def first_choice(word: str) -> str | None:
    """Return an override with the first of the values that are swept; None for a range that a sweeper draws from."""
    if "=" not in word or word.startswith("~"):
        return word
    override = parsed(word)
    if not override.is_sweep_override():
        return word
    swept = override.value()
    if not isinstance(swept, Sweep) or not override.is_discrete_sweep():
        return None
    return f"{word.partition('=')[0]}={next(override.sweep_string_iterator())}"


def sweep_folder(words: Sequence[str], *, config: RunConfig) -> Path:
    """Return where Hydra shall keep the jobs of the sweep that these words start."""
    given = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("hydra.sweep.dir=")]
    return (
        Path(given[-1].strip("'\"")) if given else Path(config.run_dir) / "sweeps" / time.strftime("%Y-%m-%d_%H-%M-%S")
    )


def lower_is_better(metric: str) -> bool:
    """Of a name that `evaluation.optimize` takes."""
    return "error" in metric or metric == LOSS or metric.startswith(("train/", "time/"))


def report_sweep(folder: Path) -> bool:
    """Write and print the table of a sweep's jobs; whether all of them came to a value or had none to come to."""
    from arcvideo.report.sweep import print_sweep, read_jobs, write_sweep

    unread: list[str] = []
    jobs = read_jobs(folder, unread=unread)
    if jobs:
        print_sweep(write_sweep(folder), page=folder / "sweep.html")
    failed = [*unread, *(f"{job['folder']}: {job['error']}" for job in jobs if job.get("error"))]
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    return not failed


def _pair(word: str) -> tuple[str, str]:
    key, _, value = word.lstrip("+").partition("=")
    return key, value
