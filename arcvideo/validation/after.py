"""Measuring a finished stage by its export, on its device and over all ranks; nothing it leaves can be lost by it."""

from __future__ import annotations

import gc
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from arcvideo.composing.config import RunConfig, plain_dict, recorded_settings
from arcvideo.files import whole
from arcvideo.lineage.code import evaluation_code
from arcvideo.lineage.manifest import EXPORT_NAME, Manifest, read_manifest, write_manifest
from arcvideo.lineage.started import newest_checkpoint
from arcvideo.lineage.state import wanted
from arcvideo.measuring.folder import PREDICTIONS, open_measurement, read_card, write_card
from arcvideo.model.disk.card import Card
from arcvideo.model.disk.card import write_card as write_model_card
from arcvideo.model.disk.loading import load_model
from arcvideo.model.disk.tokenizer import load_tokenizer
from arcvideo.model.towers.features import store_of
from arcvideo.processes.ranks import World, barrier
from arcvideo.seals import digest_of, seal, write_sealed
from arcvideo.tracking.log import RunLog
from arcvideo.validation.asking import Figures, HeldOut, Reading
from arcvideo.validation.during import KEPT, MEASUREMENTS, card_facts

EVALUATION = "evaluation.json"
"""In a stage's folder: its figures, those that report, recipes and gates read."""


def measure_export(config: RunConfig, *, world: World, parent: str) -> None:
    """Measure a finished stage as its settings ask for and note it in its manifest; nothing is trained.

    It goes on where an earlier process was stopped: answers are kept as they come, in a folder of this measurement's
    own. Every rank must call it.

    Args:
        config: of the stage.
        world: the ranks that share the clips.
        parent: identity of the stage's parent.

    Raises:
        ValueError: held-out questions that cannot be asked or scored.
    """
    began, folder = time.monotonic(), config.stage_dir
    manifest = read_manifest(folder)
    figures = _figures(config, world=world, manifest=manifest) if config.evaluation.measures else {}
    if world.first:
        kept = {name: value for name, value in manifest.metrics.items() if not _is_measured(name)}
        first = manifest.evaluation == ""
        new = replace(
            manifest,
            config=manifest.config | {"evaluation": recorded_settings(config)["evaluation"]},
            metrics=kept | {f"eval/{name}": row["value"] for name, row in figures.items()},
            evaluation=wanted(plain_dict(config), parent=parent).evaluation,
            journals=manifest.journals | ({PREDICTIONS: seal(folder / PREDICTIONS)} if figures else {}),
            seconds=manifest.seconds + (time.monotonic() - began if first else 0.0),
        )
        if figures:
            write_sealed(folder / EVALUATION, json.dumps(figures, indent=1) + "\n")
            write_model_card(folder / EXPORT_NAME, card_of(new, figures=figures))
            _tell(figures, config=config, manifest=manifest)
        # Last: whoever stops before it measures again, and asks nothing twice.
        write_manifest(new, folder=folder)
    barrier(world=world)


def _is_measured(name: str) -> bool:
    return name.startswith("eval/") and name not in KEPT


def _figures(config: RunConfig, *, world: World, manifest: Manifest) -> Figures:
    """Return the figures of the export, on every rank."""
    export = config.stage_dir / EXPORT_NAME
    gc.collect()
    dtype = torch.float32
    if world.device.type == "cuda":
        torch.cuda.empty_cache()  # what training held
        dtype = torch.bfloat16
    model: Any = load_model(export, dtype=dtype)
    model.requires_grad_(False)
    features = store_of(model, root=Path(config.run_dir) / "features") if config.feature_cache else None
    model.to(world.device)
    held = HeldOut(Reading(config=config, world=world, tokenizer=load_tokenizer(export), features=features))
    try:
        origin = _origin(config, held=held, manifest=manifest, dtype=dtype)
        folder = config.stage_dir / MEASUREMENTS / f"held-out-{digest_of(origin)[:8]}"
        if world.first:
            open_measurement(folder, origin=origin, facts=card_facts(held, checkpoint=str(export)))
            write_card(folder, {**read_card(folder), "scoring": held.scoring})
        barrier(world=world)
        figures = held.measure(model, folder=folder)
    finally:
        held.close()
    if world.first:
        with whole(config.stage_dir / PREDICTIONS) as temporary:
            shutil.copyfile(folder / PREDICTIONS, temporary)
    return figures


def _origin(config: RunConfig, *, held: HeldOut, manifest: Manifest, dtype: torch.dtype) -> dict[str, Any]:
    """Return everything that decides the answers."""
    settings = config.evaluation
    return {
        "model": "arcvideo",
        "weights": digest_of(manifest.exported),
        "questions": held.source.digest,
        "keys": digest_of(held.chosen),
        "style": settings.style,
        "wording": config.data.wording,
        "layout": vars(config.layout),
        "frames": [config.data.frames, config.data.token_budget],
        "decoding": {"greedy": True, "max_new_tokens": settings.max_new_tokens},
        "dtype": str(dtype).removeprefix("torch."),
        "code": digest_of(evaluation_code())[:16],
    }


def card_of(manifest: Manifest, *, figures: Figures) -> Card:
    """Return the model card of a stage's export."""
    return Card(
        stage=manifest.stage,
        parent=manifest.parent or manifest.parent_path,
        identity=manifest.identity,
        steps=manifest.steps,
        trained=[row["module"] for row in manifest.trainable if row["trained"]],
        mixture=manifest.mixture,
        settings=manifest.config,
        metrics=figures,
    )


def _tell(figures: Figures, *, config: RunConfig, manifest: Manifest) -> None:
    """Write the figures behind the steps in metrics.jsonl, and so to its mirrors."""
    newest = newest_checkpoint(config.stage_dir / "checkpoints")
    state = json.loads((newest / "state.json").read_bytes()) if newest is not None else {}
    log = RunLog(
        config.stage_dir,
        first=True,
        start=manifest.steps,
        steps=manifest.steps,
        every=config.runner.log_every,
        logger=config.logger,
        name=f"{config.stage.name}-{manifest.identity[:8]}",
        config=recorded_settings(config),
        wandb_id=state.get("wandb_id"),
    )
    values: dict[str, float] = {}
    for name, row in figures.items():
        values |= {f"eval/{name}": row["value"], f"eval/{name}/low": row["low"], f"eval/{name}/high": row["high"]}
    log.record({"step": manifest.steps, **values})
    log.close(exit_code=0)
