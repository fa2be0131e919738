"""Training the tiny model through adapters, called by tests and, with several ranks, as a program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from arcvideo.model.disk.lora import add_adapters
from arcvideo.model.settings import LoraSettings
from arcvideo.processes.ranks import World, join
from arcvideo.runner.engine import Engine
from arcvideo.runner.runner import Runner
from arcvideo.runner.settings import OptimizerSettings, RunnerSettings, ScheduleSettings
from arcvideo.runner.trainable import frozen_hashes, tensor_digest, train_only, trained_modules
from tests.runner.job import ROOT, TRAIN, Died, DyingRows, curve, ended, engine_keys, launched
from tests.runner.tiny import Tiny, cross_entropy

TRAINED = trained_modules(TRAIN, adapted=["llm"])
FROZEN = ["llm", "vit", "whisper"]
# The decoder's layers are called 0 and 1 in the tiny model.
LORA = LoraSettings(rank=2, alpha=4.0, targets=["0", "1"])


def train_adapters(
    folder: Path | str, *, world: World, stage: int = 0, precision: str = "fp32", dropout: float = 0.0,
    die_at: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Six steps; returns the curve, digests of the state, and whether what is frozen kept its bits."""
    model = Tiny()
    lora = LoraSettings(rank=LORA.rank, alpha=LORA.alpha, targets=LORA.targets, dropout=dropout)
    adapters = add_adapters(model, settings=lora, prefixes=("language_model.",), seed=3)
    train_only(model, TRAINED)
    before = frozen_hashes(model, frozen=FROZEN)
    engine = Engine(
        model, world=world, settings=engine_keys(stage), precision=precision, clip_norm=0.5,
        optimizer=OptimizerSettings(lr=1e-2, lr_factors={"llm": 2.0}),
    )  # fmt: skip
    source = DyingRows(rank=world.rank, ranks=world.size)
    source.die_at = die_at
    runner = Runner(
        engine=engine, source=source, objective=cross_entropy, train=TRAINED, folder=Path(folder), identity="lora",
        settings=RunnerSettings(steps=6, save_every=2, log_every=1000, liveness_scan=2), schedule=ScheduleSettings(),
    )  # fmt: skip
    try:
        result = runner.run()
    except Died:
        return {}
    found = {
        "lrs": engine.lrs(),
        "gradients": sorted(result.liveness["gradients"]),
        "optimizer": tensor_digest(engine.optimizer_state()),
        "curve": curve(folder),
    }
    whole = engine.close()
    found["frozen"] = frozen_hashes(whole, frozen=FROZEN) == before == frozen_hashes(Tiny(), frozen=FROZEN)
    merged = adapters.merge()
    assert merged is whole
    found["names"] = [name for name, _ in whole.named_parameters()] == [name for name, _ in Tiny().named_parameters()]
    found["weights"] = tensor_digest(whole.named_parameters())
    found["sum"] = {name: float(tensor.detach().double().sum()) for name, tensor in whole.named_parameters()}
    return found


def on_two_ranks(tasks: list[dict[str, Any]], *, results: Path) -> list[dict[str, Any]]:
    """Do the tasks one after the other on two ranks."""
    command = [sys.executable, "-m", "tests.runner.adapters", json.dumps(tasks), str(results)]
    processes = [subprocess.Popen(command, cwd=ROOT, env=each, stderr=subprocess.PIPE) for each in launched(2)]
    texts = ended(processes, seconds=900)
    assert all(process.returncode == 0 for process in processes), "\n".join(texts)
    return json.loads(results.read_text())


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = join()
    done = [train_adapters(**task, world=here) for task in json.loads(sys.argv[1])]
    if here.first:
        Path(sys.argv[2]).write_text(json.dumps(done))
