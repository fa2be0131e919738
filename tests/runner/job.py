"""Training runs of the tiny model, called by tests and, with several ranks, as `python -m tests.runner.job`."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import torch

from arcvideo.processes.ranks import World, barrier, join
from arcvideo.runner.engine import Engine
from arcvideo.runner.runner import Runner
from arcvideo.runner.settings import OptimizerSettings, RunnerSettings, ScheduleSettings
from arcvideo.runner.trainable import tensor_digest, train_only
from arcvideo.saving.checkpoint import CheckpointFolder
from arcvideo.tracking.metrics import read_metrics
from arcvideo.types import StepData
from tests.runner.tiny import Rows, Tiny, cross_entropy
from tests.spawned import free_port

TRAIN = ["llm", "vision_projector", "audio_projector"]
ROOT = Path(__file__).resolve().parents[2]


class Died(Exception):
    """Stands for a crash."""


class DyingRows(Rows):
    """Dies when asked for step `die_at`; sleeps before each step."""

    die_at: int | None = None
    pause: float = 0.0

    def batches(self, step: int) -> StepData:
        """The rows, or the end."""
        if step == self.die_at:
            raise Died
        time.sleep(self.pause)
        return super().batches(step)


def engine_keys(stage: int, *, offload: bool = False) -> dict[str, Any]:
    """DeepSpeed keys; small thresholds, so that the tiny model is really cut."""
    zero: dict[str, Any] = {"stage": stage, "reduce_bucket_size": 500, "allgather_bucket_size": 500}
    if offload:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    return {"zero_optimization": zero | ({"stage3_param_persistence_threshold": 20} if stage == 3 else {})}


def build_engine(
    *,
    world: World,
    stage: int = 0,
    precision: str = "fp32",
    offload: bool = False,
    model: Tiny | None = None,
    **optimizer: Any,
) -> Engine:
    """An engine around a tiny model, a fresh one by default."""
    if model is None:
        model = Tiny()
        train_only(model, TRAIN)
    settings = OptimizerSettings(**({"lr": 1e-2} | optimizer))
    return Engine(
        model,
        world=world,
        settings=engine_keys(stage, offload=offload),
        optimizer=settings,
        precision=precision,
        clip_norm=0.5,
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
    until: int | None = None,
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
        runner.run(until=until)
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


def launched(ranks: int, **variables: str) -> list[dict[str, str]]:
    """The environment of each rank as torchrun would set it, and `variables`."""
    place = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    common = os.environ | place | {"OMP_NUM_THREADS": "1"} | variables
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]


def start_ranks(
    tasks: list[dict[str, Any]], *, ranks: int, results: Path, environments: list[dict[str, str]] | None = None
) -> list[subprocess.Popen[bytes]]:
    """Start processes of their own, for tests that signal or kill them.

    Args:
        tasks: done one after the other: arguments of `train`, or of the function that `do` names.
        ranks: how many.
        results: file that rank 0 writes what the tasks return to.
        environments: of each rank, where it is not torchrun's.
    """
    command = [sys.executable, "-m", "tests.runner.job", json.dumps(tasks), str(results)]
    return [
        subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
        for environment in environments or launched(ranks)
    ]


def ended(processes: list[subprocess.Popen[bytes]], *, seconds: float) -> list[str]:
    """Wait for all of the processes, then kill what still runs after `seconds`; returns what each wrote to stderr."""
    limit = time.monotonic() + seconds
    with ThreadPoolExecutor(len(processes)) as pool:
        texts = [pool.submit(lambda process: process.communicate()[1].decode(), process) for process in processes]
        try:
            wait(texts, timeout=limit - time.monotonic())
        finally:
            for process in processes:
                process.kill()
        return [text.result() for text in texts]


class _Pool:
    """Ranks that stay and do one task after the other: starting them costs more than most tasks."""

    def __init__(self, ranks: int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ranks-"))
        self._errors = [(self._folder / f"{rank}.txt").open("wb") for rank in range(ranks)]
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "tests.runner.job"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stderr=error,
            )
            for environment, error in zip(launched(ranks), self._errors, strict=True)
        ]
        self._done = 0

    def do(self, task: dict[str, Any], *, seconds: float) -> Any:
        """What the task returns on rank 0.

        Raises:
            AssertionError: a rank failed, or time is up; all are killed.
        """
        self._done += 1
        result = self._folder / f"{self._done}.json"
        limit = time.monotonic() + seconds
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps({"task": task, "result": str(result)}).encode() + b"\n")
            process.stdin.flush()
        while not result.exists():
            late = time.monotonic() > limit
            if late or any(process.poll() is not None for process in self._processes):
                self.close(seconds=0 if late else 10)
                texts = [(self._folder / f"{rank}.txt").read_text() for rank in range(len(self._processes))]
                raise AssertionError(
                    f"{'no end within ' + str(seconds) + ' s' if late else 'failed'}: {task}\n" + "\n".join(texts)
                )
            time.sleep(0.01)
        return json.loads(result.read_text())

    def close(self, *, seconds: float = 30) -> None:
        """Let the ranks end, or end them."""
        limit = time.monotonic() + seconds
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(limit - time.monotonic(), 0.01))
            process.kill()
            process.wait()
        for error in self._errors:
            error.close()


_POOLS: dict[int, _Pool] = {}


def run_ranks(tasks: list[dict[str, Any]], *, ranks: int, seconds: float = 900) -> list[Any]:
    """What each task gives on rank 0 of `ranks` processes; a task that takes longer than `seconds` has failed."""
    try:
        if ranks not in _POOLS:
            _POOLS[ranks] = _Pool(ranks)
            atexit.register(_POOLS[ranks].close)
        return [_POOLS[ranks].do(task, seconds=seconds) for task in tasks]
    except BaseException:
        _POOLS.pop(ranks, None)
        raise


def do(task: dict[str, Any], *, world: World) -> Any:
    """What the function named by `do` (`package.module:function`) returns for the rest of the task; else `train`."""
    arguments = dict(task)
    module, _, function = arguments.pop("do", "tests.runner.job:train").partition(":")
    return getattr(importlib.import_module(module), function)(**arguments, world=world)


def main() -> None:
    """Do the tasks given as JSON, or those that arrive line by line; rank 0 writes the results."""
    torch.set_num_threads(1)
    world = join()
    # The deepspeed launcher adds --local_rank.
    words = [word for word in sys.argv[1:] if not word.startswith("--local_rank")]
    if words:
        done = [do(task, world=world) for task in json.loads(words[0])]
        if world.first:
            Path(words[1]).write_text(json.dumps(done))
        return
    for line in sys.stdin:
        asked = json.loads(line)
        done = do(asked["task"], world=world)
        barrier(world=world)
        if world.first:
            path = Path(asked["result"])
            path.with_suffix(".tmp").write_text(json.dumps(done))
            path.with_suffix(".tmp").replace(path)


if __name__ == "__main__":
    main()
