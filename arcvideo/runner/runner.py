"""The loop. It knows no losses and no stages: batches come from a source, the loss from an objective."""

from __future__ import annotations

import dataclasses
import faulthandler
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from arcvideo.objectives.loss import Loss
from arcvideo.runner.checkpoint import Checkpoint, CheckpointFolder
from arcvideo.runner.engine import Engine, StepOutcome
from arcvideo.runner.liveness import GradientWatch, LivenessReport, check_modalities
from arcvideo.runner.log import RunLog
from arcvideo.runner.metrics import Sums, merge
from arcvideo.runner.randomness import random_state, restore_random_state, seed_all
from arcvideo.runner.ranks import barrier, gather_json
from arcvideo.runner.schedule import lr_ratio
from arcvideo.runner.settings import LoggerSettings, RunnerSettings, ScheduleSettings
from arcvideo.runner.signals import Preempted, StopSignals
from arcvideo.types import Batch


class BatchSource(Protocol):
    """Where batches come from: a data set, or rollouts of the policy (then it holds the policy itself)."""

    def batches(self, step: int) -> Sequence[Batch]:
        """This rank's micro-batches of optimizer step `step`; as many on every rank. A pure function of the step."""
        ...


class Objective(Protocol):
    """What is minimised."""

    def __call__(self, logits: Tensor, batch: Batch) -> Loss:
        """Summed loss of one micro-batch; logits are (T, V)."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a finished run leaves for the manifest."""

    steps: int
    seconds: float
    """Of this process, without what ran before a resume."""
    metrics: dict[str, float]
    """Of the last step."""
    skipped: list[int]
    """Steps refused for a non-finite loss or gradient."""
    resumed_from: int
    """Steps that were already done when this process started."""
    liveness: dict[str, Any] = field(default_factory=dict)
    """LivenessReport as a dict; empty when switched off."""


def model_inputs(batch: Batch) -> dict[str, Any]:
    """What the model's forward reads of a batch."""
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "segments": batch.segments,
        "media": batch.media,
        "target_positions": batch.target_positions,
    }


class Runner:
    """One stage's training: resume, liveness proof, steps, metrics, checkpoints."""

    def __init__(
        self,
        *,
        engine: Engine,
        source: BatchSource,
        objective: Objective,
        settings: RunnerSettings,
        schedule: ScheduleSettings,
        train: Sequence[str],
        folder: Path,
        identity: str,
        logger: LoggerSettings | None = None,
        name: str = "run",
        config: Mapping[str, Any] | None = None,
        forward_extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Prepare.

        Args:
            engine: holds the model.
            source: batches per step.
            objective: loss per batch.
            settings: length, saving, proofs.
            schedule: learning rate.
            train: names of the modules that the configuration trains.
            folder: receives metrics.jsonl, checkpoints/ and W&B files.
            identity: of this stage run (`lineage.identity`); checkpoints of another one are refused.
            logger: W&B.
            name: shown by W&B.
            config: resolved settings, shown by W&B.
            forward_extra: further arguments of every training forward, e.g. the model's feature cache.
        """
        self.engine, self.source, self.objective = engine, source, objective
        self.settings, self.schedule, self.train = settings, schedule, list(train)
        self.folder, self.identity, self.name = folder, identity, name
        self.logger, self.config = logger or LoggerSettings(), dict(config or {})
        self.world = engine.world
        self.checkpoints = CheckpointFolder(folder / "checkpoints", keep_last=settings.keep_last)
        self._extra = dict(forward_extra or {})
        self._skipped: list[int] = []
        self._saved_at = -1
        self._report = LivenessReport()
        self._watch: GradientWatch | None = None

    def run(self) -> RunResult:
        """Train until `settings.steps`, from the newest checkpoint of this identity if there is one.

        Raises:
            Preempted: a signal asked to stop; a checkpoint is written, the process should exit with code 85.
            DeadModality: the liveness proof failed.
            RuntimeError: more steps had to be skipped than `runner.skip_budget` allows.
        """
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.settings.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
            # Filling memory that is about to be written anyway costs time and changes nothing.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        seed_all(self.settings.seed, rank=self.world.rank)
        found = self._resume()
        start = found.step if found else 0
        self._log = self._open_log(found)
        last: dict[str, float] = {}
        code = 1
        try:
            with StopSignals() as signals:
                if self.settings.liveness and start == 0:
                    self._prove()
                for step in range(start, self.settings.steps):
                    last, stop = self._step(step, stop=signals.requested)
                    done = step + 1
                    if stop or self._save_is_due(done):
                        self.save(done)
                    if stop and done < self.settings.steps:
                        raise Preempted(done)
            self._end_watch()
            code = 0
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._log.close(exit_code=code)
        return RunResult(
            steps=self.settings.steps,
            seconds=time.monotonic() - began,
            metrics=last,
            skipped=list(self._skipped),
            resumed_from=start,
            liveness=dataclasses.asdict(self._report) if self.settings.liveness else {},
        )

    # --- one step ---

    def _step(self, step: int, *, stop: bool) -> tuple[dict[str, float], bool]:
        """One optimizer step; returns its metrics, and whether any rank was asked to stop."""
        if self.settings.hang_seconds:
            faulthandler.dump_traceback_later(self.settings.hang_seconds, exit=True)
        began = time.perf_counter()
        batches = list(self.source.batches(step))
        waited = time.perf_counter() - began
        weight = self._global_weight(step, batches)
        self.engine.set_lr(lr_ratio(step, schedule=self.schedule, steps=self.settings.steps))
        sums, suspects = self._gradient(batches, weight=weight)
        if self._watch is not None:
            self._watch.after_backward(batches)
            if not self._watch.unproven or step + 1 >= self.settings.liveness_scan:
                self._end_watch()
        outcome = self.engine.step()
        facts = {
            "pairs": sums.pairs(),
            "tokens": sum(int(batch.input_ids.numel()) for batch in batches),
            "waited": waited,
            "stop": stop,
            # When no loss is to blame, any sample of the step may be.
            "suspects": suspects or [key for batch in batches for key in batch.keys],
            "blames": bool(suspects),
        }
        parts = gather_json(facts if not outcome.applied else facts | {"suspects": []}, world=self.world)
        values = self._values(parts, outcome=outcome, weight=weight, seconds=time.perf_counter() - began)
        self._log.record({"step": step} | values)
        if not outcome.applied:
            blaming = [part for part in parts if part["blames"]] or parts
            self._skip(step, [key for part in blaming for key in part["suspects"]])
        return values, any(part["stop"] for part in parts)

    def _gradient(self, batches: Sequence[Batch], *, weight: float) -> tuple[Sums, list[str]]:
        """Forward and backward of every micro-batch; the sums, and the samples whose loss was not finite."""
        sums = Sums()
        totals: list[Tensor] = []
        for number, batch in enumerate(batches):
            batch = batch.to(self.engine.device)
            loss = self.objective(self.engine(**model_inputs(batch), **self._extra), batch)
            self.engine.backward(loss.total / weight, last=number == len(batches) - 1)
            totals.append(loss.total.detach())
            sums.add("loss", totals[-1], 0.0)
            for name, (metric, count) in loss.metrics.items():
                sums.add(name, metric, count)
        finite = torch.isfinite(torch.stack(totals)).tolist()
        return sums, [key for ok, batch in zip(finite, batches, strict=True) if not ok for key in batch.keys]

    def _values(
        self, parts: Sequence[dict[str, Any]], *, outcome: StepOutcome, weight: float, seconds: float
    ) -> dict[str, float]:
        """The numbers of a step, over all ranks."""
        tokens = sum(part["tokens"] for part in parts)
        values = {
            "train/loss": sum(part["pairs"]["loss"][0] for part in parts) / weight,
            "train/grad_norm": outcome.grad_norm,
            "train/lr": max(self.engine.lrs().values()),
            "train/weight": weight,
            "train/tokens": tokens,
            "train/skipped": int(not outcome.applied),
            "time/step": seconds,
            "time/data": max(part["waited"] for part in parts),
            "speed/tokens_per_second": tokens / seconds,
        }
        return values | {f"train/{name}": value for name, value in merge([part["pairs"] for part in parts]).items()}

    def _global_weight(self, step: int, batches: Sequence[Batch]) -> float:
        """Sum of target weights over ranks and micro-batches.

        Raises:
            ValueError: no targets at all, or ranks disagree on the number of micro-batches.
        """
        mine = [float(batch.target_weights.double().sum()) for batch in batches]
        parts = gather_json(mine, world=self.world)
        counts = [len(part) for part in parts]
        if len(set(counts)) != 1 or counts[0] == 0:
            raise ValueError(
                f"step {step}: the ranks got {counts} micro-batches; a source must give every rank the same number, "
                "at least 1"
            )
        # fsum does not depend on the order, so neither does the loss on how the step is cut.
        flat = [value for part in parts for value in part]
        weight = math.fsum(flat) if all(math.isfinite(value) for value in flat) else math.nan
        if weight == 0:
            raise ValueError(f"step {step} has no target tokens, first sample {batches[0].keys[:1]}: check the data")
        return weight

    def _skip(self, step: int, keys: Sequence[str]) -> None:
        self._skipped.append(step)
        shown = ", ".join(keys[:8]) + (" ..." if len(keys) > 8 else "")
        self._log.say(f"step {step} skipped, weights unchanged: loss or gradient is not finite; samples {shown}")
        if len(self._skipped) > self.settings.skip_budget:
            raise RuntimeError(
                f"{len(self._skipped)} steps were skipped for non-finite numbers, more than runner.skip_budget="
                f"{self.settings.skip_budget}; the last ones: {self._skipped[-5:]}, samples {shown}"
            )

    # --- proofs ---

    def _prove(self) -> None:
        ahead = range(min(self.settings.liveness_scan, self.settings.steps))
        batches = ([batch.to(self.engine.device) for batch in self.source.batches(step)] for step in ahead)
        # Without the feature cache: it would answer for changed clips with the features of the originals.
        self._report = check_modalities(
            batches, forward=lambda batch: self.engine(**model_inputs(batch)), world=self.world
        )
        self._watch = GradientWatch(self.engine.trained_parameters(), train=self.train, world=self.world)

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.close(self._report)
            self._watch = None
            for note in self._report.notes:
                self._log.say(f"liveness: {note}")

    # --- checkpoints ---

    def _save_is_due(self, done: int) -> bool:
        every = self.settings.save_every
        return done == self.settings.steps or (every > 0 and done % every == 0)

    def save(self, done: int) -> None:
        """Write the checkpoint of `done` finished steps, once."""
        if done == self._saved_at:
            return
        state = {
            "random": gather_json(random_state(), world=self.world),
            "steps_applied": self.engine.steps_applied,
            "skipped": self._skipped,
            "wandb_id": self._log.wandb_id,
            "world_size": self.world.size,
            "liveness": dataclasses.asdict(self._report),
        }
        self.checkpoints.write(
            step=done,
            identity=self.identity,
            weights=self.engine.weights(),
            optimizer=self.engine.optimizer_state(),
            state=state,
            writes=self.world.first,
        )
        barrier(world=self.world)
        self._saved_at = done

    def _resume(self) -> Checkpoint | None:
        # Rank 0 chooses: another rank could see a half-deleted directory.
        chosen = self.checkpoints.newest() if self.world.first else None
        step = gather_json(chosen.step if chosen else None, world=self.world)[0]
        if step is None:
            return None
        found = chosen or self.checkpoints.at(step)
        if found.identity != self.identity:
            raise ValueError(
                f"{found.path} belongs to another run of this stage ({found.identity[:12]}, now {self.identity[:12]}): "
                "settings, data, parent or code changed. Delete the folder, or choose another output folder"
            )
        self.engine.load_state(
            weights=found.tensors("weights"),
            optimizer=found.tensors("optimizer"),
            steps_applied=found.state["steps_applied"],
        )
        if found.state["world_size"] == self.world.size:
            restore_random_state(found.state["random"][self.world.rank])
        else:
            seed_all(self.settings.seed + found.step, rank=self.world.rank)
        self._skipped = list(found.state["skipped"])
        self._report = LivenessReport(**found.state["liveness"])
        self._saved_at = found.step
        return found

    def _open_log(self, found: Checkpoint | None) -> RunLog:
        log = RunLog(
            self.folder,
            first=self.world.first,
            start=found.step if found else 0,
            steps=self.settings.steps,
            every=self.settings.log_every,
            logger=self.logger,
            name=self.name,
            config=self.config,
            wandb_id=found.state["wandb_id"] if found else None,
        )
        if found:
            log.say(f"resumed after step {found.step} from {found.path}")
        return log
