"""The loop. It knows no losses and no stages: batches come from a source, the loss from an objective."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from arcvideo.processes.ranks import gather_json
from arcvideo.processes.signals import Preempted, StopSignals
from arcvideo.processes.watchdog import Watchdog
from arcvideo.runner.badnumbers import SkippedSteps, SpikeRule
from arcvideo.runner.engine import Engine
from arcvideo.runner.facts import facts_of, numbers_of, passed_over, values_of
from arcvideo.runner.gradient import add_gradients
from arcvideo.runner.liveness import GradientWatch, LivenessReport, check_modalities, predictions
from arcvideo.runner.optimizer import lr_ratio
from arcvideo.runner.protocols import BatchSource, Course, HeldRollouts, Judging, NoCourse, Objective, RunResult
from arcvideo.runner.resuming import first_checkpoint, take_best
from arcvideo.runner.saving import Saver
from arcvideo.runner.settings import RunnerSettings, ScheduleSettings
from arcvideo.saving.checkpoint import Checkpoint, CheckpointFolder
from arcvideo.saving.randomness import random_state, restore_random_state, seed_all
from arcvideo.tracking.callbacks import Callbacks
from arcvideo.tracking.cost import MemoryUse, accounting, device_peak, settings_of
from arcvideo.tracking.log import RunLog
from arcvideo.tracking.metrics import read_metrics
from arcvideo.tracking.settings import LoggerSettings
from arcvideo.types import Batch, Counts, StepData, summed


class Runner:
    """One stage's training: resume, liveness proof, steps, metrics, checkpoints."""

    def __init__(
        self,
        *,
        engine: Engine,
        source: BatchSource,
        held: HeldRollouts | None = None,
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
        continue_from: Path | None = None,
        callbacks: Callbacks | None = None,
        course: Course | None = None,
    ) -> None:
        """Prepare.

        Args:
            engine: holds the model.
            source: what a step trains on.
            held: the same source, when it has rollouts that several updates use.
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
            continue_from: a checkpoint of another run to begin with.
            callbacks: hear steps and checkpoints; on the first rank.
            course: what is measured during the run.
        """
        self.engine, self.source, self.held, self.objective = engine, source, held, objective
        self.course: Course = course or NoCourse()
        self.settings, self.schedule, self.train = settings, schedule, list(train)
        self.folder, self.identity, self.name = folder, identity, name
        self.logger, self.config = logger or LoggerSettings(), dict(config or {})
        self.world = engine.world
        self.checkpoints = CheckpointFolder(
            folder / "checkpoints", keep_last=settings.keep_last, keep_every=settings.keep_every
        )
        self._saver = Saver(
            engine, folder=self.checkpoints, identity=identity, failures=settings.save_failures,
            patience=settings.hang_seconds or math.inf,
        )  # fmt: skip
        self._rule = SpikeRule(z=settings.spike_z, window=settings.spike_window, clip_norm=engine.clip_norm)
        self._dog = Watchdog(seconds=settings.hang_seconds, folder=folder / "hang", world=engine.world)
        self._memory = MemoryUse(engine.device)
        self._sizes = settings_of(engine.model)
        self._peak = device_peak(engine.device, tflops=settings.peak_tflops)
        self._extra, self.continue_from = dict(forward_extra or {}), continue_from
        self.callbacks = callbacks or Callbacks()
        self._counts: Counts = {}
        self._skips = SkippedSteps(folder / "skipped.jsonl", budget=settings.skip_budget, writes=engine.world.first)
        self._report = LivenessReport()
        # Without the feature cache: it would answer for changed clips with the features of the originals.
        self._predict = partial(predictions, run=engine, objective=objective)
        self._watch: GradientWatch | None = None

    def run(self, *, until: int | None = None) -> RunResult:
        """Train until `settings.steps`, from the newest checkpoint of this identity if there is one.

        Args:
            until: stop earlier, after so many steps, with a checkpoint from which another run goes on.

        Raises:
            Preempted: a signal asked to stop; a checkpoint is written, the process should exit with code 85.
            DeadModality: the liveness proof failed.
            BadNumbers: more updates had to be refused than `runner.skip_budget` allows.
            OutOfMemory: naming samples and the override that fits.
            CheckpointError: checkpoints cannot be written or read.
        """
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.settings.deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
            # Filling memory that is about to be written anyway costs time and changes nothing.
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        seed_all(self.settings.seed, rank=self.world.rank)
        checkpoint = self._resume()
        start = checkpoint.step if checkpoint else 0
        end = min(until or self.settings.steps, self.settings.steps)
        self._log = self._open_log(checkpoint)
        last: dict[str, Any] = {}
        code, done = 1, start if self.course.over else max(start, end)
        try:
            with StopSignals() as signals, self._dog:
                if self.settings.liveness and start == 0:
                    self._prove()
                for step in range(start, start if self.course.over else end):
                    values, stop = self._step(step, stop=signals)
                    last = values or last
                    done = step + 1
                    if stop or self._save_is_due(done):
                        self.save(done)
                    if self.course.over:
                        break
                    if stop and done < end:
                        self._finish_saving(done)
                        raise Preempted(done)
                self._end_watch()
                self._finish_saving(done)
                if done == self.settings.steps or self.course.over:
                    take_best(self.course, done=done, folder=self.checkpoints, engine=self.engine)
            code = 0
        finally:
            if code:
                self._saver.leave()
            self._log.close(exit_code=code)
        return RunResult(
            repeatable=self.settings.deterministic,
            steps=done,
            seconds=time.monotonic() - began,
            metrics=numbers_of(last or self._last_line()),
            skipped=self._skips.steps,
            resumed_from=start,
            liveness=dataclasses.asdict(self._report) if self.settings.liveness else {},
            counts=self._counts,
            wandb_id=self._log.wandb_id,
        )

    # --- one step ---

    def _step(self, step: int, *, stop: StopSignals) -> tuple[dict[str, Any], bool]:
        """One optimizer step; returns its metrics (none if passed over), and whether any rank was asked to stop."""
        began = time.perf_counter()
        self._dog.note(f"waiting for the data of step {step}")
        with self._memory.explained(f"the data of step {step} were made"):
            data = self.source.batches(step)
        batches, waited = data.batches, time.perf_counter() - began
        self._dog.note(f"in step {step}", _keys(batches))
        for note in data.notes:
            self._log.say(note)
        weight = self._global_weight(step, data)
        if weight == 0:
            return {}, self._pass_over(step, data, seconds=waited, stop=stop)
        self._prove_again(step, batches)
        self.engine.set_lr(lr_ratio(step, schedule=self.schedule, steps=self.settings.steps))
        sums, suspects = add_gradients(
            batches, weight=weight, engine=self.engine, objective=self.objective, memory=self._memory,
            extra=self._extra, deterministic=self.settings.deterministic,
        )  # fmt: skip
        if self._watch is not None:
            self._watch.after_backward(batches)
            if not self._watch.unproven or step + 1 >= self.settings.liveness_scan:
                self._end_watch()
        facts = facts_of(data, sums=sums, waited=waited, sizes=self._sizes, trained=self.train)
        parts = gather_json(facts | {"stop": stop.requested, "suspects": suspects}, world=self.world)
        if isinstance(self.objective, Judging):
            parts[0]["metrics"] |= self.objective.judge([part["pairs"] for part in parts])
        self._counts = summed([self._counts, *(part["counts"] for part in parts)])
        loss = sum(part["pairs"]["loss"][0] for part in parts) / weight
        blame = self._rule.loss(loss)
        with self._memory.explained(f"the weights moved in step {step}"):
            outcome = self.engine.step(refuse=lambda norm: bool(blame or self._rule.norm(norm)))
        values = values_of(
            parts,
            outcome=outcome,
            loss=loss,
            weight=weight,
            seconds=time.perf_counter() - began,
            lr=max(self.engine.lrs().values()),
            peak=self._peak,
            memory=self._memory.since_last(world=self.world),
        )
        values |= self._measured(step + 1)
        self._log.record({"step": step} | values, rollouts=data.samples)
        self._tell_saved()
        if outcome.applied:
            self._rule.accept(loss=loss, norm=outcome.grad_norm)
        else:
            self._skip(step, batches, parts, why=blame or self._rule.norm(outcome.grad_norm) or "gradient not finite")
        return values, any(part["stop"] for part in parts)

    def _global_weight(self, step: int, data: StepData) -> float:
        """Sum of target weights over ranks and micro-batches; 0 when everything of the step is quarantined.

        Raises:
            ValueError: no targets although all clips were read, or ranks disagree on the number of micro-batches.
        """
        mine = [float(batch.target_weights.double().sum()) for batch in data.batches]
        gathered = gather_json([mine, bool(data.lost)], world=self.world)
        parts = [part for part, _ in gathered]
        counts = [len(part) for part in parts]
        if len(set(counts)) != 1 or counts[0] == 0:
            problem = "a source must give every rank the same number, at least 1"
            raise ValueError(f"step {step}: the ranks got {counts} micro-batches; {problem}")
        # fsum does not depend on the order, so neither does the loss on how the step is cut.
        flat = [value for part in parts for value in part]
        weight = math.fsum(flat) if all(math.isfinite(value) for value in flat) else math.nan
        if weight == 0 and not any(lost for _, lost in gathered):
            keys = data.batches[0].keys[:1]
            raise ValueError(f"step {step} has no target tokens, first sample {keys}: check the data")
        return weight

    def _pass_over(self, step: int, data: StepData, *, seconds: float, stop: StopSignals) -> bool:
        """Account for a step that no rank can learn from; returns whether any rank was asked to stop.

        How much may be lost is for `data.quarantine` to say, not for `runner.skip_budget`.
        """
        facts = {"counts": data.counts, "lost": list(data.lost), "stop": stop.requested}
        parts = gather_json(facts, world=self.world)
        self._counts = summed([self._counts, *(part["counts"] for part in parts)])
        self._log.record(passed_over(step, seconds=seconds) | self._measured(step + 1))
        keys = sorted({key for part in parts for key in part["lost"]})
        self._skips.pass_over(step, keys=keys, say=self._log.say)
        if self._watch is not None and step + 1 >= self.settings.liveness_scan:
            self._end_watch()
        return any(part["stop"] for part in parts)

    def _measured(self, done: int) -> dict[str, float]:
        """Return held-out figures after `done` steps, if they are due."""
        return self.course.after(done, last=done == self.settings.steps, say=self._log.say, note=self._dog.note)

    def _skip(self, step: int, batches: Sequence[Batch], parts: Sequence[dict[str, Any]], *, why: str) -> None:
        """Account for a step whose update was refused, on all ranks.

        Raises:
            BadNumbers: the budget is spent.
        """
        # When no loss is to blame, any sample of the step may be.
        suspects = [key for part in parts for key in part["suspects"]]
        keys = suspects or [key for part in gather_json(_keys(batches), world=self.world) for key in part]
        self._skips.refuse(step, why=why, keys=keys, say=self._log.say)

    def _last_line(self) -> dict[str, Any]:
        """Return the numbers of the last trained step as metrics.jsonl has them, where a process has trained none."""
        lines = read_metrics(self.folder / "metrics.jsonl") if self.world.first else []
        last: dict[str, Any] = next((line for line in reversed(lines) if "train/loss" in line), {})
        return dict(gather_json(last, world=self.world)[0])

    # --- proofs ---

    def _prove(self) -> None:
        self._dog.note("proving that modalities are alive")
        ahead = range(min(self.settings.liveness_scan, self.settings.steps))
        # What is looked at ahead is counted when it is trained on.
        batches = ([batch.to(self.engine.device) for batch in self.source.batches(step).batches] for step in ahead)
        self._report = check_modalities(batches, forward=self._predict, world=self.world)
        self._watch = GradientWatch(self.engine.trained_parameters(), train=self.train, world=self.world)

    def _prove_again(self, step: int, batches: Sequence[Batch]) -> None:
        every = self.settings.liveness_every
        if every and step and step % every == 0:
            moved = [[batch.to(self.engine.device) for batch in batches]]
            again = check_modalities(moved, forward=self._predict, world=self.world).moved
            self._report.moved.update(again)
            self._log.say(f"liveness at step {step}: {', '.join(f'{key} {value:.3g}' for key, value in again.items())}")

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.close(self._report)
            self._watch = None
            for note in self._report.notes:
                self._log.say(f"liveness: {note}")

    # --- checkpoints ---

    def _save_is_due(self, done: int) -> bool:
        every = self.settings.save_every
        return done in (self.settings.steps, self.course.best) or self.course.over or (every > 0 and done % every == 0)

    def save(self, done: int) -> None:
        """Begin the checkpoint of `done` finished steps, once; training may go on while it is written."""
        self._dog.note(f"saving after step {done}")
        self.checkpoints.kept = self.course.bests
        state = {
            "random": gather_json(random_state(), world=self.world),
            "steps_applied": self.engine.steps_applied,
            "spikes": self._rule.state(),
            "skipped": self._skips.state(),
            "counts": self._counts,
            "held": self._held_at(done),
            "wandb_id": self._log.wandb_id,
            "world_size": self.world.size,
            "liveness": dataclasses.asdict(self._report),
            "course": self.course.state(),
        }
        self._saver.save(done, state=state, say=self._log.say)

    def _held_at(self, done: int) -> dict[str, Any]:
        """Return what all ranks hold for the step that comes next."""
        parts = gather_json(self.held.held(done), world=self.world) if self.held is not None else []
        return {name: row for part in parts for name, row in part.items()}

    def _finish_saving(self, done: int) -> None:
        """Wait for the disk; the last checkpoint must be there, so a failed write is tried once more."""
        self._dog.note("writing the last checkpoint")
        self._saver.settle(say=self._log.say)
        if self._saver.saved_at != done:
            self._saver.failures = 0
            self.save(done)
            self._saver.settle(say=self._log.say)
        self._tell_saved()

    def _tell_saved(self) -> None:
        for step in self._saver.whole():
            self.callbacks.checkpoint(self.checkpoints.root / f"step-{step}", step=step)

    def _resume(self) -> Checkpoint | None:
        checkpoint = first_checkpoint(
            self.checkpoints, identity=self.identity, world=self.world, continue_from=self.continue_from
        )
        if checkpoint is None:
            return None
        self.engine.load_state(
            weights=checkpoint.tensors("weights"),
            optimizer=checkpoint.tensors("optimizer"),
            steps_applied=checkpoint.state["steps_applied"],
        )
        if checkpoint.state["world_size"] == self.world.size:
            restore_random_state(checkpoint.state["random"][self.world.rank])
        else:
            seed_all(self.settings.seed + checkpoint.step, rank=self.world.rank)
        self._counts = checkpoint.state["counts"]
        self._report = LivenessReport(**checkpoint.state["liveness"])
        if checkpoint.identity == self.identity:
            if self.held is not None:
                self.held.take(checkpoint.state["held"])
            self._skips.restore(checkpoint.state["skipped"])
            self._rule.restore(checkpoint.state["spikes"])
            self.course.restore(checkpoint.state.get("course", {}))
            self._saver.saved_at = checkpoint.step
        return checkpoint

    def _open_log(self, checkpoint: Checkpoint | None) -> RunLog:
        log = RunLog(
            self.folder,
            first=self.world.first,
            start=checkpoint.step if checkpoint else 0,
            steps=self.settings.steps,
            every=self.settings.log_every,
            logger=self.logger,
            name=self.name,
            config=self.config,
            wandb_id=checkpoint.state["wandb_id"] if checkpoint and checkpoint.identity == self.identity else None,
            callbacks=self.callbacks,
        )
        if checkpoint:
            how = "resumed" if checkpoint.identity == self.identity else "goes on"
            log.say(f"{how} after step {checkpoint.step} from {checkpoint.path}")
            if checkpoint.identity == self.identity:
                log.tell_missing(since=None if self.continue_from else 0, before=checkpoint.step)
        if self._sizes is not None:
            log.say(accounting(device=self.engine.device, peak=self._peak, ranks=self.world.size))
        return log


def _keys(batches: Sequence[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]
