"""Training runs of the tiny model, called by tests and, with several ranks, as `python -m tests.runner.job`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from arcvideo.runner.checkpoint import CheckpointFolder
from arcvideo.runner.engine import Engine
from arcvideo.runner.metrics import read_metrics
from arcvideo.runner.ranks import World, join
from arcvideo.runner.runner import Runner
from arcvideo.runner.settings import OptimizerSettings, RunnerSettings, ScheduleSettings
from arcvideo.runner.trainable import tensor_digest, train_only
from arcvideo.types import Batch
from tests.runner.tiny import Rows, Tiny, cross_entropy

TRAIN = ["llm", "vision_projector", "audio_projector"]
ROOT = Path(__file__).resolve().parents[2]


class Died(Exception):
    """Stands for a crash."""


class DyingRows(Rows):
    """Dies when asked for step `die_at`; sleeps before each step."""

    die_at: int | None = None
    pause: float = 0.0

    def batches(self, step: int) -> list[Batch]:
        """The rows, or the end."""
        if step == self.die_at:
            raise Died
        time.sleep(self.pause)
        return super().batches(step)


def engine_keys(stage: int) -> dict[str, Any]:
    """DeepSpeed keys; small thresholds, so that the tiny model is really cut."""
    zero = {"stage": stage, "reduce_bucket_size": 500, "allgather_bucket_size": 500}
    return {"zero_optimization": zero | ({"stage3_param_persistence_threshold": 20} if stage == 3 else {})}


def build_engine(*, world: World, stage: int = 0, precision: str = "fp32", **optimizer: Any) -> Engine:
    """An engine around a fresh tiny model."""
    model = Tiny()
    train_only(model, TRAIN)
    settings = OptimizerSettings(**({"lr": 1e-2} | optimizer))
    return Engine(
        model, world=world, settings=engine_keys(stage), optimizer=settings, precision=precision, clip_norm=0.5
    )


def train(
    folder: Path | str,
    *,
    world: World,
    stage: int = 0,
    precision: str = "fp32",
    steps: int = 6,
    die_at: int | None = None,
    save_every: int = 2,
    pause: float = 0.0,
    poison: int | None = None,
    liveness: bool = True,
    optimizer: str = "adamw",
) -> dict[str, Any]:
    """One run; returns its losses and a digest of its final state. A run that dies returns nothing."""
    engine = build_engine(world=world, stage=stage, precision=precision, name=optimizer)
    source = DyingRows(rank=world.rank, ranks=world.size, poison=poison)
    source.die_at, source.pause = die_at, pause
    settings = RunnerSettings(steps=steps, save_every=save_every, liveness=liveness, log_every=1000, liveness_scan=2)
    schedule = ScheduleSettings(warmup_steps=2)
    runner = Runner(
        engine=engine, source=source, objective=cross_entropy, settings=settings, schedule=schedule, train=TRAIN,
        folder=Path(folder), identity="tiny",
    )  # fmt: skip
    try:
        runner.run()
    except Died:
        return {}
    weights = dict(engine.weights())
    return {
        "weights": tensor_digest(weights.items()),
        "optimizer": tensor_digest(engine.optimizer_state()),
        "sum": {name: float(tensor.double().sum()) for name, tensor in weights.items()},
        "metrics": curve(folder),
    }


def curve(folder: Path | str) -> list[list[float]]:
    """Step, loss and gradient norm of every line of metrics.jsonl."""
    lines = read_metrics(Path(folder) / "metrics.jsonl")
    return [[line["step"], float(line["train/loss"]), float(line["train/grad_norm"])] for line in lines]


def newest_step(folder: Path) -> int:
    """Step of the newest valid checkpoint, 0 without any."""
    found = CheckpointFolder(folder / "checkpoints").newest()
    return found.step if found else 0


def start_ranks(tasks: list[dict[str, Any]], *, ranks: int, results: Path) -> list[subprocess.Popen[bytes]]:
    """Start `ranks` processes that do the tasks one after the other; each task is the arguments of `train`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-m", "tests.runner.job", json.dumps(tasks), str(results)]
    return [
        subprocess.Popen(
            command, cwd=ROOT, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(ranks)
    ]


def run_ranks(tasks: list[dict[str, Any]], *, ranks: int, results: Path, seconds: float = 240) -> list[dict[str, Any]]:
    """Do the tasks on several ranks and wait; returns the result of each task."""
    processes = start_ranks(tasks, ranks=ranks, results=results)
    try:
        texts = [process.communicate(timeout=seconds)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(texts)
    return json.loads(results.read_text())


def main() -> None:
    """Do the tasks given as JSON; rank 0 writes the results."""
    torch.set_num_threads(1)
    world = join()
    done = [train(**(task | {"world": world})) for task in json.loads(sys.argv[1])]
    if world.first:
        Path(sys.argv[2]).write_text(json.dumps(done))


if __name__ == "__main__":
    main()
