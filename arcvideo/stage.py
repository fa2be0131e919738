"""One stage from its settings to its manifest: the composition root."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from arcvideo.composing.config import RunConfig, plain_dict, recorded_settings
from arcvideo.feed.quarantine import quarantined
from arcvideo.feed.source import Source
from arcvideo.fingerprints.guard import refuse_overlap
from arcvideo.lineage.continued import continued_from
from arcvideo.lineage.identity import config_diff
from arcvideo.lineage.manifest import EXPORT_NAME, Manifest, sealed_journals, write_manifest
from arcvideo.lineage.parents import Parent
from arcvideo.lineage.state import Wanted, wanted, write_started
from arcvideo.model.disk.card import FILE as CARD
from arcvideo.model.disk.card import write_card
from arcvideo.model.disk.loading import load_model, save_model
from arcvideo.model.disk.lora import Adapters, add_adapters
from arcvideo.model.disk.tokenizer import load_tokenizer
from arcvideo.model.modeling import ArcVideoForConditionalGeneration
from arcvideo.model.settings import COMPUTING
from arcvideo.model.towers.features import FeatureStore, store_of
from arcvideo.objectives import load_objective
from arcvideo.planning.cost import pack_cost
from arcvideo.planning.settings import DataSettings
from arcvideo.planning.shares import mixture_text
from arcvideo.processes.activity import note
from arcvideo.processes.ranks import World, barrier, join
from arcvideo.processing import ArcVideoProcessor
from arcvideo.runner.engine import Engine
from arcvideo.runner.optimizer import peak_lrs
from arcvideo.runner.protocols import BatchSource, HeldRollouts, Objective, RunResult
from arcvideo.runner.runner import Runner
from arcvideo.runner.settings import MODULES
from arcvideo.runner.trainable import (
    PREFIXES,
    frozen_hashes,
    table_text,
    train_only,
    trainable_table,
    trained_modules,
)
from arcvideo.runner.zero import loading_dtype
from arcvideo.seals import seal_folder, write_sums
from arcvideo.tracking.callbacks import Callbacks
from arcvideo.tracking.metrics import Artifact, record_lineage
from arcvideo.types import Counts
from arcvideo.validation.after import card_of, measure_export
from arcvideo.validation.opening import Held, open_held


@dataclass(frozen=True, kw_only=True)
class _Room:
    """What every part of a run shares."""

    config: RunConfig
    world: World
    parent: Parent
    tokenizer: Any
    features: FeatureStore | None
    folder: Path


@dataclass(frozen=True, kw_only=True)
class _Setup:
    """What a stage trains, on what, as what."""

    room: _Room
    model: ArcVideoForConditionalGeneration
    source: Source
    objective: Objective
    held: Held
    """What is measured during the stage."""
    asked: Wanted
    trained: list[str]
    adapters: Adapters | None
    callbacks: Callbacks | None = None


def _setup(config: RunConfig, *, parent: Parent) -> _Setup:
    """Return everything before the first step.

    Raises:
        ValueError: settings, data or weights that cannot work together.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    world = join(hang_seconds=config.runner.hang_seconds)
    note("loading weights and data")
    folder = config.stage_dir
    folder.mkdir(parents=True, exist_ok=True)
    if world.local_rank == 0:
        parent.verify()
    half = loading_dtype(config.engine, precision=config.runner.precision, cached=config.feature_cache, world=world)
    model = load_model(parent.path, dtype=half)
    _fits(model, config=config, parent=parent)
    model.adopt(config.model)
    trained, adapters = _choose_trained(model, config=config, parent=parent)
    lrs = peak_lrs(model.named_parameters(), settings=config.optimizer)
    if world.first:
        print(table_text(trainable_table(model, lrs=lrs)), flush=True)
    room = _Room(
        config=config, world=world, parent=parent, tokenizer=load_tokenizer(parent.path),
        features=_features(model, config=config), folder=folder,
    )  # fmt: skip
    # A class that is not there is told before the data are opened.
    objective = load_objective(config.stage.objective)(config.objective_settings, **config.stage.options)
    source = _source(config.data, room=room, supervised=not config.objective.sampled, pairs=config.objective.paired)
    if world.first and config.data.overlap == "refuse":
        print(refuse_overlap(config.data, held_out=config.evaluation.held_out), end="", flush=True)
    shared = {"world": world, "tokenizer": room.tokenizer, "features": room.features}
    held = open_held(config, objective=objective, **shared)
    # Once: an edit during the run must not make the manifest name another code than the identity.
    expected = replace(wanted(plain_dict(config), parent=parent.identity), data=source.digest)
    if world.first:
        write_started(folder, expected=expected)
    return _Setup(
        room=room, model=model, source=source, objective=objective, held=held, asked=expected, trained=trained,
        adapters=adapters,
    )  # fmt: skip


def rehearse(config: RunConfig, *, parent: Parent, until: int) -> None:
    """Train the stage until a step and leave its checkpoint and metrics; no evaluation, no export, no manifest.

    Raises:
        ValueError: settings, data or weights that cannot work together.
    """
    ready = _setup(config, parent=parent)
    _train(ready, until=until)
    ready.source.close()


def run_stage(config: RunConfig, *, parent: Parent, callbacks: Callbacks | None = None) -> None:
    """Train, export and prove one stage, then measure it: whatever stops the measuring, the stage is trained.

    Raises:
        ValueError: settings, data or weights that cannot work together.
        Preempted: a signal asked to stop; a checkpoint is written (exit status 85).
    """
    world = _finish(config, parent=parent, callbacks=callbacks)
    if config.evaluation.measures:
        note("measuring the export")
        measure_export(config, world=world, parent=parent.identity)
    barrier(world=world)


def _finish(config: RunConfig, *, parent: Parent, callbacks: Callbacks | None) -> World:
    """Train and export a stage and write its manifest; what training held is free when this returns."""
    began = time.monotonic()
    ready = replace(_setup(config, parent=parent), callbacks=callbacks)
    room, source, expected, adapters = ready.room, ready.source, ready.asked, ready.adapters
    world, folder = room.world, room.folder
    still = [name for name in MODULES if name not in ready.trained]
    frozen = frozen_hashes(ready.model, frozen=still) if world.first else {}
    table = trainable_table(ready.model, lrs=peak_lrs(ready.model.named_parameters(), settings=config.optimizer))
    model, result = _train(ready)
    note("exporting")
    # What was frozen is told from what learned before the adapters go into the weights.
    frozen_after = frozen_hashes(model, frozen=still) if world.first else {}
    if adapters is not None:
        adapters.save(folder / "adapter" if world.first else None)
        if world.first:
            adapters.merge()
    source.close()
    mixture = _mixture(source, steps=result.steps, config=config)
    for name, row in _books(result.counts, sources=mixture).items():
        mixture[name]["books"] = row
    if world.first:
        print(mixture_text(mixture), flush=True)
    if world.first:
        export = folder / EXPORT_NAME
        save_model(model, export)
        processor = ArcVideoProcessor(room.tokenizer, layout=config.layout, wording=config.data.wording)
        processor.save_pretrained(export)
        write_sums(export)
        settings = recorded_settings(config)
        manifest = Manifest(
            stage=config.stage.name,
            identity=str(expected.identity),
            parent=parent.identity,
            parent_path=str(parent.path),
            parent_weights=parent.weights,
            exported={name: sealed for name, sealed in seal_folder(export).items() if name != CARD},
            continued=continued_from(config.continue_from).facts if config.continue_from else {},
            code=expected.code,
            data=source.digest,
            config=settings,
            config_diff=config_diff(parent.manifest.config, settings) if parent.manifest else {},
            seen=result.counts.get("seen", {}),
            quarantined=quarantined(folder, sources=source.counts()),
            mixture=mixture,
            frozen_before=frozen,
            frozen_after=frozen_after,
            trainable=[asdict(row) for row in table],
            liveness=result.liveness,
            repeatable=result.repeatable,
            steps=result.steps,
            skipped=result.skipped,
            metrics=result.metrics,
            seconds=time.monotonic() - began,
            journals=sealed_journals(folder),
            # A stage that is to be measured is finished, but not as it is asked for, until it is.
            evaluation="" if config.evaluation.measures else expected.evaluation,
        )
        write_card(export, card_of(manifest, figures={}))
        write_manifest(manifest, folder=folder)
        _record_lineage(manifest, room=room, wandb_id=result.wandb_id)
    barrier(world=world)
    return world


def _mixture(source: Source, *, steps: int, config: RunConfig) -> dict[str, dict[str, Any]]:
    """Return requested and realised mixture of what the steps were trained on."""
    if not config.objective.sampled:
        return source.mixture(steps)
    rollouts = -(-steps // config.grpo.num_iterations)
    # A rollout owns its refills' share of the prompt stream, whether it needed them or not.
    return source.mixture(rollouts * (1 + config.grpo.max_refills), count=config.grpo.num_prompts)


def _books(counts: Counts, *, sources: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return items planned, seen and quarantined of each source, over all ranks and restarts; nothing is missing."""
    kinds = ("planned", "seen", "quarantined")
    books = {name: {kind: counts.get(kind, {}).get(name, 0) for kind in kinds} for name in sources}
    for name, row in books.items():
        assert row["planned"] == row["seen"] + row["quarantined"], f"data.sources.{name}: {row} do not add up"
    return books


def measure_stage(config: RunConfig, *, parent: Parent) -> None:
    """Evaluate a finished stage anew, because the evaluation has changed; nothing is trained."""
    if config.threads:
        torch.set_num_threads(config.threads)
    world = join(hang_seconds=config.runner.hang_seconds)
    measure_export(config, world=world, parent=parent.identity)


def _fits(model: ArcVideoForConditionalGeneration, *, config: RunConfig, parent: Parent) -> None:
    """The parent's weights must be of the model that the settings describe."""
    wanted = config.model
    ours = replace(model.settings, **{name: getattr(wanted, name) for name in COMPUTING})
    if wanted.text.vocab_size == 0:
        wanted = replace(wanted, text=replace(wanted.text, vocab_size=ours.text.vocab_size))
    if ours != wanted:
        diff = config_diff(asdict(ours), asdict(wanted))
        raise ValueError(f"{parent.path} holds another model than model=... describes; [there, here]: {diff}")


def _features(model: ArcVideoForConditionalGeneration, *, config: RunConfig) -> FeatureStore | None:
    return store_of(model, root=Path(config.run_dir) / "features") if config.feature_cache else None


def _source(
    settings: DataSettings, *, room: _Room, supervised: bool, pairs: bool = False, name: str = "quarantine"
) -> Source:
    config = room.config
    return Source(
        settings,
        layout=config.layout,
        tokenizer=room.tokenizer,
        seed=config.runner.seed,
        rank=room.world.rank,
        world=room.world.size,
        features=room.features,
        quarantine_file=room.folder / f"{name}.jsonl",  # one for all ranks
        supervised=supervised,
        pairs=pairs,
        progress=room.world.first,
        cost=pack_cost(config.model, trained=config.stage.train, towers=room.features is None),
    )


def _choose_trained(
    model: ArcVideoForConditionalGeneration, *, config: RunConfig, parent: Parent
) -> tuple[list[str], Adapters | None]:
    """Set what learns, whole or through adapters; the names of the modules that do, and the adapters."""
    lora, adapters = config.lora, None
    if lora is not None:
        prefixes = [prefix for name in lora.modules for prefix in PREFIXES[name]]
        adapters = add_adapters(
            model, settings=lora, prefixes=prefixes, seed=config.runner.seed, parent=str(parent.path)
        )
    trained = trained_modules(config.stage.train, adapted=lora.modules if lora else ())
    train_only(model, trained)
    return trained, adapters


def _record_lineage(manifest: Manifest, *, room: _Room, wandb_id: str | None) -> None:
    """Tell W&B which artifacts the finished stage read and made."""
    parent, stage = room.parent, room.config.stage
    made = Artifact(name=stage.name, kind="model", identity=manifest.identity, path=room.folder / EXPORT_NAME)
    read = [
        Artifact(name=stage.parent, kind="model", identity=parent.identity, path=parent.path),
        Artifact(name="data", kind="dataset", identity=manifest.data),
    ]
    record_lineage(made, used=read, settings=room.config.logger, folder=room.folder, run_id=wandb_id)


def _train(ready: _Setup, *, until: int | None = None) -> tuple[ArcVideoForConditionalGeneration, RunResult]:
    """Return the Runner's part: the trained model, whole again, and what happened."""
    room, own = ready.room, str(ready.asked.identity)
    config = room.config
    engine = Engine(
        ready.model,
        world=room.world,
        settings=config.engine,
        optimizer=config.optimizer,
        precision=config.runner.precision,
        clip_norm=config.runner.clip_norm,
    )
    source, held = _feed(ready.source, engine=engine, room=room)
    course = ready.held.course(config, engine=engine, world=room.world, folder=room.folder, identity=own)
    result = Runner(
        engine=engine,
        source=source,
        held=held,
        objective=ready.objective,
        settings=config.runner,
        schedule=config.schedule,
        train=ready.trained,
        folder=room.folder,
        identity=own,
        logger=config.logger,
        name=f"{config.stage.name}-{own[:8]}",
        config=recorded_settings(config),
        forward_extra={"features": room.features},
        continue_from=continued_from(config.continue_from).path if config.continue_from else None,
        callbacks=ready.callbacks,
        course=course,
    ).run(until=until)
    if course is not None:
        plain = {name: value for name, value in result.metrics.items() if not name.startswith("eval/")}
        result = replace(result, metrics=plain | course.figures())
    ready.held.close()
    whole = engine.close(everywhere=False)
    assert isinstance(whole, ArcVideoForConditionalGeneration)
    return whole, result


def _feed(source: Source, *, engine: Engine, room: _Room) -> tuple[BatchSource, HeldRollouts | None]:
    """Return what a step trains on: the data, or what the policy or its parent say of them; and what of it is held."""
    config = room.config
    if config.objective.sampled:
        from arcvideo.rollout.source import RolloutSource

        shared = {"settings": config.objective_settings, "seed": config.runner.seed, "features": room.features}
        log = room.folder / "rollouts.jsonl" if room.world.first else None
        own = config.objective.own_forward
        rollouts = RolloutSource(source, engine=engine, tokenizer=room.tokenizer, log=log, own_forward=own, **shared)
        return rollouts, rollouts
    if config.keeps_reference:
        from arcvideo.rollout.preferences import ReferenceSource

        return ReferenceSource(source, engine=engine, features=room.features), None
    return source, None
