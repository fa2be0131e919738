"""Every setting decides the identity of a stage, but for those that are named here."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from arcvideo.composing.config import plain_dict
from arcvideo.lineage.identity import identity
from tests.compose import settings

PLACES = ("data_dir", "run_dir", "base", "parent", "output", "continue_from", "data.index_dir", "data.shard_cache.",
          "data.frame_cache.path")  # fmt: skip
"""Where a stage reads and writes; what it reads counts by its content, a checkpoint it goes on from by its seal."""
PACE = (
    "threads", "feature_cache", "data.workers", "data.prefetch_steps", "data.frame_cache.max_gib",
    "model.activation_checkpointing", "engine.zero_optimization.",
)  # fmt: skip
"""How fast it runs and in how much memory."""
CARE = (
    "data.limits.", "data.quarantine.", "data.overlap", "verify_resume", "runner.save_every", "runner.keep_last",
    "runner.keep_every",
    "runner.save_failures", "runner.liveness", "runner.liveness_scan", "runner.liveness_every", "runner.skip_budget",
    "runner.hang_seconds", "grpo.max_logprob_outliers",
)  # fmt: skip
"""What is proven, kept and forgiven."""
SHOWN = (
    "logger.",
    "evaluation.",
    "runner.log_every",
    "runner.peak_tflops",
    "grpo.log_completions",
    "grpo.clipped_warning",
    "next_token.log_accuracy",
)
"""What is shown and measured; how a stage is evaluated has a digest of its own."""
PARENTS = ("train_parents", "parents")
"""For the stages before it."""
FREE = (*PLACES, *PACE, *CARE, *SHOWN, *PARENTS)
CHOOSE = ("evaluation.best", "evaluation.patience")
"""Let what is measured decide which weights come out."""


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def other(value: Any) -> Any:
    """A value that is not this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return [*value, "x"]
    return {"x": 1} if isinstance(value, Mapping) else f"{value}x"


def changed(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    made = copy.deepcopy(dict(config))
    *groups, name = key.split(".")
    place = made
    for group in groups:
        place = place[group]
    place[name] = other(place[name])
    return made


def identify(config: Mapping[str, Any]) -> str:
    return identity(config=config, data="d", parent="p", code={"m": "1"})


def is_free(key: str) -> bool:
    if key in CHOOSE:
        return False
    return key.endswith(".shards") or key in FREE or key.startswith(tuple(word for word in FREE if word.endswith(".")))


@pytest.mark.parametrize(("stage", "objective"), [("sft", ""), ("grpo", "grpo."), ("dpo", "dpo.")])
def test_every_setting_decides_the_identity_unless_it_is_named_as_free(stage: str, objective: str) -> None:
    config = plain_dict(settings(f"stage={stage}", "lora.rank=4", "data.frame_cache.path=frames"))
    before, found = identify(config), dict(leaves(config))
    assert {"schedule.warmup_steps", "schedule.name", "lora.rank", "lora.alpha", "optimizer.lr", "grpo.beta"} <= set(
        found
    )
    for key in found:
        of_other = any(key.startswith(name) for name in ("grpo.", "dpo.") if name != objective)
        counts = identify(changed(config, key)) != before
        assert counts is not (of_other or is_free(key)), f"{key}: {'decides' if counts else 'does not decide'}"


@pytest.mark.parametrize("word", ["evaluation.best=true", "evaluation.patience=2"])
def test_settings_of_an_evaluation_that_chooses_the_weights_decide_unless_they_only_show(word: str) -> None:
    config = plain_dict(settings("stage=sft", "evaluation.every=5", "evaluation.optimize=mcq_accuracy", word))
    before = identify(config)
    free = {name for name in config["evaluation"] if identify(changed(config, f"evaluation.{name}")) == before}
    # Shards count by their content; the other metrics, intervals and batches move no choice.
    assert free == {"shards", "metrics", "batch_prompts", "bootstrap", "seed", "samples"}


def test_adapters_and_their_absence_are_two_stages() -> None:
    with_adapters, without = (plain_dict(settings("stage=sft", *words)) for words in (["lora.rank=4"], []))
    assert identify(with_adapters) != identify(without)


def test_with_a_frame_cache_and_without_are_two_stages() -> None:
    cached, plain = (plain_dict(settings("stage=sft", f"data.frame_cache.path={path}")) for path in ("frames", "''"))
    assert identify(cached) != identify(plain)
