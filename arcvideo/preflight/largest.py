"""Train once on the largest batch of a stage: `python -m arcvideo.preflight.largest stage=sft ...`.

The pack that costs most in the first epoch's plan goes forward and backward through the parent's weights on this
machine's first device, without optimizer states; what does not fit is told before hours are spent. Before the parent
has run, and where a step is made of completions or pairs, it is the fullest row that the settings allow, with the
stage's own objective; weights that are not there yet are random, which takes the same memory. Exit status 2: it did
not fit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arcvideo.composing.compose import stage_config
from arcvideo.composing.config import RunConfig
from arcvideo.feed.source import Source
from arcvideo.lineage.parents import resolve_parent
from arcvideo.model.disk.loading import load_model
from arcvideo.model.disk.lora import add_adapters
from arcvideo.model.disk.tokenizer import load_tokenizer
from arcvideo.objectives.next_token import NextToken
from arcvideo.objectives.scores import forward_of, loss_of
from arcvideo.planning.cost import pack_cost
from arcvideo.preflight.made import batch_of, model_of, objective_of
from arcvideo.preflight.row import fullest_row
from arcvideo.processes.command import as_command
from arcvideo.runner.trainable import PREFIXES, train_only, trained_modules
from arcvideo.tracking.cost import MemoryUse, is_out_of_memory, peak_memory
from arcvideo.types import Batch


def largest_batch(source: Source) -> Batch:
    """Return the pack that costs most of the first epoch, or of its first window where it has many."""
    window = source.plan.window(0, 0)
    number = int(window.pack_cost.argmax())
    step = int(np.searchsorted(window.step_start, number, side="right")) - 1
    return source.batches(step).batches[number - int(window.step_start[step])]


def run_largest(config: RunConfig) -> str:
    """Return one sentence about the largest batch of a stage, after it went forward and backward.

    Raises:
        OutOfMemory: it did not fit; the message names the samples and the override that would.
        ValueError: the data cannot be used.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parent = _parent(config)
    if parent is None or config.objective.sampled or config.objective.paired:
        model = model_of(config, device=device)
        batch, objective = batch_of(config, row=fullest_row(config), device=device), objective_of(config)
        kind = "the fullest row" + (", with random weights" if parent is None else "")
    else:
        model, batch, objective = _trained(config, path=parent, device=device), _from_data(config, path=parent), None
        kind = "the largest batch"
    batch = batch.to(device)
    use, began = MemoryUse(device), time.monotonic()
    use.before()
    try:
        loss_of(objective or NextToken(), batch, run=forward_of(model)).total.backward()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise use.explain(error, batch=batch) from error
        raise
    frames = sum(media.frame_count for media in batch.media)
    return (
        f"{config.stage.name}: {kind} ({batch.input_ids.numel()} tokens, {frames} frames) fits {device}: "
        f"{peak_memory(device):.1f} GiB without optimizer states, {time.monotonic() - began:.1f} s"
    )


def _parent(config: RunConfig) -> Path | None:
    """Return weights that the stage starts from; None before they are there."""
    try:
        return resolve_parent(
            run_dir=Path(config.run_dir), stage=config.stage.name, parent=config.stage.parent, base=Path(config.base),
            override=Path(config.parent) if config.parent else None,
        ).path  # fmt: skip
    except ValueError:
        return None


def _trained(config: RunConfig, *, path: Path, device: torch.device) -> Any:
    model = load_model(path)
    model.adopt(config.model)
    if config.lora is not None:
        prefixes = [prefix for name in config.lora.modules for prefix in PREFIXES[name]]
        add_adapters(model, settings=config.lora, prefixes=prefixes)
    train_only(model, trained_modules(config.stage.train, adapted=config.lora.modules if config.lora else ()))
    torch.nn.Module.to(model, device, torch.bfloat16 if config.runner.precision == "bf16" else torch.float32)
    return model.train()


def _from_data(config: RunConfig, *, path: Path) -> Batch:
    source = Source(
        replace(config.data, workers=0), layout=config.layout, tokenizer=load_tokenizer(path),
        seed=config.runner.seed, cost=pack_cost(config.model, trained=config.stage.train),
    )  # fmt: skip
    batch = largest_batch(source)
    source.close()
    return batch


def main(arguments: Sequence[str] | None = None) -> None:
    """Run it, or say why not."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        print(run_largest(stage_config(words)), flush=True)
    except ValueError as error:
        print(f"does not fit: {error}" if "out of memory" in str(error) else f"error: {error}", flush=True)
        sys.exit(2 if "out of memory" in str(error) else 1)


if __name__ == "__main__":
    as_command(main)
