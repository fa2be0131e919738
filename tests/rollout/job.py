"""GRPO on several ranks, called by tests and as `python -m tests.rollout.job` with tasks as JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arcvideo.feed.prompts import StepPrompts
from arcvideo.objectives.agreement import GAP, OUTLIERS
from arcvideo.objectives.grpo import Grpo
from arcvideo.objectives.settings import GrpoSettings
from arcvideo.processes.ranks import World, gather_json, join
from arcvideo.rollout.source import RolloutSource
from arcvideo.runner.engine import Engine
from arcvideo.runner.runner import Runner
from arcvideo.runner.settings import OptimizerSettings, RunnerSettings, ScheduleSettings
from arcvideo.tracking.metrics import read_metrics
from arcvideo.types import Batch, model_inputs
from tests.rollout.test_group_exactness import apart, completions, copies, gradients, logits, packed
from tests.rollout.world import make_media, make_model, make_prompt, make_prompts, tokenizer
from tests.runner.job import ended, launched
from tests.sampling.test_sampler import likely_end

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = GrpoSettings(
    num_generations=3,
    num_prompts=4,
    num_iterations=2,
    max_completion_length=8,
    temperature=1.2,
    drop_zero_variance=True,
    max_refills=1,
    rewards={f"{__name__}:red": 1.0},
    log_completions=0,
)


def red(completions: list[str], **columns: Any) -> list[float]:
    """Few different values, so that some groups do not vary."""
    return [float(min(len(text), 4) // 2) for text in completions]


class Died(Exception):
    """Stands for a crash."""


class Stream:
    """An endless stream of prompts about three clips; a step takes the next `count`, a rank every n-th of them."""

    def __init__(self, world: World) -> None:
        self.world = world

    def prompts(self, step: int, *, count: int) -> StepPrompts:
        places = range(step * count + self.world.rank, (step + 1) * count, self.world.size)
        clips = [make_media("clip-a"), make_media("clip-b", frames=3), None]
        prompts = [replace(make_prompt(f"s{place}", media=clips[place % 3]), place=place) for place in places]
        return StepPrompts(prompts=prompts, counts={"seen": {"stream": len(places)}})


class DyingSource(RolloutSource):
    """Dies when asked for step `die_at`."""

    die_at: int | None = None

    def batches(self, step: int) -> Any:
        if step == self.die_at:
            raise Died
        return super().batches(step)


def make_engine(world: World, *, stage: int, checkpoint_layers: bool = False, likely: bool = True) -> Engine:
    model = make_model()
    model.activation_checkpointing = "full" if checkpoint_layers else "none"
    if likely:
        likely_end(model)
    zero = {"stage": stage, "reduce_bucket_size": 5000, "allgather_bucket_size": 5000}
    if stage == 3:
        zero["stage3_param_persistence_threshold"] = 100
    optimizer = OptimizerSettings(lr=1e-3, weight_decay=0.0, eps=1e-4)
    return Engine(model, world=world, settings={"zero_optimization": zero}, optimizer=optimizer)


def train(
    folder: str, *, world: World, stage: int = 0, steps: int = 4, die_at: int | None = None, max_refills: int = 1
) -> dict[str, Any]:
    """One run from the newest checkpoint in `folder`; nothing of one that dies."""
    settings = replace(SETTINGS, max_refills=max_refills)
    engine = make_engine(world, stage=stage)
    source = DyingSource(Stream(world), engine=engine, tokenizer=tokenizer(), settings=settings)
    source.die_at = die_at
    runner = Runner(
        engine=engine, source=source, held=source, objective=Grpo(settings), train=["llm"], folder=Path(folder),
        identity="tiny",
        settings=RunnerSettings(steps=steps, save_every=1, liveness=False, log_every=1000),
        schedule=ScheduleSettings(name="constant"),
    )  # fmt: skip
    try:
        result = runner.run()
    except Died:
        return {}
    weights = dict(engine.weights())
    names = ("train/loss", "train/grad_norm", "train/reward", "train/completions/mean_length", "train/entropy")
    return {
        "curve": [[line[name] for name in names] for line in read_metrics(Path(folder) / "metrics.jsonl")],
        "weights": {name: float(tensor.double().sum()) for name, tensor in weights.items()},
        "seen": result.counts["seen"]["stream"],
    }


def own(folder: str, *, world: World, stage: int, own_forward: bool, wrong: int | None = None) -> dict[str, Any]:
    """Three updates, one a rollout; each rank's every bit of the weights, and what the run says of the sampler.

    Args:
        stage: of ZeRO.
        own_forward: old log-probabilities come from the update's own forward.
        wrong: step in which the sampler of the last rank is off by a nat about every token.
    """
    settings = replace(SETTINGS, num_iterations=1, max_refills=0)
    engine = make_engine(world, stage=stage)
    source = RolloutSource(
        Stream(world), engine=engine, tokenizer=tokenizer(), settings=settings, own_forward=own_forward
    )
    if wrong is not None and world.rank == world.size - 1:
        sample = source._sampler.sample
        calls = iter(range(1000))

        def off(*arguments: Any, **options: Any) -> list[Any]:
            by = float(next(calls) == wrong)
            return [
                replace(group, completions=tuple(replace(one, logprobs=one.logprobs - by) for one in group.completions))
                for group in sample(*arguments, **options)
            ]

        source._sampler.sample = off  # type: ignore[method-assign]
    runner = Runner(
        engine=engine, source=source, held=source, objective=Grpo(settings), train=["llm"], folder=Path(folder),
        identity="tiny", schedule=ScheduleSettings(name="constant"),
        settings=RunnerSettings(steps=3, save_every=1, liveness=False, log_every=1000),
    )  # fmt: skip
    refused = ""
    try:
        runner.run()
    except ValueError as error:
        refused = str(error)
    names = ("train/loss", "train/grad_norm", "train/entropy", f"train/{GAP}", f"train/{OUTLIERS}")
    weights = {name: sha256(part.numpy().tobytes()).hexdigest() for name, part in engine.weights()}
    lines = read_metrics(Path(folder) / "metrics.jsonl")
    found = {"curve": [[line[name] for name in names] for line in lines], "weights": weights, "refused": refused}
    return {**found, "others": gather_json([weights, refused], world=world)}


def gradient(*, world: World, stage: int, checkpoint_layers: bool) -> dict[str, float]:
    """How far the gradient of shared rows through DeepSpeed is from that of full copies through torch, relative."""
    from deepspeed.utils import safe_get_full_grad

    prompts = make_prompts()
    groups = completions(prompts)
    engine = make_engine(world, stage=stage, checkpoint_layers=checkpoint_layers, likely=False)
    rows = copies(prompts, groups)
    parts = random_weights(rows)
    size, per = len(prompts) // world.size, len(rows) // len(prompts)
    mine = slice(world.rank * size, (world.rank + 1) * size)
    whole = packed(prompts[mine], groups[mine])
    weights = torch.cat(parts[world.rank * size * per : (world.rank + 1) * size * per])
    shared_logits = engine(**model_inputs(whole))
    engine.backward(_weighted(shared_logits, whole.target_ids, weights), last=True)
    found = {
        name: (parameter.grad if stage == 0 else safe_get_full_grad(parameter)).clone()
        for name, parameter in engine.trained_parameters().items()
    }
    plain, exact = gradient_of_copies(torch.float32), gradient_of_copies(torch.float64)
    return {
        "copies": apart(found, plain),
        "exact": apart(found, exact),
        "worst_tensor": max(apart({name: found[name]}, {name: exact[name]}) for name in exact),
        "worst_tensor_of_copies": max(apart({name: plain[name]}, {name: exact[name]}) for name in exact),
    }


def random_weights(rows: list[Batch]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(len(row.target_ids), generator=generator) for row in rows]


@cache
def gradient_of_copies(dtype: torch.dtype) -> dict[str, Tensor]:
    """Of one row for each completion, one after the other, without sharing, ranks or DeepSpeed."""
    prompts = make_prompts()
    model = make_model().to(dtype)
    rows = copies(prompts, completions(prompts))
    for row, part in zip(rows, random_weights(rows), strict=True):
        _weighted(logits(model, row), row.target_ids, part).backward()
    return gradients(model)


def _weighted(scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    chosen = scores.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return (chosen * weights.to(chosen.dtype)).sum()


def run_ranks(tasks: list[dict[str, Any]], *, ranks: int, results: Path, seconds: float = 1200) -> list[dict[str, Any]]:
    """Do the tasks on several ranks, one after the other; returns the result of each."""
    command = [sys.executable, "-m", "tests.rollout.job", json.dumps(tasks), str(results)]
    processes = [subprocess.Popen(command, cwd=ROOT, env=each, stderr=subprocess.PIPE) for each in launched(ranks)]
    texts = ended(processes, seconds=seconds)
    assert all(process.returncode == 0 for process in processes), "\n".join(texts)
    return json.loads(results.read_text())


def main() -> None:
    """Do the tasks given as JSON; rank 0 writes the results."""
    torch.set_num_threads(1)
    world = join()
    kinds = {"train": train, "own": own, "gradient": gradient}
    done = []
    for task in json.loads(sys.argv[1]):
        kind = task.pop("kind")
        done.append(kinds[kind](**task, world=world))
    if world.first:
        Path(sys.argv[2]).write_text(json.dumps(done))


if __name__ == "__main__":
    main()
